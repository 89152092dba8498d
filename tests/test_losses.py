from __future__ import annotations

import functools
import math
from itertools import accumulate

import loss_jobs
import loss_oracle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_pool import RankPool

from clipkit import distributed
from clipkit.losses import Pairs, clip_loss, siglip_loss
from clipkit.losses.kernels import TILE_SIZES, choose_kernel, make_kernel
from clipkit.losses.kernels.products import times_transposed
from clipkit.losses.kernels.torch_tiles import softplus

CASES = list(loss_oracle.cases())
SCOPES = [(1, "world"), (2, "world"), (2, "local"), (4, "world"), (4, "group"), (4, "local")]


def _unit(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _siglip(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, **settings) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return siglip_loss(image, text, scale, scale.new_tensor(-1.0), **settings)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in TILE_SIZES.items():
        monkeypatch.setitem(TILE_SIZES, name, size)
    if loss_jobs.HAS_TRITON:
        from clipkit.losses.kernels.triton_tiles import TritonTiles

        monkeypatch.setattr(TritonTiles, "block", TritonTiles.block)
    loss_jobs.small_tiles()


@functools.cache
def _computed(ranks: RankPool, world_size: int, objective: str, scope: str):  # type: ignore[no-untyped-def]
    return ranks.run(world_size, loss_jobs.all_gradients, objective, scope)


@functools.cache
def _expected(world_size: int, objective: str, scope: str, name: str) -> dict[str, torch.Tensor]:
    case = loss_oracle.cases()[name]
    groups = loss_jobs.groups_of(scope, world_size, case.counts(world_size))
    return loss_oracle.objective(objective, case, groups)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("exchange", loss_jobs.EXCHANGES)
@pytest.mark.parametrize("kernel", loss_jobs.KERNELS)
@pytest.mark.parametrize(("world_size", "scope"), SCOPES)
@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_gradients_equal_those_of_one_process_in_double_precision(
    ranks: RankPool, objective: str, world_size: int, scope: str, kernel: str, exchange: str, name: str
) -> None:
    expected = _expected(world_size, objective, scope, name)
    # A rank without pairs is a group without a loss; the mean over ranks counts it all the same.
    counts = loss_oracle.cases()[name].counts(world_size)
    share = 1.0 if scope != "local" else sum(count > 0 for count in counts) / world_size
    for result in _computed(ranks, world_size, objective, scope):
        computed = result[kernel, exchange, name]
        assert computed.keys() == expected.keys()
        for key, value in expected.items():
            difference = np.linalg.norm(computed[key] - share * value.numpy())
            assert difference <= 1e-5 * share * float(value.norm()), key


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_equal_to_open_clip(ranks: RankPool, objective: str, world_size: int) -> None:
    results = ranks.run(world_size, loss_jobs.against_open_clip, objective)
    for theirs, ours in results:
        for expected, computed in zip(theirs[:3], ours[:3], strict=True):
            np.testing.assert_allclose(computed, expected, rtol=1e-12, atol=1e-12)
    # Those of the scalars are compared after the mean over ranks, which is all that they are used for.
    for scalar in range(3, len(results[0][0])):
        expected, computed = (np.mean([result[who][scalar] for result in results]) for who in (0, 1))
        np.testing.assert_allclose(computed, expected, rtol=1e-12)


def test_clip_loss_by_hand() -> None:
    eye = torch.eye(2)
    for kernel in loss_jobs.KERNELS:
        value = float(clip_loss(eye, eye, torch.tensor(1.0), kernel=kernel))
        assert value == pytest.approx(math.log1p(math.exp(-1)))


def test_siglip_loss_by_hand() -> None:
    # Per image one positive at logit 3 - 1 and one negative at -1.
    expected = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))
    eye = torch.eye(2)
    for kernel in loss_jobs.KERNELS:
        value = float(siglip_loss(eye, eye, torch.tensor(3.0), torch.tensor(-1.0), kernel=kernel))
        assert value == pytest.approx(expected)


