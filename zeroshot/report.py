"""One report on several models and data sets, as a page and as markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipkit.charts import interval_chart
from clipkit.page import Page
from clipkit.whole_file import whole_file

from .intervals import paired_difference
from .results import Result
from .tasks.base import Table


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section of the report."""

    title: str
    text: str = ""
    intervals: tuple[tuple[str, float, float, float], ...] = ()
    """Name, value, and the ends of its interval, drawn on one scale; shares."""
    chance: float | None = None
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


def write_reports(folder: Path, results: Sequence[Result]) -> tuple[Path, Path]:
    """Write `report.html` and `report.md`; returns their paths."""
    parts = list(_parts(results))
    page, text = folder / "report.html", folder / "report.md"
    models = list(dict.fromkeys(result.model.shown for result in results))
    lead = f"{_count(len(models), 'model')} on {_count(len({r.dataset for r in results}), 'data set')}."
    html = Page("Evaluation", lead)
    for part in parts:
        html.section(part.title, part.text)
        if part.intervals:
            html.charts([interval_chart(part.title, part.intervals, mark=part.chance)])
        for table in part.tables:
            if table.title != part.title:
                html.subsection(table.title)
            if table.note:
                html.note(table.note)
            html.table(table.header, table.rows)
        for note in part.notes:
            html.note(note)
    html.write(page)
    with whole_file(text) as temporary:
        temporary.write_text(_markdown(lead, parts), encoding="utf-8")
    return page, text


def summary_table(results: Sequence[Result]) -> Table:
    """A row for each data set and task, a column for each model: the headline metric."""
    models = list(dict.fromkeys(result.model for result in results))
    rows = []
    for same in _by_entry(results):
        first, of_model = same[0], {result.model: result for result in same}
        cells = [_cell(of_model[model], first.headline) if model in of_model else "" for model in models]
        chance = _chance(first, first.headline)
        rows.append((f"{first.dataset}: {first.task}", first.headline, *cells, chance))
    header = ("data set: task", "metric", *(model.shown for model in models), "chance")
    return Table(title="Results", header=header, rows=tuple(rows), note="With intervals of 95 %.")


def show(value: float, *, plain: bool = False) -> str:
    """A value as it stands in tables: fractions in percent, plain ones as they are."""
    return f"{value:.4g}" if plain else f"{100 * value:.1f} %"


def _by_entry(results: Sequence[Result]) -> Iterator[list[Result]]:
    """Results of the same task on the same data, in the order of their first occurrence."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.dataset, result.task, result.language), []).append(result)
    yield from groups.values()


def _cell(result: Result, metric: str) -> str:
    """A value and its interval; nothing where the task did not give it."""
    if metric not in result.metrics:
        return ""
    plain = metric in result.plain
    text = show(result.metrics[metric], plain=plain)
    if metric not in result.intervals:
        return text
    low, high = (show(end, plain=plain).removesuffix(" %") for end in result.intervals[metric])
    return f"{text} [{low}, {high}]"


def _chance(result: Result, metric: str) -> str:
    if metric not in result.chance:
        return ""
    return show(result.chance[metric], plain=metric in result.plain)


def _parts(results: Sequence[Result]) -> Iterator[Part]:
    yield Part(title="Results", tables=(summary_table(results),))
    for same in _by_entry(results):
        first = same[0]
        sizes = sorted({result.num_images for result in same})
        text = f"{first.task}, {' or '.join(f'{size:,}' for size in sizes)} images"
        shown = "" if first.headline in first.plain else first.headline
        yield Part(
            title=f"{first.dataset}: {first.task}",
            text=f"{text}; intervals of 95 %.",
            intervals=tuple(_bars(same, shown)) if shown else (),
            chance=first.chance.get(shown),
            tables=(_metrics_table(same), *_comparison(same), *_own_tables(same)),
            notes=tuple(_notes(same)),
        )


def _bars(same: Sequence[Result], metric: str) -> Iterator[tuple[str, float, float, float]]:
    for result in same:
        if metric in result.metrics:
            value = result.metrics[metric]
            yield (result.model.shown, value, *result.intervals.get(metric, (value, value)))


def _metrics_table(same: Sequence[Result]) -> Table:
    metrics = list(dict.fromkeys(name for result in same for name in result.metrics))
    rows = tuple(
        (name, *(_cell(result, name) for result in same), _chance(same[0], name)) for name in metrics
    )
    return Table(title="Metrics", header=("metric", *(r.model.shown for r in same), "chance"), rows=rows)


def _comparison(same: Sequence[Result]) -> Iterator[Table]:
    """Each other model against the first, item by item."""
    first, rows = same[0], []
    for other in same[1:]:
        for metric, values in other.outcomes.items():
            base = first.outcomes.get(metric)
            if base is None or base.shape != values.shape:
                continue
            difference, low, high = paired_difference(values, base)
            scale = 1 if metric in first.plain else 100
            verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
            ends = f"{scale * difference:+.1f} [{scale * low:+.1f}, {scale * high:+.1f}]"
            rows.append((other.model.shown, metric, ends, verdict))
    if rows:
        note = f"On the same items, with {first.model.shown}; points, paired bootstrap of 95 %."
        header = ("model", "metric", "difference", "verdict")
        yield Table(title="Compared", header=header, rows=tuple(rows), note=note)


def _own_tables(same: Sequence[Result]) -> Iterator[Table]:
    for result in same:
        prefix = f"{result.model.shown}: " if len(same) > 1 else ""
        for table in result.tables:
            yield Table(title=prefix + table.title, header=table.header, rows=table.rows, note=table.note)


def _notes(same: Sequence[Result]) -> Iterator[str]:
    said = set()
    for result in same:
        lines = list(result.notes)
        if result.unreadable:
            counts = ", ".join(f"{count} {reason}" for reason, count in result.unreadable.items())
            lines.append(f"Not used: {counts}.")
        for line in lines:
            text = f"{result.model.shown}: {line}" if len(same) > 1 and not _shared(line, same) else line
            if text not in said:
                said.add(text)
                yield text


def _shared(line: str, same: Sequence[Result]) -> bool:
    return all(line in result.notes for result in same)


def _markdown(lead: str, parts: Sequence[Part]) -> str:
    lines = ["# Evaluation", "", lead, ""]
    for part in parts:
        lines += [f"## {part.title}", ""]
        lines += [part.text, ""] if part.text else []
        for table in part.tables:
            lines += [f"### {table.title}", ""] if table.title != part.title else []
            lines += [table.note, ""] if table.note else []
            lines += [_row(table.header), _row(["---", *["---:"] * (len(table.header) - 1)])]
            lines += [_row(row) for row in table.rows]
            lines.append("")
        for note in part.notes:
            lines += [f"> {note}", ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
