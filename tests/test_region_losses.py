"""Region-text contrast, grounding losses and matching: by hand, by brute force, over ranks."""

import itertools
import math

import numpy as np
import pytest
import region_jobs
import torch
from torch.nn import functional as F

from clipkit.losses import clip_loss
from clipkit.losses.grounding import (
    GIOU_COST,
    L1_COST,
    as_centres,
    as_corners,
    box_loss,
    corner_loss,
    match,
    paired_giou,
)
from clipkit.losses.kernels import TILE_SIZES
from clipkit.losses.region import region_loss
from clipkit.losses.text_similarity import similar_texts
from clipkit.regions.base import WITH_ALL_RANKS, Contrast


def _unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def test_the_loss_by_hand():
    features = texts = torch.eye(2)
    expected = math.log(1 + math.exp(-3.0))
    for directions in ("both", "region_to_text"):
        loss = region_loss(features, texts, torch.tensor(3.0), directions=directions)
        assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
@pytest.mark.parametrize("directions", ["both", "region_to_text"])
def test_the_loss_is_that_of_loops(directions, kernel):
    regions, texts = _unit(9, 5), _unit(9, 5, seed=1)
    texts[4] = texts[2]
    texts[7] = F.normalize(texts[2] + 0.1 * texts[1], dim=-1)
    terms = []
    for i in range(9):
        rows = [j for j in range(9) if j == i or float(texts[i] @ texts[j]) <= 0.9]
        assert len(rows) == (7 if i in (2, 4, 7) else 9)
        to_text = -torch.log_softmax(torch.stack([6 * regions[i] @ texts[j] for j in rows]), 0)[rows.index(i)]
        to_region = -torch.log_softmax(torch.stack([6 * regions[j] @ texts[i] for j in rows]), 0)[
            rows.index(i)
        ]
        terms.append((to_text + to_region) / 2 if directions == "both" else to_text)
    loss = region_loss(regions, texts, torch.tensor(6.0).double(), directions=directions, kernel=kernel)
    assert float(loss) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-9)


def test_the_filter_leaves_out_exactly_the_pairs_above_the_limit():
    angles = torch.tensor([0.0, math.acos(0.9) - 1e-3, math.acos(0.9) + 1e-3, math.pi / 2])
    texts = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = similar_texts(texts, texts, 0.9)
    cosines = texts @ texts.T
    assert torch.equal(found, cosines > 0.9)
    assert found[0].tolist() == [True, True, False, False]


def test_the_filter_is_the_same_in_parts(monkeypatch):
    rows, columns = _unit(9, 3), _unit(7, 3, seed=1)
    expected = similar_texts(rows, columns, 0.5)
    assert 0 < int(expected.sum()) < expected.numel()
    for most in (1, 20):  # a row at a time; two, and one at the end
        monkeypatch.setattr("clipkit.losses.text_similarity._PRODUCTS", most)
        assert torch.equal(similar_texts(rows, columns, 0.5), expected)
    assert similar_texts(rows[:0], columns, 0.5).shape == (0, 7)
    assert similar_texts(rows, columns[:0], 0.5).shape == (9, 0)


def test_tiles_compare_the_texts_of_a_tile_at_a_time(monkeypatch):
    shapes = []

    def watched(rows, columns, limit):
        shapes.append((len(rows), len(columns)))
        return similar_texts(rows, columns, limit)

    monkeypatch.setattr("clipkit.losses.pairs.similar_texts", watched)
    monkeypatch.setitem(TILE_SIZES, "tiled", 4)
    regions, texts = _unit(10, 5).requires_grad_(), _unit(10, 5, seed=1)
    region_loss(regions, texts, torch.tensor(6.0).double(), kernel="tiled").backward()
    assert max(max(shape) for shape in shapes) == 4
    assert sum(rows * columns for rows, columns in shapes) == 2 * 10 * 10  # forward and backward


def test_without_a_filter_it_is_the_loss_of_clip():
    regions, texts = _unit(6, 5), _unit(6, 5, seed=1)
    scale = torch.tensor(6.0).double()
    assert torch.equal(
        region_loss(regions, texts, scale, max_text_similarity=1.0), clip_loss(regions, texts, scale)
    )
    repeated = _unit(64, 50, seed=2).float()[torch.arange(128) % 64]
    assert int((repeated @ repeated.T > 1).sum())  # by rounding
    scale = torch.tensor(6.0)
    found = region_loss(repeated, repeated, scale, max_text_similarity=1.0)
    assert torch.equal(found, clip_loss(repeated, repeated, scale))


@pytest.mark.parametrize("limit", [math.nan, 1.5, -2.0])
def test_a_limit_that_is_no_cosine_is_refused(limit):
    with pytest.raises(ValueError, match=r"max_text_similarity must be in \[-1, 1\], got "):
        region_loss(_unit(2, 3), _unit(2, 3), torch.tensor(1.0), max_text_similarity=limit)


def test_a_backward_under_autocast_is_that_without():
    texts = F.normalize(_unit(8, 64)[torch.arange(200) % 8] + 0.36 * _unit(200, 64, seed=1), dim=1).float()
    halves = texts.bfloat16()  # in which some pairs are on the other side of the limit
    assert not torch.equal(similar_texts(texts, texts, 0.9), (halves @ halves.T) > 0.9)
    gradients = []
    for is_inside in (False, True):
        regions = texts.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = region_loss(regions, texts, torch.tensor(50.0), kernel="tiled")
            if is_inside:
                loss.backward()
        if not is_inside:
            loss.backward()
        gradients.append(regions.grad)
    assert torch.equal(*gradients)