def test_softplus_keeps_the_digits_of_small_values() -> None:
    x = torch.linspace(-20, 20, 4001).view(1, -1)
    buffers = {name: torch.empty_like(x) for name in ("out", "work")}
    exact = -F.logsigmoid(-x.double())
    assert ((softplus(x, **buffers).double() - exact).abs() / exact).max() < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_by_any_library_are_alike(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = _unit(7, 5, 0).to(dtype), _unit(4, 5, 1).to(dtype)
    expected = left.double() @ right.double().T
    torch.testing.assert_close(times_transposed(left, right).double(), expected, rtol=0, atol=1e-6)
    transposed = right.T.contiguous().T  # as the backward has it
    torch.testing.assert_close(times_transposed(left, transposed).double(), expected, rtol=0, atol=1e-6)
    monkeypatch.setattr("clipkit.losses.kernels.products._onednn_linear", lambda: None)
    torch.testing.assert_close(times_transposed(left, right).double(), expected, rtol=0, atol=1e-6)


def test_two_captions_of_one_image_by_hand() -> None:
    # Rows 0 and 1 are one image with two captions, row 2 another; all logits are 0 or 1.
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    pairs = Pairs(positive_keys=torch.tensor([7, 7, 8]))
    of_first = math.log(2 * math.e + 1) - 1
    of_last = math.log(2 + math.e) - 1
    value = float(clip_loss(image, image, torch.tensor(1.0), pairs=pairs))
    assert value == pytest.approx((2 * of_first + of_last) / 3)


@pytest.mark.parametrize("loss", [clip_loss, _siglip])
@pytest.mark.parametrize("kernel", loss_jobs.KERNELS)
def test_pairs_may_come_in_any_order(small_tiles: None, loss, kernel: str) -> None:  # type: ignore[no-untyped-def]
    image, text, scale = _unit(20, 4, 0), _unit(20, 4, 1), torch.tensor(5.0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    in_order = loss(image, text, scale, kernel=kernel)
    torch.testing.assert_close(loss(image[order], text[order], scale, kernel=kernel), in_order)


@pytest.mark.parametrize("loss", [clip_loss, _siglip])
def test_towers_may_be_exchanged(loss) -> None:  # type: ignore[no-untyped-def]
    image, text, scale = _unit(6, 4, 0), _unit(6, 4, 1), torch.tensor(5.0)
    torch.testing.assert_close(loss(image, text, scale), loss(text, image, scale))


@pytest.mark.parametrize("is_matched", [False, True])
@pytest.mark.parametrize("kernel", loss_jobs.KERNELS)
@pytest.mark.parametrize("loss", [clip_loss, _siglip])
def test_half_precision_features_are_scored_in_fp32(
    small_tiles: None, loss, kernel: str, is_matched: bool
) -> None:  # type: ignore[no-untyped-def]
    image, text = _unit(40, 32, 0), _unit(40, 32, 1)
    if is_matched:  # the probabilities of the pairs are near 1, and their gradients a small rest
        text = F.normalize(image + 0.8 * text, dim=-1)
    image, text = (x.bfloat16().requires_grad_() for x in (image, text))
    exact_image, exact_text = (x.detach().double().requires_grad_() for x in (image, text))
    scale = torch.tensor(14.0 if is_matched else 100.0)
    exact = loss(exact_image, exact_text, scale.double())
    exact.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(image, text, scale, kernel=kernel)
    value.backward()
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=1e-4)
    for half, expected in ((image, exact_image), (text, exact_text)):
        assert half.grad.dtype == torch.bfloat16
        assert (half.grad.double() - expected.grad).norm() < 1e-2 * expected.grad.norm()


@settings(max_examples=25, deadline=None)
@given(
    num_pairs=st.integers(1, 40),
    embed_dim=st.integers(1, 20),
    tile_size=st.integers(1, 48),
    kernel=st.sampled_from(loss_jobs.TILE_KERNELS),
    loss=st.sampled_from([clip_loss, _siglip]),
)
def test_any_shape(num_pairs: int, embed_dim: int, tile_size: int, kernel: str, loss) -> None:  # type: ignore[no-untyped-def]
    gradients = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TILE_SIZES, kernel, tile_size)
        if kernel == "triton":
            patch.setattr("clipkit.losses.kernels.triton_tiles.TritonTiles.block", (16, 32, 16))
        for name in ("dense", kernel):
            image, text = (_unit(num_pairs, embed_dim, seed).requires_grad_() for seed in (0, 1))
            scale = torch.tensor(9.0, requires_grad=True)
            value = loss(image, text, scale, kernel=name)
            value.backward()
            gradients.append([value.detach(), image.grad, text.grad, scale.grad])
    for expected, computed in zip(*gradients, strict=True):
        torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernel", loss_jobs.TILE_KERNELS)
