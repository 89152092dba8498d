"""AdamW groups, layer-wise learning rates, the schedule, gradient clipping and weight averaging."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from .config import OptimConfig

MAX_LOGIT_SCALE = math.log(100)

_BLOCK = re.compile(r"\b(?:resblocks|blocks|layers?|stages)\.?(\d+)\.")
_INPUT = re.compile(r"embed|\bconv\d|\bstem\b|\bbn[123]\.|ln_pre|\bcls_token")


def warmup_steps(config: OptimConfig, num_steps: int) -> int:
    """Steps of warm-up in a run of `num_steps`."""
    return min(2_000, num_steps // 10) if config.warmup_steps is None else config.warmup_steps


def lr_factor(step: int, num_steps: int, config: OptimConfig) -> float:
    """Learning rate of one step as a fraction of the peak.

    Args:
        step: zero-based optimiser step.
        num_steps: length of the run; a cosine reaches zero there.
        config: schedule, warm-up and cool-down.
    """
    warmup = warmup_steps(config, num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
    if config.schedule == "constant-cooldown":
        assert config.cooldown_steps is not None
        return min(1.0, (num_steps - step) / max(1, config.cooldown_steps))
    return 1.0


def layers_behind(names: Iterable[str]) -> dict[str, int]:
    """How many layers of its tower lie between each parameter and the output.

    Blocks are recognised by open_clip's, timm's and transformers' names (`resblocks.3.`, `blocks.3.`,
    `layer.3.`, `layer3.`). What lies outside the blocks is the input layer if it embeds (stem, class,
    position and token embeddings), else the output layer, which has none behind it; so has a region head.
    """
    names = list(names)
    towers = [name for name in names if not name.startswith("region_head.")]
    block = {name: int(match[1]) for name in towers if (match := _BLOCK.search(name))}
    indices: dict[str, set[int]] = {"image": set(), "text": set()}
    for name, index in block.items():
        indices[_tower(name)].add(index)
    behind = dict.fromkeys(names, 0)
    for name in towers:
        of_tower = indices[_tower(name)]
        if name in block:
            behind[name] = sum(index >= block[name] for index in of_tower)
        else:
            behind[name] = len(of_tower) + 1 if _INPUT.search(name) else 0
    return behind


def _tower(name: str) -> str:
    return "image" if re.search(r"\bvisual\.", name) else "text"


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """AdamW groups: weight decay for matrices only, and the learning-rate factor of each layer.

    Sharded (DTensor) and plain parameters never share a group, since fused optimisers cannot mix them.

    Returns:
        Groups with `params`, `weight_decay`, `lr` and `lr_scale`.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    behind = layers_behind(trained)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        key = (decay, config.layer_decay ** behind[name], isinstance(parameter, DTensor))
        groups.setdefault(key, []).append(parameter)
    # Sharded ones first: the grad scaler looks at the first gradient to see whether any is sharded.
    in_order = sorted(groups.items(), key=lambda item: not item[0][2])
    return [
        {"params": parameters, "weight_decay": decay, "lr": config.lr, "lr_scale": lr_scale}
        for (decay, lr_scale, _), parameters in in_order
    ]


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`.

    Raises:
        ValueError: nothing is trainable.
    """
    groups = parameter_groups(model, config)
    if not groups:
        raise ValueError("nothing is left to train: both towers are locked; unlock one or some groups of it")
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's layer factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Norm of the whole gradient, scaled down to `max_norm` where it is larger.

    Sharded and plain gradients count together.

    Args:
        parameters: those without a gradient are passed over.
        max_norm: None measures only.

    Returns:
        Scalar, the norm before clipping.
    """
    trained = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in trained if isinstance(p, DTensor) is sharded] for sharded in (False, True)]
    norms = []
    for kind in filter(None, kinds):
        norm = get_total_norm([p.grad for p in kind if p.grad is not None])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if max_norm is not None:
        for kind in filter(None, kinds):
            clip_grads_with_norm_(kind, max_norm, total)
    return total


class WeightAverage:
    """Exponential moving average of the trained parameters."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model
        self.average = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        for name, parameter in self._trained().items():
            self.average[name].lerp_(parameter, 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the model's weights; twice is nothing."""
        for name, parameter in self._trained().items():
            present = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(present)

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Take over saved averages."""
        for name, value in average.items():
            self.average[name].copy_(value)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._model.named_parameters() if name in self.average}
