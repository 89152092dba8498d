"""What the tokens of an image tower say of each place, without a region head.

Tokens are put into the joint space by the map that pooled features go through, so that a place can be
compared with a phrase, and the mean over a box or a mask is a feature of it. Only the pooled feature was
trained to lie there: these answers are a control for region heads, and a start for open-vocabulary
segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.regions.answers import grid_of
from clipkit.regions.roi import pool_boxes
from clipkit.towers import TowerOutput

if TYPE_CHECKING:
    from clipkit.dual_encoder import DualEncoder


@torch.no_grad()
def dense_map(model: DualEncoder, images: Tensor, phrases: Sequence[str]) -> Tensor:
    """How well each place of each image fits each phrase.

    Args:
        model: whose image tower has a map of each token into the joint space.
        images: (B, 3, H, W), as `DualEncoder.encode_image` takes them.
        phrases: P texts.

    Returns:
        (B, P, h, w) fp32 cosines on the grid of the tower's tokens.

    Raises:
        ValueError: the tower has no such map, see `clipkit.towers.project_tokens`.
    """
    seen = model.tokens(images)
    texts = model.encode_text(model.tokenizer(list(phrases)), normalize=True).float()
    return phrase_maps(model, seen, texts)


def phrase_maps(model: DualEncoder, seen: TowerOutput, phrase_features: Tensor) -> Tensor:
    """`dense_map` from the tokens of one forward: (P, D) unit vectors -> (B, P, h, w) fp32 cosines."""
    places = F.normalize(model.project_tokens(seen.tokens[0]).float(), dim=-1)
    cosines = phrase_features.to(places) @ places.transpose(1, 2)
    return cosines.reshape(*cosines.shape[:2], *grid_of(seen))


def pool_tokens(model: DualEncoder, seen: TowerOutput, boxes: Tensor, box_index: Tensor) -> Tensor:
    """Features of boxes by RoIAlign on the projected tokens: the control that needs no training and no crops.

    Args:
        model: whose image tower has a map of each token into the joint space.
        seen: `model.tokens(images)`, of B images.
        boxes: (R, 4) xyxy fractions of the images as the tower sees them.
        box_index: (R,) int64 in [0, B).

    Returns:
        (R, D) fp32, L2-normalised.

    Raises:
        ValueError: the tower has no such map.
    """
    tokens = model.project_tokens(seen.tokens[0])
    pooled = pool_boxes(tokens, grid_of(seen), boxes.to(tokens.device), box_index.to(tokens.device))
    return F.normalize(pooled, dim=-1)


def encode_masks(model: DualEncoder, seen: TowerOutput, masks: Tensor, mask_index: Tensor) -> Tensor:
    """Features of masks: the mean of the projected tokens, each weighted by the share of it that is inside.

    Args:
        model: whose image tower has a map of each token into the joint space.
        seen: `model.tokens(images)`, of B images.
        masks: (M, H, W) bool, or weights >= 0, over the images as the tower sees them, of any H and W.
        mask_index: (M,) int64 in [0, B): the image of each mask.

    Returns:
        (M, D) fp32, L2-normalised.

    Raises:
        ValueError: a mask is empty or has a negative weight, or the tower has no such map.
    """
    tokens = model.project_tokens(seen.tokens[0]).float()
    weights = coverage(masks.to(tokens.device), grid_of(seen)).flatten(1)
    usable = (masks.flatten(1) >= 0).all(dim=1).to(tokens.device) & (weights.sum(dim=1) > 0)
    if not bool(usable.all()):
        raise ValueError(
            f"a mask needs weights >= 0 and a pixel or more, mask {int((~usable).nonzero()[0])} has not"
        )
    weights = weights / weights.sum(dim=1, keepdim=True)
    pooled = torch.einsum("mn,mnd->md", weights, tokens[mask_index.to(tokens.device)])
    return F.normalize(pooled, dim=-1)


def coverage(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean of masks in each cell of a grid: (M, H, W) -> (M, h, w) fp32, exact for any sizes."""
    rows, columns = (_overlaps(*sizes, masks.device) for sizes in zip(masks.shape[1:], grid, strict=True))
    return rows @ masks.float() @ columns.T


def _overlaps(num_pixels: int, num_cells: int, device: torch.device) -> Tensor:
    """(cells, pixels): the share of each cell of a line that each pixel of the same line takes up."""
    pixels = torch.arange(num_pixels + 1, dtype=torch.float64, device=device) / num_pixels
    cells = torch.arange(num_cells + 1, dtype=torch.float64, device=device) / num_cells
    ends = torch.minimum(cells[1:, None], pixels[None, 1:])
    starts = torch.maximum(cells[:-1, None], pixels[None, :-1])
    return ((ends - starts).clamp(min=0) * num_cells).float()
