from __future__ import annotations

import copy
import math

import pytest
import torch
from clipkit.training import optim
from clipkit.training.config import OptimConfig
from torch import nn


def test_cosine_by_hand() -> None:
    config = OptimConfig(warmup_steps=2)
    factors = [optim.lr_factor(step, 6, config) for step in range(7)]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    assert factors == pytest.approx([0.5, 1.0, *cosine])


def test_constant_with_cooldown_by_hand() -> None:
    config = OptimConfig(schedule="constant-cooldown", warmup_steps=0, cooldown_steps=4)
    assert [optim.lr_factor(step, 8, config) for step in range(9)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]


def test_constant() -> None:
    config = OptimConfig(schedule="constant", warmup_steps=1)
    assert [optim.lr_factor(step, 5, config) for step in range(5)] == [1.0] * 5


@pytest.mark.parametrize(("num_steps", "expected"), [(100, 10), (50_000, 2_000)])
def test_default_warmup_fits_the_run(num_steps: int, expected: int) -> None:
    assert optim.warmup_steps(OptimConfig(), num_steps) == expected


OPEN_CLIP_VIT = """
    visual.conv1.weight visual.class_embedding visual.positional_embedding visual.ln_pre.bias
    visual.transformer.resblocks.0.ln_1.weight visual.transformer.resblocks.1.attn.in_proj_weight
    visual.ln_post.weight visual.proj
"""
OPEN_CLIP_RESNET = """
    visual.conv1.weight visual.bn1.weight visual.layer1.0.conv1.weight visual.layer4.1.bn2.bias
    visual.attnpool.c_proj.weight
"""
TIMM_STAGES = """
    visual.trunk.stem.0.weight visual.trunk.stages.0.blocks.5.norm.weight
    visual.trunk.stages.1.blocks.0.norm.weight visual.trunk.norm.weight visual.head.proj.weight
"""
OPEN_CLIP_TEXT = """
    token_embedding.weight positional_embedding transformer.resblocks.0.ln_1.weight
    transformer.resblocks.1.ln_1.weight ln_final.weight text_projection logit_scale
"""
TRANSFORMERS_TEXT = """
    text.transformer.embeddings.word_embeddings.weight
    text.transformer.encoder.layer.0.attention.self.query.weight text.proj.weight
"""


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (OPEN_CLIP_VIT, [3, 3, 3, 3, 2, 1, 0, 0]),
        (OPEN_CLIP_RESNET, [3, 3, 2, 1, 0]),
        (TIMM_STAGES, [3, 2, 1, 0, 0]),
        (OPEN_CLIP_TEXT, [3, 3, 2, 1, 0, 0, 0]),
        (TRANSFORMERS_TEXT, [2, 1, 0]),
    ],
)
def test_layers_behind_each_parameter(names: str, expected: list[int]) -> None:
    assert list(optim.layers_behind(names.split()).values()) == expected


class _Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(5, 4)
        self.resblocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.logit_scale = nn.Parameter(torch.tensor(0.0))


def test_only_matrices_decay_and_deep_layers_learn_fastest() -> None:
    model = _Tower()
    model.resblocks[0].bias.requires_grad_(False)
    groups = optim.parameter_groups(model, OptimConfig(weight_decay=0.3, layer_decay=0.5))
    by_id = {id(p): group for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    assert len(by_id) == 5
    facts = {
        name: (by_id[id(p)]["weight_decay"], by_id[id(p)]["lr_scale"])
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert facts == {
        "token_embedding.weight": (0.3, 0.125),
        "resblocks.0.weight": (0.3, 0.25),
        "resblocks.1.weight": (0.3, 0.5),
        "resblocks.1.bias": (0.0, 0.5),
        "logit_scale": (0.0, 1.0),
    }
    optimizer = optim.make_optimizer(model, OptimConfig(layer_decay=0.5))
    optim.set_lr(optimizer, 8.0)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [1.0, 2.0, 4.0, 8.0]


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is left to train"):
        optim.make_optimizer(_Tower().requires_grad_(False), OptimConfig())


@pytest.mark.parametrize("max_norm", [None, 1.0, 1e6])
def test_clipping_equals_torch(max_norm: float | None) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    (model(torch.randn(4, 3)) * 10).square().sum().backward()
    twin = copy.deepcopy(model)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    norm = optim.clip_grad_norm(model.parameters(), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), max_norm or math.inf)
    torch.testing.assert_close(norm, expected)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_weight_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average = optim.WeightAverage(model, decay=0.75)
    with torch.no_grad():
        model.weight.fill_(5.0)
    average.update()
    average.swap()
    assert model.weight.item() == 2.0
    average.swap()
    assert model.weight.item() == 5.0
