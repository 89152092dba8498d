from __future__ import annotations

import pytest
import rank_jobs
import torch
import torch.nn.functional as F
from rank_pool import RankPool
from small_models import CAPTIONS, images_for, small_model
from torch import Tensor

from clipkit import gradcache
from clipkit.losses import clip_loss


def _gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _in_one_graph(model: torch.nn.Module, chunks: list, seeds: list[int]) -> gradcache.Features:
    """Features of all chunks, with the dropout masks that the first pass draws; a seed for each rank."""
    outputs = []
    for number, seed in enumerate(seeds):
        torch.manual_seed(seed)
        per_rank = len(chunks) // len(seeds)
        outputs += [model(*chunk) for chunk in chunks[number * per_rank : (number + 1) * per_rank]]
    return {
        name: torch.cat([o[name] for o in outputs]) if outputs[0][name].ndim else outputs[0][name]
        for name in outputs[0]
    }


def _assert_equal(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-6 * expected[name].norm() + 1e-9, name


@pytest.mark.parametrize("num_chunks", [1, 2, 4])
@pytest.mark.parametrize("name", rank_jobs.LOSSES)
def test_equals_one_batch_with_dropout_on(name: str, num_chunks: int) -> None:
    loss, calls = rank_jobs.LOSSES[name], []
    chunks = list(zip(*(part.chunk(num_chunks) for part in rank_jobs.pairs()), strict=True))
    model, oracle = rank_jobs.TwoTowers(dropout=0.5), rank_jobs.TwoTowers(dropout=0.5)
    torch.manual_seed(3)
    value, _ = gradcache.backward(lambda c: model(*c), chunks, lambda f: (calls.append(1), loss(f))[1])
    expected = loss(_in_one_graph(oracle, chunks, [3]))
    expected.backward()
    assert len(calls) == 1
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-6)
    _assert_equal(_gradients(model), _gradients(oracle))


@pytest.mark.parametrize("name", ["softmax", "sigmoid, tiled"])
def test_equals_one_batch_with_patch_dropout_on(name: str) -> None:
    models = [small_model(patch_dropout=0.5, init_logit_bias=-5.0).train() for _ in range(2)]
    images, text = images_for(models[0], batch=6), models[0].tokenizer(CAPTIONS * 2)
    chunks = list(zip(images.chunk(3), text.chunk(3), strict=True))
    torch.manual_seed(3)
    gradcache.backward(lambda c: models[0](*c), chunks, rank_jobs.LOSSES[name])
    rank_jobs.LOSSES[name](_in_one_graph(models[1], chunks, [3])).backward()
    _assert_equal(_gradients(models[0]), _gradients(models[1]))
    undropped = small_model(init_logit_bias=-5.0).train()
    gradcache.backward(lambda c: undropped(*c), chunks, rank_jobs.LOSSES[name])
    with pytest.raises(AssertionError):
        _assert_equal(_gradients(models[0]), _gradients(undropped))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", rank_jobs.LOSSES)
def test_equals_one_process_on_two_ranks_with_dropout_on(ranks: RankPool, name: str, kind: str) -> None:
    oracle = rank_jobs.TwoTowers(dropout=0.5)
    oracle.logit_bias.requires_grad_(name.startswith("sigmoid"))
    # Two chunks of each rank's half of the pairs.
    chunks = list(zip(*(part.chunk(4) for part in rank_jobs.pairs()), strict=True))
    rank_jobs.LOSSES[name](_in_one_graph(oracle, chunks, [100, 101])).backward()
    for gradients in ranks.run(2, rank_jobs.cached_gradients_with_dropout, name, 2, kind):
        _assert_equal(gradients, _gradients(oracle))


def test_any_number_of_towers() -> None:
    inputs = [torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    def loss(features: gradcache.Features) -> Tensor:
        image, text, sound = (features[name] for name in ("image", "text", "sound"))
        return clip_loss(image, text, torch.tensor(5.0)) + clip_loss(image, sound, torch.tensor(3.0))

    gradients = []
    for num_chunks in (1, 4):
        torch.manual_seed(0)
        towers = torch.nn.ModuleDict({name: torch.nn.Linear(4, 6) for name in ("image", "text", "sound")})
        gradcache.backward(
            lambda chunk, towers=towers: {
                name: F.normalize(tower(x), dim=-1)
                for (name, tower), x in zip(towers.items(), chunk, strict=True)
            },
            list(zip(*(x.chunk(num_chunks) for x in inputs), strict=True)),
            loss,
        )
        gradients.append(_gradients(towers))
    _assert_equal(gradients[1], gradients[0])


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
