"""A report as one HTML file: text, tables, charts, heat maps and rows of pictures, all inside it."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clipkit.whole_file import whole_file

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
.row img { max-width: 168px; max-height: 168px; border-radius: .35rem;
           border: 3px solid transparent; display: block; }
.row img.small { width: 84px; height: 84px; }
.small { image-rendering: pixelated; }
.row figcaption { font-size: .75rem; color: var(--soft); }
.row .right img { border-color: var(--good); } .row .wrong img { border-color: var(--line); }
.picture { max-width: 100%; border: 1px solid var(--line); }
pre { background: color-mix(in srgb, var(--line) 40%, transparent); padding: .8rem 1rem;
      border-radius: .5rem; overflow-x: auto; font-size: .85rem; }
"""


_SMALL_SIDE = 64
"""Pixels; larger pictures are photos."""


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
        """Line charts beside each other, see `clipkit.charts`."""
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
            f'<img class="picture{_small(image)}" src="{_data_url(image)}" alt="{html.escape(description)}">'
            f'<p class="soft">{html.escape(description)}</p>'
        )

    def row(self, query: str, hits: Sequence[Hit]) -> None:
        """A query and the pictures found for it; right ones have a green border."""
        figures = "".join(
            f'<figure class="{"right" if hit.is_right else "wrong"}">'
            f'<img class="{_small(hit.image).strip()}" src="{_data_url(hit.image)}" '
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
        with whole_file(path) as temporary:
            temporary.write_text(content, encoding="utf-8")


def _heat_cell(value: float, is_marked: bool) -> str:
    if math.isnan(value):
        return "<td></td>"
    shade = f"background:color-mix(in srgb, var(--accent) {value * 75:.0f}%, var(--page))"
    mark = ' class="marked"' if is_marked else ""
    return f'<td{mark} style="{shade}">{value:.0%}</td>'


def _small(image: Image.Image) -> str:
    """The class of a picture whose pixels are to be seen, where photos are to be smooth."""
    return " small" if max(image.size) <= _SMALL_SIDE else ""


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
