"""Where phrases are in a picture: a box of each, how well it fits, and a map of all places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipkit.regions.answers import grid_of, region_head_of
from clipkit.regions.dense import phrase_maps
from clipkit.regions.places import token_centres
from clipkit.towers import TowerOutput
from clipkit.windows import Window, eval_window

if TYPE_CHECKING:
    from clipkit.dual_encoder import DualEncoder

_HOT = (255, 64, 0)
_STRENGTH = 0.75
"""Of the colour where a phrase fits best."""


@dataclass(frozen=True, kw_only=True)
class PhraseInPicture:
    """What a model says of a phrase and a picture."""

    phrase: str
    box: tuple[float, float, float, float] | None
    """x0, y0, x1, y1 as fractions of the whole picture; None without a head."""
    score: float | None
    """Cosine of the features of the box with the phrase."""
    heat: Tensor | None
    """(h, w) cosines of the tower's tokens with the phrase, over what the tower sees of the picture."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A picture and phrases after the towers."""

    tokens: TowerOutput
    """Of the picture alone, B = 1."""
    window: Window
    """What the tower saw of it."""
    phrase_features: Tensor
    """(P, D) fp32, L2-normalised."""


@torch.no_grad()
def see(model: DualEncoder, picture: Image.Image, phrases: Sequence[str]) -> Seen:
    """Encode a picture and P phrases; arguments as of `look_for`."""
    device = model.image_mean.device
    return Seen(
        tokens=model.tokens(model.preprocess()(picture)[None].to(device)),
        window=eval_window(model.preprocess_config, (picture.height, picture.width)),
        phrase_features=model.encode_text(model.tokenizer(list(phrases)), normalize=True).float(),
    )


@torch.no_grad()
def ground_seen(model: DualEncoder, seen: Seen) -> tuple[Tensor, Tensor]:
    """Where the region head finds each phrase, and how well each of these boxes fits every phrase.

    Returns:
        (P, 4) fp32, xyxy fractions of the whole picture, perhaps beyond its edges; (P, P) fp32, cosines of
        box i with phrase j. Both on the CPU.

    Raises:
        ValueError: the model has no region head that grounds.
    """
    tokens, features = seen.tokens, seen.phrase_features
    index = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    found = region_head_of(model).ground(tokens.tokens[0], grid_of(tokens), features, index)
    cosines = model.encode_regions(tokens, found, index) @ features.T
    return seen.window.invert(found.float().cpu()), cosines.cpu()


@torch.no_grad()
def look_for(
    model: DualEncoder,
    picture: Image.Image,
    phrases: Sequence[str],
    *,
    with_boxes: bool = True,
    with_heat: bool = False,
) -> list[PhraseInPicture]:
    """Look for phrases in a picture.

    Args:
        model: in evaluation mode.
        picture: of any size; its boxes come back as fractions of it.
        phrases: P texts.
        with_boxes: ask the region head for a box of each phrase.
        with_heat: compare each place with each phrase.

    Raises:
        ValueError: the model has no region head that grounds, or no map of tokens into the joint space.
    """
    seen = see(model, picture, phrases)
    boxes: list[tuple[float, float, float, float] | None] = [None] * len(phrases)
    scores: list[float | None] = [None] * len(phrases)
    if with_boxes:
        found, cosines = ground_seen(model, seen)
        boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in found.clamp(0, 1).tolist()]
        scores = list(cosines.diagonal().tolist())
    maps = phrase_maps(model, seen.tokens, seen.phrase_features)[0].cpu() if with_heat else None
    heats = [None] * len(phrases) if maps is None else maps
    return [
        PhraseInPicture(phrase=phrase, box=box, score=score, heat=heat)
        for phrase, box, score, heat in zip(phrases, boxes, scores, heats, strict=True)
    ]


def hottest(heat: Tensor, window: Window) -> tuple[tuple[float, float], float]:
    """Where a phrase fits best, and how well.

    Args:
        heat: (h, w) cosines.
        window: what the heat is over.

    Returns:
        x and y of the centre of the best token as fractions of the whole picture, and its cosine. A token in
        the border of a padded picture counts as the nearest point of the picture.
    """
    best = int(heat.argmax())
    rows, columns = heat.shape
    centre = token_centres((rows, columns), heat.device)[best]
    x, y, _, _ = window.invert(centre.repeat(2)[None]).clamp(0, 1)[0].tolist()
    return (x, y), float(heat.flatten()[best])


def draw_heat(picture: Image.Image, heat: Tensor, window: Window) -> Image.Image:
    """A picture in grey, the redder the better a place fits; what the tower does not see stays grey.

    Args:
        picture: RGB.
        heat: (h, w); its lowest value gives no colour, and its highest all.
        window: what the heat is over.
    """
    spread = float(heat.max() - heat.min())
    strengths = (heat - heat.min()) / spread if spread > 0 else torch.zeros_like(heat)
    left, right = (round(edge * picture.width) for edge in (window.left, window.right))
    top, bottom = (round(edge * picture.height) for edge in (window.top, window.bottom))
    small = Image.fromarray((255 * _STRENGTH * strengths.numpy()).round().astype(np.uint8))
    alpha = Image.new("L", picture.size, 0)
    alpha.paste(small.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    grey = picture.convert("L").convert("RGB")
    return Image.composite(Image.new("RGB", picture.size, _HOT), grey, alpha)