@pytest.mark.parametrize("loss", [clip_loss, _siglip])
def test_nearly_identical_features_at_the_largest_scale(loss, kernel: str) -> None:  # type: ignore[no-untyped-def]
    num_pairs = 8_192 if kernel == "tiled" else 512
    generator = torch.Generator().manual_seed(0)
    image = 1e-3 * torch.randn(num_pairs, 4, generator=generator)
    image = F.normalize(image + torch.tensor([1.0, 0.0, 0.0, 0.0]), dim=-1)
    leaves = [
        image.clone().requires_grad_(),
        (-image).requires_grad_(),
        torch.tensor(100.0, requires_grad=True),
    ]
    for text_sign in (1, -1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            halves = [leaves[0].bfloat16(), (text_sign * leaves[1]).bfloat16()]
            value = loss(*halves, leaves[2], kernel=kernel)
        value.backward()
        assert value.isfinite()
        assert all(leaf.grad.isfinite().all() for leaf in leaves)
        if loss is clip_loss:
            assert float(value.detach()) == pytest.approx(math.log(num_pairs), rel=0.05)


@pytest.mark.parametrize("exchange", loss_jobs.EXCHANGES)
@pytest.mark.parametrize("embed_dim", [8, 64])
@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_tiles_keep_few_bytes_for_the_backward(
    ranks: RankPool, objective: str, world_size: int, embed_dim: int, exchange: str
) -> None:
    num_pairs = 256
    for kept in ranks.run(world_size, loss_jobs.bytes_kept, objective, exchange, num_pairs, embed_dim):
        assert 0 < kept <= (4 * num_pairs * embed_dim + 4 * num_pairs) * 4


@pytest.mark.parametrize("kernel", loss_jobs.TILE_KERNELS)
@pytest.mark.parametrize("loss", [clip_loss, _siglip])
def test_features_may_lie_anyhow_in_memory(small_tiles: None, loss, kernel: str) -> None:  # type: ignore[no-untyped-def]
    image, text, scale = _unit(20, 4, 0), _unit(20, 4, 1), torch.tensor(5.0)
    table = torch.randint(0, 6, (20, 2), generator=torch.Generator().manual_seed(2))
    ignored = torch.rand(20, 20, generator=torch.Generator().manual_seed(3)) < 0.3
    pairs = {"positive_keys": table[:, 0], "ignored_keys": table[:, 1], "ignored": ignored.T.contiguous().T}
    columns_first = [x.T.contiguous().T for x in (image, text)]
    assert not any(x.is_contiguous() for x in (*columns_first, *pairs.values()))
    expected = loss(image, text, scale, pairs=Pairs(**{k: v.contiguous() for k, v in pairs.items()}))
    torch.testing.assert_close(loss(*columns_first, scale, kernel=kernel, pairs=Pairs(**pairs)), expected)


@pytest.mark.parametrize("kernel", loss_jobs.KERNELS)
@pytest.mark.parametrize("loss", [clip_loss, _siglip])
def test_a_logit_scale_may_have_a_dimension(loss, kernel: str) -> None:  # type: ignore[no-untyped-def]
    scale = torch.tensor([5.0], requires_grad=True)
    value = loss(_unit(6, 4, 0), _unit(6, 4, 1), scale, kernel=kernel)
    value.backward()
    assert value.shape == ()
    assert scale.grad.shape == (1,)


@pytest.mark.parametrize("kernel", loss_jobs.TILE_KERNELS)
def test_without_gradients_none_are_computed(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = _unit(6, 4, 0).requires_grad_(), _unit(6, 4, 1).requires_grad_()
    expected = float(_siglip(image, text, torch.tensor(5.0), kernel=kernel).detach())
    owner = type(make_kernel(kernel))
    monkeypatch.setattr(owner, "add_product", lambda *_: pytest.fail("a gradient was computed"))
    with torch.no_grad():
        assert float(_siglip(image, text, torch.tensor(5.0), kernel=kernel)) == pytest.approx(expected)


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_all_ranks_choose_one_kernel(ranks: RankPool, objective: str) -> None:
    expected = float(_expected(4, objective, "world", "uneven")["loss"])
    assert ranks.run(4, loss_jobs.automatic_kernel, objective) == pytest.approx([expected] * 4, rel=1e-5)


@pytest.mark.parametrize("exchange", loss_jobs.EXCHANGES)
@pytest.mark.parametrize("kernel", ["dense", "tiled"])
def test_a_softmax_loss_may_count_differently_on_each_rank(
    ranks: RankPool, kernel: str, exchange: str
) -> None:
    case = loss_oracle.cases()["plain"]
    image, text = case.image.double().requires_grad_(), case.text.double().requires_grad_()
    logits = case.scale * image @ text.T
    per_pair = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()) / 2
    ((per_pair.view(2, -1).mean(1)) * torch.tensor([1.0, 2.0])).sum().backward()
    for result in ranks.run(2, loss_jobs.loss_times_rank, "softmax", kernel, exchange):
        for computed, expected in zip(result, (image.grad, text.grad), strict=True):
            np.testing.assert_allclose(computed, expected.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("loss", [clip_loss, _siglip])
def test_a_graph_may_be_gone_through_twice(loss, factor: float) -> None:  # type: ignore[no-untyped-def]
    image, text = _unit(12, 4, 0).requires_grad_(), _unit(12, 4, 1).requires_grad_()
    value = factor * loss(image, text, torch.tensor(5.0), kernel="tiled")
    value.backward(retain_graph=True)
    first = image.grad.clone()
    value.backward()
    torch.testing.assert_close(image.grad, 2 * first)


def test_a_tiled_sigmoid_loss_must_not(ranks: RankPool) -> None:
    with pytest.raises(AssertionError, match="must count alike on all ranks, got factors from 1 to 2"):
        ranks.run(2, loss_jobs.loss_times_rank, "sigmoid", "tiled", "gather")


@pytest.mark.parametrize("loss", [clip_loss, _siglip])
def test_a_locked_tower_gets_no_gradient(loss) -> None:  # type: ignore[no-untyped-def]
    for locked in (0, 1):
        gradients = []
        for kernel in ("dense", "tiled"):
            features = [_unit(12, 4, 0), _unit(12, 4, 1)]
            features[1 - locked].requires_grad_()
            scale = torch.tensor(3.0, requires_grad=True)
            loss(*features, scale, kernel=kernel).backward()
            assert features[locked].grad is None
            gradients.append([features[1 - locked].grad, scale.grad])
        for expected, computed in zip(*gradients, strict=True):
            torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-7)


def test_a_batch_without_weight_has_no_loss() -> None:
    image, text = _unit(4, 8, 0).requires_grad_(), _unit(4, 8, 1)
    for loss in (clip_loss, _siglip):
        value = loss(image, text, torch.tensor(5.0), pairs=Pairs(weights=torch.zeros(4)), kernel="tiled")
        value.backward()
        assert float(value.detach()) == 0
        assert not image.grad.any()


@pytest.mark.parametrize("loss", [clip_loss, _siglip])
def test_refuses_features_that_do_not_pair_up(loss) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"\(4, 8\) and \(5, 8\)"):
        loss(_unit(4, 8, 0), _unit(5, 8, 1), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"\(4, 8\) and \(4, 9\)"):
        loss(_unit(4, 8, 0), _unit(4, 9, 1), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"float32 and torch\.bfloat16"):
        loss(_unit(4, 8, 0), _unit(4, 8, 1).bfloat16(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (Pairs(positive_keys=torch.zeros(3)), r"pairs.positive_keys must be \(4,\), got \(3,\)"),
        (Pairs(ignored=torch.zeros(4, 5)), r"pairs.ignored must be \(4, 4\), got \(4, 5\)"),
        (Pairs(max_text_similarity=1.5), r"max_text_similarity must be in \[-1, 1\], got 1.5"),
        (Pairs(weights=torch.ones(4, 1)), r"pairs.weights must be \(4,\), got \(4, 1\)"),
        (Pairs(negative_text_features=torch.ones(4, 2, 7)), r"must be \(4, K, 8\), got \(4, 2, 7\)"),
        (Pairs(row_counts=(3,)), r"4 for rank 0, got \(3,\)"),
    ],
)
def test_refuses_what_does_not_fit_the_batch(pairs: Pairs, message: str) -> None:
    for loss in (clip_loss, _siglip):
        with pytest.raises(ValueError, match=message):
            loss(_unit(4, 8, 0), _unit(4, 8, 1), torch.tensor(1.0), pairs=pairs)