def test_no_gradient_goes_through_the_filter():
    regions, texts = _unit(6, 5).requires_grad_(), _unit(6, 5, seed=1)
    texts[1] = texts[0]
    texts.requires_grad_()
    region_loss(regions, texts, torch.tensor(6.0).double()).backward()
    mask = (texts.detach() @ texts.detach().T > 0.9) & ~torch.eye(6, dtype=torch.bool)
    own = [part.detach().clone().requires_grad_() for part in (regions, texts)]
    logits = (6.0 * own[0] @ own[1].T).masked_fill(mask, -torch.inf)
    target = torch.arange(6)
    ((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2).backward()
    torch.testing.assert_close(regions.grad, own[0].grad)
    torch.testing.assert_close(texts.grad, own[1].grad)


@pytest.mark.parametrize("world_size", [1, 2])
def test_no_regions_anywhere_cost_nothing(ranks, world_size):
    for loss, gradients in ranks.run(world_size, region_jobs.loss_of_nothing):
        assert loss == 0
        assert gradients == [0, 0, 0]


@pytest.mark.parametrize("kind", ["prompter", "roi-align", "query-decoder"])
def test_gradients_over_ranks_are_those_of_one_process(ranks, kind):
    (expected,) = ranks.run(1, region_jobs.head_gradients, kind)
    assert all(np.abs(expected[name]).max() > 0 for name in ("tokens", "texts", "logit_scale"))
    in_a_ring = Contrast(kernel="tiled", exchange="ring")
    for world_size, contrast in ((2, WITH_ALL_RANKS), (4, WITH_ALL_RANKS), (4, in_a_ring)):
        for computed in ranks.run(world_size, region_jobs.head_gradients, kind, contrast):
            for name, value in expected.items():
                np.testing.assert_allclose(computed[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", ["prompter", "roi-align", "query-decoder"])
def test_in_a_local_scope_other_ranks_play_no_part(ranks, kind):
    expected = [region_jobs.losses_of_part(kind, rank, 4) for rank in range(4)]
    assert expected[2]["region_text"] == 0  # it has no regions
    for own, alone in zip(ranks.run(4, region_jobs.local_losses, kind), expected, strict=True):
        assert own == pytest.approx(alone, rel=1e-5)


def test_corner_loss_by_hand():
    predicted = torch.tensor([[0.1, 0.2, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]])
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.2, 0.0, 1.0, 1.0]])
    assert float(corner_loss(predicted, boxes)) == pytest.approx((0.4**2 + 0.2**2) / 8)


def test_box_loss_by_hand():
    # Half of a box: IoU 0.5 in an equal hull; centres differ by 0.1 and widths by 0.2.
    predicted = torch.tensor([[0.0, 0.0, 0.2, 0.4]])
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.4]])
    assert float(box_loss(predicted, boxes)) == pytest.approx(0.1 + 0.2 + 0.5, rel=1e-5)


def test_giou_is_torchvisions():
    from torchvision.ops import generalized_box_iou

    first, second = (torch.rand(30, 2, 2).sort(dim=1).values.flatten(1) for _ in range(2))
    expected = generalized_box_iou(first, second).diagonal()
    torch.testing.assert_close(paired_giou(first, second), expected, rtol=0, atol=1e-5)


def test_centres_and_corners_are_inverse():
    boxes = torch.rand(20, 2, 2).sort(dim=1).values.flatten(1)
    torch.testing.assert_close(as_corners(as_centres(boxes)), boxes)


def _cost(own, true):
    from torchvision.ops import generalized_box_iou

    giou = generalized_box_iou(own[None], true[None])[0, 0]
    return float(L1_COST * (as_centres(own) - as_centres(true)).abs().sum() - GIOU_COST * giou)


@pytest.mark.parametrize("num_boxes", [1, 3, 5])
def test_matching_is_the_best_of_all(num_boxes):
    generator = torch.Generator().manual_seed(num_boxes)
    own = torch.rand(3, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
    true = torch.rand(num_boxes, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
    found = match(own[None], true, torch.zeros(num_boxes, dtype=torch.int64))
    size = min(3, num_boxes)
    assert len(found.query) == size
    total = sum(_cost(own[q], true[b]) for q, b in zip(found.query, found.box, strict=True))
    best = min(
        sum(_cost(own[q], true[b]) for q, b in zip(queries, chosen, strict=True))
        for queries in itertools.permutations(range(3), size)
        for chosen in itertools.combinations(range(num_boxes), size)
    )
    assert total == pytest.approx(best, rel=1e-5)


def test_images_are_matched_each_by_itself():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]])
    predicted = torch.stack([boxes[:2].flip(0), boxes[:2], boxes[:2]])
    found = match(predicted, boxes, torch.tensor([0, 0, 2]))
    pairs = {(int(i), int(q)): int(b) for i, q, b in zip(found.image, found.query, found.box, strict=True)}
    assert pairs == {(0, 1): 0, (0, 0): 1, (2, 1): 2}


def test_predictions_that_are_not_finite_are_matched_last():
    """So that it is the loss that is not finite, which stops a run, and no error of the matching."""
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.8]])
    predicted = torch.stack([torch.full((4,), torch.nan), boxes[1], boxes[0]])[None]
    found = match(predicted, boxes, torch.tensor([0, 0]))
    assert dict(zip(found.box.tolist(), found.query.tolist(), strict=True)) == {0: 2, 1: 1}
    lost = match(predicted[:, :1], boxes[:1], torch.tensor([0]))
    assert lost.query.tolist() == [0]
    assert box_loss(predicted[0, lost.query], boxes[lost.box]).isnan()
