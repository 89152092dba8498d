"""Maps of phrases and features of masks from the tokens of a tower."""

from __future__ import annotations

import pytest
import torch
from small_models import RESNET, images_for, small_model
from torch.nn import functional as F

from clipkit.regions.dense import coverage, dense_map, encode_masks, pool_tokens
from clipkit.regions.roi import pool_boxes


def test_a_dense_map_is_the_cosine_of_each_token_with_each_phrase() -> None:
    model, phrases = small_model().eval(), ["a red star", "sky"]
    images = images_for(model, batch=3)
    found = dense_map(model, images, phrases)
    with torch.no_grad():
        seen = model.tokens(images)
        tokens, texts = model.project_tokens(seen.tokens[0]), model.encode_text(model.tokenizer(phrases))
    assert seen.grid is not None
    rows, columns = seen.grid
    assert found.shape == (3, 2, rows, columns)
    for image in range(3):
        for phrase in range(2):
            for row in range(rows):
                for column in range(columns):
                    token = tokens[image, row * columns + column]
                    expected = F.cosine_similarity(token, texts[phrase], dim=0)
                    torch.testing.assert_close(found[image, phrase, row, column], expected)


def test_coverage_by_hand() -> None:
    # Three columns on two cells: the middle one is half in either.
    mask = torch.tensor([[[0.0, 1.0, 1.0]]])
    torch.testing.assert_close(coverage(mask, (1, 2)), torch.tensor([[[1 / 3, 1.0]]]))
    # One pixel row on two cell rows.
    torch.testing.assert_close(coverage(mask, (2, 1)), torch.full((1, 2, 1), 2 / 3))


@pytest.mark.parametrize("size", [(4, 4), (32, 32), (5, 7), (2, 3)])
def test_coverage_keeps_the_mean_of_a_mask(size: tuple[int, int]) -> None:
    mask = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(coverage(mask, (4, 4)).mean(dim=(1, 2)), mask.mean(dim=(1, 2)))


def test_a_mask_of_one_cell_is_its_token_and_a_whole_one_is_the_mean() -> None:
    model = small_model().eval()
    images = images_for(model, batch=2)
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 8:16, 16:24] = True  # row 1, column 2 of a 4 x 4 grid
    masks[1] = True
    with torch.no_grad():
        seen = model.tokens(images)
        tokens = model.project_tokens(seen.tokens[0])
        found = encode_masks(model, seen, masks, torch.tensor([1, 0]))
    torch.testing.assert_close(found[0], F.normalize(tokens[1, 1 * 4 + 2], dim=0))
    torch.testing.assert_close(found[1], F.normalize(tokens[0].mean(dim=0), dim=0))


def test_a_mask_that_covers_cells_in_part_weighs_their_tokens() -> None:
    model = small_model().eval()
    mask = torch.zeros(1, 32, 32)
    mask[0, :8, :12] = 1  # one cell, and half of the next
    with torch.no_grad():
        seen = model.tokens(images_for(model, batch=1))
        tokens = model.project_tokens(seen.tokens[0])[0]
        found = encode_masks(model, seen, mask, torch.tensor([0]))
    torch.testing.assert_close(found[0], F.normalize(tokens[0] + tokens[1] / 2, dim=0))


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_mask_without_a_pixel_is_refused(weight: float) -> None:
    model = small_model().eval()
    with torch.no_grad():
        seen = model.tokens(images_for(model, batch=1))
    masks = torch.ones(2, 8, 8)
    masks[1] = weight
    with pytest.raises(ValueError, match="a pixel or more, mask 1 has not"):
        encode_masks(model, seen, masks, torch.tensor([0, 0]))


def test_boxes_are_pooled_from_the_projected_tokens() -> None:
    model = small_model().eval()
    boxes, index = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.1, 0.3, 0.9, 0.8]]), torch.tensor([1, 0])
    with torch.no_grad():
        seen = model.tokens(images_for(model, batch=2))
        found = pool_tokens(model, seen, boxes, index)
        expected = pool_boxes(model.project_tokens(seen.tokens[0]), (4, 4), boxes, index)
    torch.testing.assert_close(found, F.normalize(expected, dim=-1))


def test_a_tower_that_pools_with_attention_has_no_map() -> None:
    model = small_model(vision_cfg=RESNET).eval()
    with pytest.raises(ValueError, match="no projection into the joint space"):
        dense_map(model, images_for(model, batch=1), ["sky"])
