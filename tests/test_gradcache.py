from __future__ import annotations

import pytest
import rank_jobs
import torch
from torch import Tensor

from clipkit import gradcache


def _gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _with_recorded_masks(num_chunks: int) -> tuple[float, dict[str, Tensor], int]:
    """Cached backward through towers with dropout, and how often the loss ran."""
    model = rank_jobs.TwoTowers(dropout=0.5)
    image, text = (part.chunk(num_chunks) for part in rank_jobs.pairs())
    calls = 0

    def loss(features: gradcache.Features) -> Tensor:
        nonlocal calls
        calls += 1
        return rank_jobs.LOSSES["softmax"](features)

    torch.manual_seed(3)
    value, _ = gradcache.backward(lambda c: model(*c), list(zip(image, text, strict=True)), loss)
    return float(value), _gradients(model), calls


def _oracle(num_chunks: int) -> tuple[float, dict[str, Tensor]]:
    """One graph over all chunks, with the dropout masks that the first pass draws."""
    model = rank_jobs.TwoTowers(dropout=0.5)
    image, text = (part.chunk(num_chunks) for part in rank_jobs.pairs())
    torch.manual_seed(3)
    outputs = [model(*chunk) for chunk in zip(image, text, strict=True)]
    features = {
        name: torch.cat([o[name] for o in outputs]) if outputs[0][name].ndim else outputs[0][name]
        for name in outputs[0]
    }
    loss = rank_jobs.LOSSES["softmax"](features)
    loss.backward()
    return float(loss.detach()), _gradients(model)


@pytest.mark.parametrize("num_chunks", [1, 2, 4])
def test_equals_one_batch_with_dropout_on(num_chunks: int) -> None:
    value, gradients, calls = _with_recorded_masks(num_chunks)
    expected_value, expected = _oracle(num_chunks)
    assert calls == 1
    assert value == pytest.approx(expected_value)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)


def test_random_state_goes_on_as_after_one_pass() -> None:
    model = rank_jobs.TwoTowers(dropout=0.5)
    chunks = list(zip(*(part.chunk(2) for part in rank_jobs.pairs()), strict=True))
    torch.manual_seed(3)
    with torch.no_grad():
        for chunk in chunks:
            model(*chunk)
    expected = torch.rand(())
    torch.manual_seed(3)
    gradcache.backward(lambda c: model(*c), chunks, rank_jobs.LOSSES["softmax"])
    assert torch.equal(torch.rand(()), expected)


def test_a_scaled_loss_scales_gradients_but_not_the_value() -> None:
    chunks = list(zip(*(part.chunk(2) for part in rank_jobs.pairs()), strict=True))
    results = []
    for factor in (1.0, 8.0):
        model = rank_jobs.TwoTowers()
        value, _ = gradcache.backward(
            lambda c, model=model: model(*c),
            chunks,
            rank_jobs.LOSSES["softmax"],
            scale_loss=lambda loss, factor=factor: loss * factor,
        )
        results.append((float(value), _gradients(model)))
    (value, gradients), (scaled_value, scaled) = results
    assert value == scaled_value
    for name in gradients:
        torch.testing.assert_close(gradients[name] * 8, scaled[name])


def test_a_locked_tower_gets_no_gradient() -> None:
    model = rank_jobs.TwoTowers()
    model.image.requires_grad_(False)
    chunks = list(zip(*(part.chunk(4) for part in rank_jobs.pairs()), strict=True))
    gradcache.backward(lambda c: model(*c), chunks, rank_jobs.LOSSES["softmax"])
    assert all(p.grad is None for p in model.image.parameters())
    assert all(p.grad is not None for p in model.text.parameters())


def test_rng_state_round_trip() -> None:
    state = gradcache.RngState()
    first = torch.rand(3)
    gradcache.RngState.from_tensors(state.tensors()).restore()
    assert torch.equal(torch.rand(3), first)
