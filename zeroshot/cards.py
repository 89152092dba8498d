"""Explanations as pictures: an image beside its best class and the runner-up, a bar for each descriptor."""

from __future__ import annotations

import bisect
import functools
import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clipkit.data.problems import SampleError
from clipkit.data.tables import read_file
from clipkit.images import ImageError, decode_image
from clipkit.whole_file import whole_file

from .answers import Answer
from .scoring import ClassExplanation

WIDTH = 1200
"""Of every card in pixels; the height follows from what is on it."""

MAX_BARS = 12
"""Descriptors shown of a class; of more, the best."""

_MARGIN, _GAP = 36, 44
_PICTURE = 380
_PANEL = _MARGIN + _PICTURE + _GAP
_TEXT_WIDTH, _VALUE_WIDTH = 320, 72
_BARS = _PANEL + _TEXT_WIDTH + 18
_BARS_WIDTH = WIDTH - _MARGIN - _VALUE_WIDTH - _BARS
_LINE, _BAR = 24, 16
_ROW_GAP, _HEAD, _SECTION_GAP, _AXIS = 9, 66, 26, 52

_PAGE, _INK, _SOFT, _RULE = "#ffffff", "#1c2733", "#5d6b7a", "#dfe4ea"
_COLOURS = (("#1f6feb", "predicted"), ("#c2410c", "runner-up"))
_SMALL, _NORMAL, _LARGE = 15, 18, 26

# More fit in no place.
_MAX_CHARACTERS = 400

_STEPS = (0.02, 0.05, 0.1, 0.2, 0.5)
_MAX_TICKS = 6
# Where the built-in font lacks a character of a text; whichever the system has first.
_WIDER_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf")

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def card_name(path: str) -> str:
    """The file name of a picture's card: its own, and a hash of its path, so that no two are alike."""
    stem = re.sub(r"[^\w.-]+", "_", Path(path).stem)[:60]
    return f"{stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}.png"


def write_card(folder: Path, answer: Answer) -> Path:
    """Write the card of an answer into a folder, by way of a temporary name.

    Args:
        folder: exists.
        answer: with explanations; its path names the picture.

    Returns:
        The file.

    Raises:
        OSError: the picture is gone, or the card cannot be written.
    """
    try:
        picture = decode_image(read_file(Path(answer.path)))
    except (SampleError, ImageError) as error:
        raise OSError(f"no card for {answer.path}: {error.reason}") from None
    path = folder / card_name(answer.path)
    with whole_file(path) as temporary:
        draw_card(answer, picture).save(temporary, format="PNG")
    return path


