"""`clipkit evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from .results import Result
    from .suite import Entry

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
    data: str | None = None
    """Without a suite: what the task runs on."""
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
    from .runner import RunOptions, open_sources, run_model

    entries = _entries(options)
    results: list[Result] = []
    with process_group() as device:
        sources = open_sources(entries)
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
            results += run_model(model, entries, sources, run_options)
        if rank() == 0:
            page, text = write_reports(options.output, results)
            _print(results, as_json=options.as_json)
            print(f"report: {page} and {text}", file=sys.stderr)
    return 0


def _check(models: Sequence[str], options: EvaluateOptions) -> None:
    """Refuse requests that contradict themselves."""
    if not models:
        raise ValueError("name a model or several: clipkit evaluate MODEL ... --task NAME --data PLACE")
    if (options.suite is None) == (options.task is None):
        raise ValueError("give either --suite FILE or --task NAME with --data PLACE")
    if options.suite is not None and (options.data, options.name, options.settings) != (None, None, ()):
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
    if options.data is not None:
        settings["data"] = options.data
    for setting in options.settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, got {setting!r}")
        settings[key.strip().replace("-", "_")] = _value(value)
    data = (options.data or str(options.task)).partition("::")[0].rstrip("/")
    parts = [part for part in Path(data).parts if part not in ("/", "test")]
    return [make_entry(options.name or (parts[-1] if parts else data), settings)]


def _value(text: str) -> Any:
    """A value as it would stand in a suite file."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _print(results: Sequence[Result], *, as_json: bool) -> None:
    import json

    from rich.console import Console
    from rich.table import Table

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
    summary = summary_table(results)
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(summary.header):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    for row in summary.rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)  # a file has no edge to wrap at
    console.print(table, markup=False)
