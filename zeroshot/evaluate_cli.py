"""`clipkit evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from .results import Result
    from .runner import RunOptions
    from .suite import Entry
    from .tasks.base import Table

    Run = Callable[[str, RunOptions], Iterator[Result]]

app = App(
    name="evaluate",
    help="How good models are: zero-shot, retrieval, pairs, languages, few-shot; JSON and a report.",
    default_parameter=Parameter(negative=()),
)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is measured, and how."""

    suite: Path | None = None
    """A YAML file `NAME: {task: ..., data: ..., ...}`."""
    task: str | None = None
    """Without a suite: one task, such as `zeroshot_classification` or `zeroshot_retrieval`."""
    protocol: Literal["base-to-new", "few-shot", "cross-dataset", "domain"] | None = None
    """In place of tasks: heads of the model directory beside the model as it is. `base-to-new`: trained on
    base classes (`clipkit adapt --classes base`), on these and on new ones, beside published figures;
    `few-shot`: trained on all classes, by the number of images; `cross-dataset` and `domain`: trained on one
    data set, on others, which for `domain` have the same classes or some of them."""
    data: tuple[str, ...] = ()
    """Without a suite: what the task runs on. For a protocol: `NAME=PLACE`, once for each data set, with
    places as `clipkit adapt` takes them."""
    head: str | None = None
    """For a protocol: names of heads, or what their names begin with, between commas; heads that differ by
    their seed alone are one row."""
    descriptions: Path | None = None
    """For a protocol: a JSON file `{class: [descriptor, ...]}`, to measure the classifier by descriptions."""
    name: str | None = None
    """Without a suite: what the result is reported under; by default the name of the data."""
    settings: Annotated[tuple[str, ...], Parameter(name="--set")] = ()
    """Without a suite: a further setting of the task as `KEY=VALUE`; can be given several times."""
    output: Path = Path("results")
    """Folder of the result files and the report; finished ones of the same settings are taken over."""
    overwrite: bool = False
    """Compute what is already in the folder anew."""
    batch_size: int = 64
    """Images encoded at once, on each rank."""
    num_workers: int = 0
    """Processes that decode, on each rank."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the towers; features and metrics are fp32."""
    no_cache: bool = False
    """Compute all features anew; else the next task on the same images costs no forward pass."""
    quiet: bool = False
    """Show no progress."""
    as_json: Annotated[bool, Parameter(name="--json")] = False
    """One JSON line a result instead of a table."""
    list_tasks: bool = False
    """Only say which tasks there are and what settings they have."""


_DEFAULTS = EvaluateOptions()


@app.default
def evaluate(
    models: tuple[str, ...] = (),
    *,
    options: Annotated[EvaluateOptions, Parameter(name="*")] = _DEFAULTS,
) -> int:
    """Measure models on data sets, and compare them in one report.

    Under torchrun, every rank encodes its share. An interrupted run goes on with the first unfinished task.

    Args:
        models: model directories, or anything else that `clipkit.load` takes.
        options: what and how.
    """
    if options.list_tasks:
        from .task_help import describe_tasks

        print(describe_tasks())
        return 0
    _check(models, options)
    from clipkit.devices import process_group
    from clipkit.distributed import rank

    from .report import write_reports
    from .runner import RunOptions

    run = _protocol(options) if options.protocol is not None else _suite(options)
    results: list[Result] = []
    with process_group() as device:
        run_options = RunOptions(
            output=options.output,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            precision=options.precision,
            with_cache=not options.no_cache,
            overwrite=options.overwrite,
            device=device,
            quiet=options.quiet,
        )
        for model in dict.fromkeys(models):
            results += run(model, run_options)
        if rank() == 0:
            page, text = write_reports(options.output, results)
            _print(results, as_json=options.as_json, is_protocol=options.protocol is not None)
            print(f"report: {page} and {text}", file=sys.stderr)
    return 0


