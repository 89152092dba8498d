"""Small charts as SVG, for the pages of `clipkit.page`: they take its colours, light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

_COLOURS = ("var(--accent)", "var(--second)", "var(--good)")


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
