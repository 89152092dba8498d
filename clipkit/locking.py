"""Freeze a tower, wholly or all but its last groups (LiT, arXiv:2111.07991).

Groups are counted as open_clip counts them: the embeddings (or stem), each block (or stage), the last block
with the final norm, the projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from clipkit.text_towers import open_clip_text

Group = list[nn.Parameter]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def image_groups(visual: Any) -> list[Group]:
    """The parameters of an image tower, first layers first."""
    if hasattr(visual, "transformer"):
        *blocks, last = visual.transformer.resblocks
        stem = _collect(visual.conv1, visual.class_embedding, visual.positional_embedding, visual.ln_pre)
        pools = [visual.attn_pool, getattr(visual, "attn_pool_contrastive", None)]
        return _whole(visual, [stem, *map(_collect, blocks), _collect(last, visual.ln_post, *pools)])
    if hasattr(visual, "attnpool"):
        stages = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
        stem = _collect(visual.conv1, visual.bn1, visual.conv2, visual.bn2, visual.conv3, visual.bn3)
        return _whole(visual, [stem, *map(_collect, stages)])
    from timm.models import group_parameters

    by_layer = group_parameters(visual.trunk, visual.trunk.group_matcher())
    return _whole(
        visual, [[visual.trunk.get_parameter(name) for name in by_layer[key]] for key in sorted(by_layer)]
    )


def text_groups(model: Any) -> list[Group]:
    """The parameters of a text tower, first layers first."""
    tower = open_clip_text(model)
    if tower is not None:
        *blocks, last = tower.transformer.resblocks
        embeddings = [tower.token_embedding, tower.positional_embedding, getattr(tower, "cls_emb", None)]
        groups = [_collect(*embeddings), *map(_collect, blocks), _collect(last, tower.ln_final)]
        projection = _collect(tower.text_projection)
        return [*groups, projection] if projection else groups
    encoder = getattr(model.text.transformer, "encoder", model.text.transformer)
    layers = getattr(encoder, "layer", None) or getattr(encoder, "layers", None)
    if layers is None:
        raise ValueError(f"the layers of a {type(encoder).__name__} text tower cannot be locked one by one")
    return _whole(model.text, [_collect(model.text.transformer.embeddings), *map(_collect, layers)])


def lock(groups: Sequence[Group], unlocked_groups: int) -> None:
    """Freeze all groups but the last `unlocked_groups`.

    Raises:
        ValueError: there are not that many groups.
    """
    if not 0 <= unlocked_groups <= len(groups):
        raise ValueError(f"unlocked_groups must be 0 to {len(groups)} for this tower, got {unlocked_groups}")
    for group in groups[: len(groups) - unlocked_groups]:
        for parameter in group:
            parameter.requires_grad_(False)


def hold_frozen_statistics(model: nn.Module) -> None:
    """Keep batch norms whose weights are frozen in evaluation mode: their statistics are frozen too."""
    for module in model.modules():
        if isinstance(module, _BATCH_NORMS):
            weights = list(module.parameters(recurse=False))
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()


def _collect(*parts: nn.Module | nn.Parameter | None) -> Group:
    group: Group = []
    for part in parts:
        if isinstance(part, nn.Parameter):
            group.append(part)
        elif part is not None:
            group.extend(part.parameters())
    return group


def _whole(tower: nn.Module, groups: list[Group]) -> list[Group]:
    """The groups, and as the last one whatever no group holds (pooling, projection)."""
    held = {id(parameter) for group in groups for parameter in group}
    rest = [parameter for parameter in tower.parameters() if id(parameter) not in held]
    return [*groups, rest] if rest else groups
