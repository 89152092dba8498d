"""A report as one HTML file: text, tables, line charts, heat maps and rows of pictures, all inside it."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5d6b7a; --line: #dfe4ea; --page: #ffffff;
        --accent: #1f6feb; --second: #c2410c; --good: #15803d; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa7b4; --line: #2f3944; --page: #10161d; --accent: #6cb0ff;
          --second: #fb923c; --good: #4ade80; --bad: #f87171; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page);
       max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
p { max-width: 46rem; } .soft { color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
.figures { display: flex; flex-wrap: wrap; gap: .9rem; margin: 1.2rem 0; }
.figure { border: 1px solid var(--line); border-radius: .6rem; padding: .7rem 1.1rem; }
.figure b { display: block; font-size: 1.6rem; line-height: 1.2; }
.charts { display: flex; flex-wrap: wrap; gap: 1.2rem; }
svg text { fill: var(--soft); font-size: 11px; } svg .grid { stroke: var(--line); }
svg .curve { fill: none; stroke-width: 2; }
.heat td { width: 3.2rem; height: 2.1rem; padding: 0; text-align: center; border: 2px solid var(--page); }
.heat td.marked { outline: 2px solid var(--second); outline-offset: -3px; }
.heat th { text-align: center; border: 0; }
.row { display: flex; gap: .6rem; align-items: center; margin: .5rem 0; }
.row .query { width: 17rem; } .row figure { margin: 0; text-align: center; }
.row img { width: 84px; height: 84px; image-rendering: pixelated; border-radius: .35rem;
           border: 3px solid transparent; display: block; }
.row figcaption { font-size: .75rem; color: var(--soft); }
.row .right img { border-color: var(--good); } .row .wrong img { border-color: var(--line); }
.picture { max-width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }
pre { background: color-mix(in srgb, var(--line) 40%, transparent); padding: .8rem 1rem;
      border-radius: .5rem; overflow-x: auto; font-size: .85rem; }
"""
_COLOURS = ("var(--accent)", "var(--second)", "var(--good)")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A picture in a row."""

    image: Image.Image
    label: str
    is_right: bool


class Page:
    """Collects the parts of a report in the order they are added. Texts are escaped."""

    def __init__(self, title: str, lead: str) -> None:
        self._title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="soft">{html.escape(lead)}</p>']

    def section(self, title: str, text: str = "") -> None:
        """A heading, and a paragraph under it."""
        self._parts.append(f"<h2>{html.escape(title)}</h2>")
        if text:
            self._parts.append(f"<p>{html.escape(text)}</p>")

    def subsection(self, title: str, text: str = "") -> None:
        """A smaller heading, and a line under it."""
        self._parts.append(f"<h3>{html.escape(title)}</h3>")
        if text:
            self.note(text)

    def note(self, text: str) -> None:
        """A paragraph in softer ink."""
        self._parts.append(f'<p class="soft">{html.escape(text)}</p>')

    def figures(self, figures: Mapping[str, str]) -> None:
        """Large numbers with what they mean."""
        cards = (
            f'<div class="figure"><b>{html.escape(value)}</b>{html.escape(name)}</div>'
            for name, value in figures.items()
        )
        self._parts.append(f'<div class="figures">{"".join(cards)}</div>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column is text, the others numbers."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        self._parts.append(f"<table><tr>{head}</tr>{body}</table>")

    def code(self, text: str) -> None:
        """Commands or settings, as they are."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def charts(self, charts: Sequence[str]) -> None:
        """Line charts beside each other, see `line_chart`."""
        self._parts.append(f'<div class="charts">{"".join(charts)}</div>')

    def heat_table(
        self,
        values: Sequence[Sequence[float]],
        row_names: Sequence[str],
        column_names: Sequence[str],
        marked: set[tuple[int, int]],
    ) -> None:
        """Fractions as shaded cells; cells in `marked` (row, column) are outlined."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in column_names)
        lines = []
        for row, name in enumerate(row_names):
            cells = "".join(
                _heat_cell(value, (row, column) in marked) for column, value in enumerate(values[row])
            )
            lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
        self._parts.append(f'<table class="heat"><tr><th></th>{head}</tr>{"".join(lines)}</table>')

    def picture(self, image: Image.Image, description: str) -> None:
        """One picture."""
        self._parts.append(
            f'<img class="picture" src="{_data_url(image)}" alt="{html.escape(description)}">'
            f'<p class="soft">{html.escape(description)}</p>'
        )

    def row(self, query: str, hits: Sequence[Hit]) -> None:
        """A query and the pictures found for it; right ones have a green border."""
        figures = "".join(
            f'<figure class="{"right" if hit.is_right else "wrong"}"><img src="{_data_url(hit.image)}" '
            f'alt="{html.escape(hit.label)}"><figcaption>{html.escape(hit.label)}</figcaption></figure>'
            for hit in hits
        )
        self._parts.append(f'<div class="row"><div class="query">{html.escape(query)}</div>{figures}</div>')

    def write(self, path: Path) -> None:
        """Write the page, by way of a temporary name."""
        content = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(self._title)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
            f"<body>{''.join(self._parts)}</body></html>"
        )
        temporary = path.with_suffix(".tmp")
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)


def line_chart(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str) -> str:
    """A small line chart as SVG, y from zero.

    Args:
        title: above the chart.
        curves: by name, points (x, y) with rising x >= 0 and y >= 0.
        x_label: below the chart.

    Returns:
        Markup for `Page.charts`.
    """
    width, height, left, bottom, top, right = 440, 260, 46, 36, 30, 12
    points = [point for curve in curves.values() for point in curve]
    x_max = max((x for x, _ in points), default=1) or 1
    y_step = _round_step(max((y for _, y in points), default=1) or 1)
    y_max = y_step * math.ceil(max((y for _, y in points), default=1) / y_step) or y_step

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + x / x_max * (width - left - right)
        return across, top + (1 - y / y_max) * (height - top - bottom)

    parts = [f'<text x="{left}" y="16" style="font-weight:600">{html.escape(title)}</text>']
    for number in range(round(y_max / y_step) + 1):
        _, y = place(0, number * y_step)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{number * y_step:g}</text>')
    for share in (0, 0.5, 1):
        x, _ = place(share * x_max, 0)
        anchor = {0: "start", 0.5: "middle", 1: "end"}[share]
        parts.append(
            f'<text x="{x:.1f}" y="{height - bottom + 16}" text-anchor="{anchor}">{share * x_max:,.0f}</text>'
        )
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 4}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
    )
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline class="curve" style="stroke:{colour}" points="{line}"/>')
        if len(curves) > 1:
            x = left + 10 + 130 * number
            parts.append(f'<text x="{x}" y="{top + 10}" style="fill:{colour}">{html.escape(name)}</text>')
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(parts)}</svg>'


def interval_chart(
    title: str, bars: Sequence[tuple[str, float, float, float]], *, mark: float | None = None
) -> str:
    """Shares with their intervals, one below the other on a scale from 0 to 100 %, as SVG.

    Args:
        title: read out in place of the chart.
        bars: name, share, and the ends of its interval, all in [0, 1].
        mark: a share to compare with, drawn as a line across.

    Returns:
        Markup for `Page.charts`.
    """
    width, left, right, top, step = 640, 230, 60, 8, 26
    height = top + step * len(bars) + 22

    def place(share: float) -> float:
        return left + share * (width - left - right)

    parts = []
    for tenth in range(0, 11, 2):
        x = place(tenth / 10)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 20}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 5}" text-anchor="middle">{10 * tenth} %</text>')
    if mark is not None:
        x = place(mark)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 20}" stroke="{_COLOURS[1]}" '
            'stroke-dasharray="4 3"><title>chance</title></line>'
        )
    for number, (name, share, low, high) in enumerate(bars):
        y = top + step * (number + 0.5)
        label = name if len(name) <= 34 else f"{name[:33]}…"
        parts.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{html.escape(label)}</text>')
        parts.append(
            f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{y}" y2="{y}" '
            f'stroke="{_COLOURS[0]}" stroke-width="3"/>'
            f'<circle cx="{place(share):.1f}" cy="{y}" r="5" fill="{_COLOURS[0]}"/>'
            f'<text x="{width - right + 8}" y="{y + 4:.1f}">{share:.1%}</text>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _round_step(largest: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides the axis into three to seven parts."""
    rough = largest / 5
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough)


def _heat_cell(value: float, is_marked: bool) -> str:
    if math.isnan(value):
        return "<td></td>"
    shade = f"background:color-mix(in srgb, var(--accent) {value * 75:.0f}%, var(--page))"
    mark = ' class="marked"' if is_marked else ""
    return f'<td{mark} style="{shade}">{value:.0%}</td>'


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