def test_refuses_settings_out_of_range() -> None:
    image, text, scale = _unit(4, 8, 0), _unit(4, 8, 1), torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1.0"):
        clip_loss(image, text, scale, label_smoothing=1.0)
    with pytest.raises(ValueError, match="unknown kernel 'fast'; choose from auto, dense, tiled, triton"):
        clip_loss(image, text, scale, kernel="fast")
    with pytest.raises(ValueError, match="unknown exchange 'tree'; choose from gather, ring"):
        clip_loss(image, text, scale, exchange="tree")
    for dtype in (torch.float64, torch.float16):
        with pytest.raises(ValueError, match=rf"got {dtype}; use 'tiled' or 'auto'"):
            choose_kernel("triton", torch.device("cpu"), dtype, num_rows=4, num_columns=4)


def test_refuses_a_kernel_that_the_device_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    with pytest.raises(
        ValueError, match="kernel 'triton' needs a CUDA device, got features on cpu; use 'tiled'"
    ):
        clip_loss(_unit(4, 8, 0), _unit(4, 8, 1), torch.tensor(1.0), kernel="triton")
    cpu = torch.device("cpu")
    assert choose_kernel("auto", cpu, torch.float32, num_rows=100, num_columns=100) == "dense"
    assert choose_kernel("auto", cpu, torch.float32, num_rows=4096, num_columns=4096) == "tiled"


def test_groups_must_divide_the_ranks(ranks: RankPool) -> None:
    with pytest.raises(ValueError, match="divides the number of ranks, got 2 of 1 ranks"):
        distributed.make_group("group", group_size=2)
    assert distributed.make_group("world") is None
    with pytest.raises(AssertionError, match="got 3 of 4 ranks"):
        ranks.run(4, distributed.make_group, "group", 3)


def test_counts_are_laid_out_in_rank_order() -> None:
    assert [0, *accumulate(loss_oracle.UNEVEN[4])][-1] == loss_oracle.NUM_PAIRS
    assert loss_jobs.groups_of("group", 4, loss_oracle.UNEVEN[4]) == [list(range(9)), list(range(9, 24))]


def test_jobs_leave_the_ranks_as_they_were(ranks: RankPool) -> None:
    before = loss_jobs.settings()
    ranks.run(4, loss_jobs.automatic_kernel, "softmax")
    ranks.run(4, loss_jobs.bytes_kept, "softmax", "gather", 64, 8)
    assert ranks.run(4, loss_jobs.settings) == [before] * 4
