from __future__ import annotations

import math

import pytest
import rank_jobs
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from rank_pool import RankPool

from clipkit.losses import clip_loss, siglip_loss


def _unit(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_clip_loss_by_hand() -> None:
    eye = torch.eye(2)
    assert float(clip_loss(eye, eye, torch.tensor(1.0))) == pytest.approx(math.log1p(math.exp(-1)))


def test_siglip_loss_by_hand() -> None:
    # Per image one positive at logit 3 - 1 and one negative at -1.
    expected = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))
    eye = torch.eye(2)
    assert float(siglip_loss(eye, eye, torch.tensor(3.0), torch.tensor(-1.0))) == pytest.approx(expected)


def test_equal_to_open_clip() -> None:
    image, text = _unit(9, 8, 0), _unit(9, 8, 1)
    scale, bias = torch.tensor(7.0), torch.tensor(-3.0)
    torch.testing.assert_close(clip_loss(image, text, scale), ClipLoss()(image, text, scale))
    torch.testing.assert_close(
        siglip_loss(image, text, scale, bias), SigLipLoss()(image, text, scale, logit_bias=bias)
    )


@pytest.mark.parametrize("loss", [clip_loss, lambda i, t, s: siglip_loss(i, t, s, torch.tensor(-1.0))])
def test_pairs_may_come_in_any_order(loss) -> None:  # type: ignore[no-untyped-def]
    image, text, scale = _unit(6, 4, 0), _unit(6, 4, 1), torch.tensor(5.0)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(loss(image, text, scale), loss(image[order], text[order], scale))


def test_clip_loss_is_symmetric() -> None:
    image, text, scale = _unit(6, 4, 0), _unit(6, 4, 1), torch.tensor(5.0)
    torch.testing.assert_close(clip_loss(image, text, scale), clip_loss(text, image, scale))


def test_bf16_features_are_scored_in_fp32() -> None:
    image, text = _unit(64, 32, 0).bfloat16(), _unit(64, 32, 1).bfloat16()
    scale = torch.tensor(100.0)
    exact = clip_loss(image.double(), text.double(), scale.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = clip_loss(image, text, scale)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize("loss", [clip_loss, lambda i, t, s: siglip_loss(i, t, s, s)])
def test_refuses_features_that_do_not_pair_up(loss) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"\(4, 8\) and \(5, 8\)"):
        loss(_unit(4, 8, 0), _unit(5, 8, 1), torch.tensor(1.0))


@pytest.mark.parametrize("num_chunks", [1, 2, 4])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_gradients_equal_the_single_process_ones(
    ranks: RankPool, objective: str, world_size: int, num_chunks: int
) -> None:
    loss, expected = rank_jobs.gradients(objective, 1)
    results = ranks.run(world_size, rank_jobs.gradients, objective, num_chunks)
    for mean_loss, gradients in results:
        assert mean_loss == pytest.approx(loss, rel=1e-5)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)
