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
    device = model.image_mean.device
    seen = model.tokens(model.preprocess()(picture)[None].to(device))
    features = model.encode_text(model.tokenizer(list(phrases)), normalize=True).float()
    boxes: list[tuple[float, float, float, float] | None] = [None] * len(phrases)
    scores: list[float | None] = [None] * len(phrases)
    if with_boxes:
        index = torch.zeros(len(phrases), dtype=torch.int64, device=device)
        found = region_head_of(model).ground(seen.tokens[0], grid_of(seen), features, index)
        fits = (model.encode_regions(seen, found, index) * features).sum(dim=1)
        window = eval_window(model.preprocess_config, (picture.height, picture.width))
        corners = window.invert(found.float().cpu()).clamp(0, 1).tolist()
        boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in corners]
        scores = list(fits.tolist())
    heats = phrase_maps(model, seen, features)[0].cpu() if with_heat else [None] * len(phrases)
    return [
        PhraseInPicture(phrase=phrase, box=box, score=score, heat=heat)
        for phrase, box, score, heat in zip(phrases, boxes, scores, heats, strict=True)
    ]


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