def draw_card(answer: Answer, picture: Image.Image) -> Image.Image:
    """The card of an answer.

    Bars begin at zero, and one scale holds for all of a card, so that their lengths can be compared. The thin
    line through the bars of a class is its score.

    Args:
        answer: with the explanation of a class or more; those of the first two are shown.
        picture: what it is about.

    Raises:
        ValueError: the answer has no explanation.
    """
    if not answer.explanations:
        raise ValueError(f"the answer to {answer.path} has no explanation to draw")
    shown = answer.explanations[: len(_COLOURS)]
    sections = [_Section.of(reason, answer) for reason in shown]
    scale = _Scale.of([value for section in sections for value in section.values])
    name = _wrapped(Path(answer.path).name, _SMALL, _PICTURE, max_lines=2)
    left = _fitted(picture)
    panel = sum(section.height for section in sections) + _SECTION_GAP * (len(sections) - 1) + _AXIS
    height = 2 * _MARGIN + max(panel, left.height + 12 + len(name) * _LINE)
    card = Image.new("RGB", (WIDTH, height), _PAGE)
    draw = ImageDraw.Draw(card)
    card.paste(left, (_MARGIN + (_PICTURE - left.width) // 2, _MARGIN))
    for number, line in enumerate(name):
        y = _MARGIN + left.height + 12 + number * _LINE
        _text(draw, (_MARGIN + _PICTURE // 2, y), line, _SMALL, _SOFT, anchor="ma")
    top = _MARGIN
    for section, (colour, role) in zip(sections, _COLOURS, strict=False):
        section.draw(draw, top, scale, colour, role)
        top += section.height + _SECTION_GAP
    scale.draw_labels(draw, _MARGIN + panel - _AXIS)
    return card


@dataclass(frozen=True, kw_only=True)
class _Row:
    lines: tuple[str, ...]
    cosine: float

    @property
    def height(self) -> int:
        return len(self.lines) * _LINE


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A class and its bars."""

    name: tuple[str, ...]
    score: float
    note: str
    rows: tuple[_Row, ...]
    more: str

    @classmethod
    def of(cls, reason: ClassExplanation, answer: Answer) -> _Section:
        percents = [
            f"{100 * one.probability:.1f} %"
            for one in answer.predictions
            if one.class_name == reason.class_name
        ]
        rest = reason.descriptors[MAX_BARS:]
        return cls(
            name=_wrapped(reason.class_name, _LARGE, WIDTH - _MARGIN - _PANEL - 200, max_lines=1),
            score=reason.score,
            note="   ".join([f"score {reason.score:.3f}", *percents]),
            rows=tuple(
                _Row(lines=_wrapped(text, _NORMAL, _TEXT_WIDTH, max_lines=2), cosine=cosine)
                for text, cosine in reason.descriptors[:MAX_BARS]
            ),
            more=f"and {len(rest)} more, down to {rest[-1][1]:.3f}" if rest else "",
        )

    @property
    def values(self) -> list[float]:
        return [self.score, *(row.cosine for row in self.rows)]

    @property
    def height(self) -> int:
        rows = sum(row.height + _ROW_GAP for row in self.rows)
        return _HEAD + rows + (_LINE if self.more else 0)

    def draw(self, draw: ImageDraw.ImageDraw, top: int, scale: _Scale, colour: str, role: str) -> None:
        right = WIDTH - _MARGIN
        _text(draw, (_PANEL, top), role, _SMALL, _SOFT)
        _text(draw, (_PANEL, top + 20), self.name[0], _LARGE, colour)
        _text(draw, (right, top + 28), self.note, _NORMAL, _INK, anchor="ra")
        y = top + _HEAD
        scale.draw_grid(draw, y - 4, y + sum(row.height + _ROW_GAP for row in self.rows) - 4)
        for row in self.rows:
            middle = y + row.height // 2
            for number, line in enumerate(row.lines):
                _text(draw, (_PANEL + _TEXT_WIDTH, y + number * _LINE), line, _NORMAL, _INK, anchor="ra")
            ends = sorted((scale.x(0.0), scale.x(row.cosine)))
            draw.rectangle((ends[0], middle - _BAR // 2, ends[1], middle + _BAR // 2), fill=colour)
            _text(draw, (right, middle), f"{row.cosine:.3f}", _NORMAL, _INK, anchor="rm")
            y += row.height + _ROW_GAP
        x = scale.x(self.score)
        draw.line((x, top + _HEAD - 4, x, y - _ROW_GAP + 4), fill=_INK, width=2)
        if self.more:
            _text(draw, (_PANEL + _TEXT_WIDTH, y), self.more, _SMALL, _SOFT, anchor="ra")


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """From cosines to pixels; zero is always on it."""

    low: float
    high: float
    step: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Scale:
        low, high = min(0.0, *values), max(0.0, *values)
        step = next((step for step in _STEPS if (high - low) / step <= _MAX_TICKS), _STEPS[-1])
        return cls(low=step * math.floor(low / step), high=step * max(1, math.ceil(high / step)), step=step)

    @property
    def ticks(self) -> Iterator[float]:
        for number in range(round(self.low / self.step), round(self.high / self.step) + 1):
            yield number * self.step

    def x(self, value: float) -> float:
        return _BARS + (value - self.low) / (self.high - self.low) * _BARS_WIDTH

    def draw_grid(self, draw: ImageDraw.ImageDraw, top: int, bottom: int) -> None:
        for tick in self.ticks:
            x = self.x(tick)
            draw.line((x, top, x, bottom), fill=_SOFT if tick == 0 else _RULE, width=1)

    def draw_labels(self, draw: ImageDraw.ImageDraw, top: int) -> None:
        for tick in self.ticks:
            _text(draw, (self.x(tick), top + 4), f"{tick:.3g}", _SMALL, _SOFT, anchor="ma")
        caption = "cosine of the picture with each descriptor; the line is the score of the class"
        _text(draw, (WIDTH - _MARGIN, top + 28), caption, _SMALL, _SOFT, anchor="ra")


def _fitted(picture: Image.Image) -> Image.Image:
    """The picture as large as its place allows; small ones keep their pixels visible."""
    ratio = _PICTURE / max(picture.size)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    resample = Image.Resampling.NEAREST if ratio > 2 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize(size, resample)


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    colour: str,
    *,
    anchor: str = "la",
) -> None:
    draw.text(at, text, fill=colour, font=_font(size, text), anchor=anchor)


def _wrapped(text: str, size: int, width: int, *, max_lines: int) -> tuple[str, ...]:
    """A text in lines of at most `width` pixels; what is too much is cut, with an ellipsis."""
    # Line breaks, control characters and bytes that are no UTF-8 cannot be drawn.
    words = "".join(c if c.isprintable() else " " for c in text[:_MAX_CHARACTERS]).split() or ["?"]
    font = _font(size, " ".join(words))
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = lines[:max_lines]
    if len(lines) > max_lines:
        kept[-1] += " …"
    return tuple(_cut(line, font, width) for line in kept)


def _cut(line: str, font: _Font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    text = line.removesuffix(" …")
    lengths = range(len(text))
    first_too_long = bisect.bisect_right(
        lengths, width, key=lambda n: math.ceil(font.getlength(f"{text[:n]}…"))
    )
    return f"{text[: max(0, first_too_long - 1)].rstrip()}…"


@functools.lru_cache(maxsize=4096)
def _font(size: int, text: str) -> _Font:
    """Pillow's own font, or that of the system's which has most of what it lacks of a text."""
    best = ImageFont.load_default(size)
    fewest = _num_lacking(best, text)
    for name in _WIDER_FONTS if fewest else ():
        try:
            font = ImageFont.truetype(name, size)
        except OSError:
            continue
        lacking = _num_lacking(font, text)
        if lacking < fewest:
            best, fewest = font, lacking
    return best


def _num_lacking(font: _Font, text: str) -> int:
    """How many characters of a text a font draws as its mark for missing ones."""
    mark = bytes(font.getmask("\uffff"))
    return sum(not c.isspace() and bytes(font.getmask(c)) == mark for c in set(text))
