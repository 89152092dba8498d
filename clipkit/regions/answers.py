"""What a model with a region head says of parts of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipkit.regions.base import RegionBatch, RegionHead
from clipkit.towers import TowerOutput

if TYPE_CHECKING:
    from clipkit.dual_encoder import DualEncoder


def region_head_of(model: DualEncoder) -> RegionHead:
    """The region head of a model.

    Raises:
        ValueError: it has none.
    """
    if model.region_head is None:
        raise ValueError(
            "this model has no region head: train one with `clipkit train --regions.head prompter` "
            "(roi-align for the control) on shards whose json has regions"
        )
    return model.region_head


def training_rows(
    model: DualEncoder, seen: TowerOutput, boxes: Tensor, box_index: Tensor, phrase_features: Tensor
) -> dict[str, Tensor]:
    """What the losses of the region head need of a batch; see `RegionHead.forward`."""
    regions = RegionBatch(boxes=boxes, box_index=box_index, phrase_features=phrase_features)
    rows: dict[str, Tensor] = region_head_of(model)(seen.tokens[0], grid_of(seen), regions)
    return rows


def encode_regions(model: DualEncoder, seen: TowerOutput, boxes: Tensor, box_index: Tensor) -> Tensor:
    """Features of boxes in the joint space, from the tokens of one forward.

    Args:
        model: with a region head.
        seen: `model.tokens(images)`, of B images.
        boxes: (R, 4) xyxy fractions of the images as the tower sees them.
        box_index: (R,) int64 in [0, B): the image of each box.

    Returns:
        (R, D) fp32, L2-normalised.

    Raises:
        ValueError: the model has no region head, boxes that are not finite, or an index of no image.
    """
    if boxes.shape != (len(box_index), 4) or not boxes.isfinite().all():
        raise ValueError(
            f"boxes must be finite and (R, 4) with a box_index (R,), got {tuple(boxes.shape)} and "
            f"{tuple(box_index.shape)}"
        )
    _check_index(box_index, len(seen.tokens[0]))
    device = seen.tokens[0].device
    return region_head_of(model).encode_regions(
        seen.tokens[0], grid_of(seen), boxes.to(device), box_index.to(device)
    )


@torch.no_grad()
def ground(
    model: DualEncoder, images: Tensor, phrases: Sequence[str] | str, index: Tensor | None = None
) -> Tensor:
    """Where phrases are in images.

    Args:
        model: with a region head that grounds.
        images: (B, 3, H, W), as `DualEncoder.encode_image` takes them, or a single one, (3, H, W).
        phrases: P texts, or a single one.
        index: (P,) int64 in [0, B): the image of each phrase. None asks every phrase of every image, image by
            image, so that P becomes B times the number of phrases.

    Returns:
        (P, 4) xyxy fractions in [0, 1] of the images as the tower sees them.

    Raises:
        ValueError: the model has no region head, or one that cannot ground; an index of no image.
    """
    head = region_head_of(model)
    # A string is a sequence of texts too, of one letter each.
    phrases = [phrases] if isinstance(phrases, str) else phrases
    images = images[None] if images.ndim == 3 else images
    seen = model.tokens(images)
    device = seen.tokens[0].device
    phrase_features = model.encode_text(model.tokenizer(list(phrases)), normalize=True)
    if index is None:
        index = torch.arange(len(images)).repeat_interleave(len(phrases))
        phrase_features = phrase_features.repeat(len(images), 1)
    _check_index(index, len(images))
    return head.ground(seen.tokens[0], grid_of(seen), phrase_features, index.to(device))


def _check_index(index: Tensor, num_images: int) -> None:
    """Heads may read foreign memory for an index of no image."""
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= num_images):
        given = f"{int(index.min())} to {int(index.max())}"
        raise ValueError(f"the image of a box must be in [0, {num_images}), got {given}")


@torch.no_grad()
def why_not_ground(model: DualEncoder) -> str | None:
    """Why a model cannot say where phrases are, None where it can; tried on a blank image."""
    device = model.image_mean.device
    seen = model.tokens(torch.zeros(1, 3, *model.image_size, device=device))
    phrase = torch.zeros(1, model.embed_dim, device=device)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    try:
        region_head_of(model).ground(seen.tokens[0], grid_of(seen), phrase, index)
    except ValueError as error:
        return str(error)
    return None


def grid_of(seen: TowerOutput) -> tuple[int, int]:
    """(rows, columns) of the tokens of images."""
    assert seen.grid is not None  # texts alone have none
    return seen.grid
