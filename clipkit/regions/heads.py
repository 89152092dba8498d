"""Region heads by name: made new beside a model, and in its directory as `heads/regions`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipkit.heads.files import head_names, read_stored, restoring, write_tensors
from clipkit.model_id import model_id
from clipkit.regions.base import RegionHead
from clipkit.suggestions import did_you_mean

if TYPE_CHECKING:
    from clipkit.dual_encoder import DualEncoder

REGION_HEADS = {
    "prompter": "clipkit.regions.prompter:Prompter",
    "query-decoder": "clipkit.regions.queries:QueryDecoder",
    "roi-align": "clipkit.regions.roi:RoIAlign",
}
"""Where the class of each kind is; imported when it is asked for."""

NAME = "regions"
"""Of a model's region head among the files of `heads/`; a model has one."""


def build_region_head(kind: str, model: DualEncoder, settings: Mapping[str, Any] | None = None) -> RegionHead:
    """A head with random weights for the tokens of a model's image tower, on the model's device.

    Args:
        kind: a key of `REGION_HEADS`.
        model: with an image tower.
        settings: some of the fields of the head's `Config`.

    Raises:
        ValueError: no such head or setting, or an image tower that it cannot serve.
    """
    if kind not in REGION_HEADS:
        there = ", ".join(REGION_HEADS)
        raise ValueError(f"no region head {kind!r}, there are {there}{did_you_mean(kind, REGION_HEADS)}")
    module, _, attribute = REGION_HEADS[kind].partition(":")
    found: Any = getattr(importlib.import_module(module), attribute)
    known = [field.name for field in dataclasses.fields(found.Config)]
    for name in settings or {}:
        if name not in known:
            raise ValueError(
                f"{kind} has no setting {name!r}, it has {', '.join(known)}{did_you_mean(name, known)}"
            )
    head: RegionHead = found(token_width(model), model.embed_dim, found.Config(**(settings or {})))
    return head.to(model.image_mean.device)


@torch.no_grad()
def token_width(model: DualEncoder) -> int:
    """Width C of the patch tokens that `DualEncoder.tokens` gives.

    Raises:
        ValueError: the image tower has no tokens.
    """
    was_training = model.training
    model.eval()
    try:
        blank = torch.zeros(1, 3, *model.image_size, device=model.image_mean.device)
        return model.tokens(blank).tokens[0].shape[-1]
    finally:
        model.train(was_training)


def head_id(head: RegionHead) -> str:
    """sha256 (hex) of a head's weights and settings, which the id of its model leaves out."""
    facts = {"kind": head.kind, "config": dataclasses.asdict(head.config)}
    return model_id(sorted(head.state_dict().items()), model_cfg=facts, preprocess_cfg={}, tokenizer={})


def write_region_head(
    model_dir: Path, head: RegionHead, tensors: Mapping[str, Tensor], *, model_id: str
) -> None:
    """Store the head of a model, in place of an older one.

    Args:
        model_dir: of the model.
        head: what it is; its own tensors are not looked at.
        tensors: its state dict.
        model_id: of the model.

    Raises:
        OSError: it cannot be written.
    """
    facts = {"method": head.kind, "config": dataclasses.asdict(head.config), "class_names": []}
    write_tensors(model_dir, NAME, tensors, facts, model_id=model_id)


def read_region_head(model_dir: Path, model: DualEncoder, *, model_id: str) -> RegionHead | None:
    """The region head in a model directory, None where there is none.

    Args:
        model_dir: the model directory.
        model: the model that was read from it.
        model_id: of these weights.

    Raises:
        ValueError: a file is damaged, or the head belongs to other weights.
    """
    if NAME not in head_names(model_dir):
        return None
    facts, tensors = read_stored(model_dir, NAME, model_id=model_id)
    with restoring(model_dir, NAME, facts):
        head = build_region_head(facts["method"], model, facts["config"])
        head.load_state_dict(tensors, strict=True)
    return head
