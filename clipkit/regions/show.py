"""Pictures with the boxes of phrases, as one image file or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from clipkit.page import Page
from clipkit.regions.look import PhraseInPicture, draw_heat
from clipkit.regions.pictures import draw_regions, sheet
from clipkit.whole_file import whole_file
from clipkit.windows import Window

SUFFIXES = (".png", ".html")
_SIDE = 640


@dataclass(frozen=True, kw_only=True)
class LookedAt:
    """A picture in which phrases were looked for."""

    path: str
    picture: Image.Image
    window: Window
    """What the tower saw of it."""
    found: tuple[PhraseInPicture, ...]

    def with_boxes(self) -> Image.Image:
        """The picture with the box of each phrase, and its score."""
        boxes = [one.box for one in self.found if one.box is not None]
        texts = [label(one) for one in self.found if one.box is not None]
        return draw_regions(self.picture, torch.tensor(boxes).reshape(-1, 4), texts, longest_side=_SIDE)

    def heats(self) -> list[Image.Image]:
        """A map of each phrase, with its box where there is one."""
        drawn = []
        for one in self.found:
            if one.heat is not None:
                heat = draw_heat(self.picture, one.heat, self.window)
                box = (0.0, 0.0, 1.0, 1.0) if one.box is None else one.box
                drawn.append(draw_regions(heat, torch.tensor([box]), [label(one)], longest_side=_SIDE))
        return drawn


def check_out(path: Path) -> None:
    """Refuse, before the work, a path that `write_shown` cannot write.

    Raises:
        OSError: it is a folder, or its folder is not there.
        ValueError: it ends otherwise.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out must end with {' or '.join(SUFFIXES)}, got {path}")
    if path.is_dir():
        raise IsADirectoryError(f"--out must be a file, {path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out {path} is in a folder that is not there: make {path.parent} first")


def label(one: PhraseInPicture) -> str:
    """`red star 0.31`."""
    return one.phrase if one.score is None else f"{one.phrase} {one.score:.2f}"


def write_shown(path: Path, looked_at: Sequence[LookedAt]) -> None:
    """Write a page, or an image with a row for each picture: its boxes, then its maps.

    Args:
        path: that `check_out` takes.
        looked_at: one picture or more.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    if path.suffix.lower() == ".html":
        _page(looked_at).write(path)
        return
    with whole_file(path) as temporary:
        sheet([[one.with_boxes(), *one.heats()] for one in looked_at]).save(temporary, format="PNG")


def _page(looked_at: Sequence[LookedAt]) -> Page:
    page = Page("Regions", "Boxes that the model gives for phrases; a score is the cosine of box and phrase.")
    for one in looked_at:
        page.section(one.path)
        page.picture(one.with_boxes(), "what was looked for")
        rows = [
            (
                said.phrase,
                "" if said.box is None else ", ".join(f"{edge:.3f}" for edge in said.box),
                "" if said.score is None else f"{said.score:.3f}",
            )
            for said in one.found
        ]
        page.table(("phrase", "box (x0, y0, x1, y1)", "score"), rows)
        for heat, said in zip(
            one.heats(), (said for said in one.found if said.heat is not None), strict=True
        ):
            assert said.heat is not None
            low, high = float(said.heat.min()), float(said.heat.max())
            page.picture(heat, f"{said.phrase}: cosines of the tower's tokens from {low:.3f} to {high:.3f}")
    return page