def _suite(options: EvaluateOptions) -> Run:
    """The tasks, with their data opened."""
    from .runner import open_sources, run_model

    entries = _entries(options)
    sources = open_sources(entries)
    return lambda model, run_options: run_model(model, entries, sources, run_options)


def _protocol(options: EvaluateOptions) -> Run:
    """The protocol, with its data opened."""
    from .protocols.run import open_data, run_protocol

    data = open_data(options.data)
    heads = [name.strip() for name in (options.head or "").split(",") if name.strip()]
    protocol, descriptions = str(options.protocol), options.descriptions
    return lambda model, settings: run_protocol(protocol, model, data, heads, descriptions, settings)


def _check(models: Sequence[str], options: EvaluateOptions) -> None:
    """Refuse requests that contradict themselves."""
    if not models:
        raise ValueError("name a model or several: clipkit evaluate MODEL ... --task NAME --data PLACE")
    if (options.suite, options.task, options.protocol).count(None) != 2:
        raise ValueError(
            "give either --suite FILE or --task NAME with --data PLACE, or --protocol NAME with --data and "
            "--head"
        )
    if options.protocol is not None:
        if not options.data or not (options.head or "").strip(", "):
            raise ValueError(
                "--protocol needs --data NAME=PLACE, once or more often, and --head NAME[,NAME...]"
            )
        if (options.name, options.settings) != (None, ()):
            raise ValueError("--name and --set belong to --task; for a protocol, give --data NAME=PLACE")
    elif (options.head, options.descriptions) != (None, None):
        raise ValueError("--head and --descriptions belong to --protocol")
    elif len(options.data) > 1:
        raise ValueError(f"a task takes one --data, got {len(options.data)}; write a suite for several")
    if options.suite is not None and (options.data, options.name, options.settings) != ((), None, ()):
        raise ValueError("--data, --name and --set belong to --task; a suite file has its own")
    if options.batch_size < 1 or options.num_workers < 0:
        raise ValueError(
            "--batch-size must be at least 1 and --num-workers at least 0, got "
            f"{options.batch_size} and {options.num_workers}"
        )


def _entries(options: EvaluateOptions) -> list[Entry]:
    from .suite import make_entry, read_suite

    if options.suite is not None:
        return read_suite(options.suite)
    settings: dict[str, Any] = {"task": options.task}
    place = options.data[0] if options.data else None
    if place is not None:
        settings["data"] = place
    for setting in options.settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, got {setting!r}")
        settings[key.strip().replace("-", "_")] = _value(value)
    data = (place or str(options.task)).partition("::")[0].rstrip("/")
    parts = [part for part in Path(data).parts if part not in ("/", "test")]
    return [make_entry(options.name or (parts[-1] if parts else data), settings)]


def _value(text: str) -> Any:
    """A value as it would stand in a suite file."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _print(results: Sequence[Result], *, as_json: bool, is_protocol: bool) -> None:
    import json

    from rich.console import Console

    from .report import summary_table

    if as_json:
        for result in results:
            facts = {
                "dataset": result.dataset,
                "model": result.model.model,
                "pretrained": result.model.pretrained,
                "task": result.task,
                "metrics": result.metrics,
                "language": result.language,
            }
            print(json.dumps(facts))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)  # a file has no edge to wrap at
    for result in results if is_protocol else ():
        for own in result.tables:
            console.print(f"{result.model.shown}, {own.title}", markup=False)
            console.print(_rich(own, num_left=1), markup=False)
            console.print(own.note, markup=False)
    if not is_protocol:
        console.print(_rich(summary_table(results), num_left=2), markup=False)


def _rich(table: Table, *, num_left: int) -> RichTable:
    """A table for the terminal; the first columns are text."""
    from rich.table import Table as RichTable

    shown = RichTable(box=None, pad_edge=False)
    for number, column in enumerate(table.header):
        shown.add_column(column, justify="left" if number < num_left else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    return shown
