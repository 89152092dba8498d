"""`clipkit embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from .embed_settings import EmbedSettings, RaySettings

if TYPE_CHECKING:
    import torch

    from .embed import EmbedReport

app = App(
    name="embed",
    help="Images and captions to a folder of embeddings (npy and parquet) for search; resumable.",
    default_parameter=Parameter(negative=()),
)


_DEFAULTS, _RAY = EmbedSettings(), RaySettings()


@app.default
def embed(
    source: str,
    *,
    model: str,
    out: Path,
    settings: Annotated[EmbedSettings, Parameter(name="*")] = _DEFAULTS,
    num_workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    ray: Annotated[RaySettings, Parameter(name="*")] = _RAY,
    quiet: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Embed images and captions, in the layout of clip-retrieval.

    An interrupted run goes on with the first unfinished file when the same command is given again. Under
    torchrun, ranks share the files. What cannot be read has no row and is listed in failed.parquet.

    Args:
        source: a folder of images, of captions (.txt), or of both with the same stem; tar shards (a folder,
            a brace range, several joined by ::); a CSV, TSV or parquet table of paths and captions.
        model: a model directory, or anything else that `clipkit.load` takes.
        out: folder to write, or to go on with.
        settings: what is written.
        num_workers: processes that decode, on each rank; by default one, and with a GPU one a core.
        engine: who makes the files: this process and those of torchrun, or workers of Ray.
        ray: where workers of Ray run.
        quiet: show no progress.
        as_json: print JSON instead of text.

    Returns:
        0, also where samples could not be read; 1 where none could.
    """
    import clipkit
    from clipkit.devices import process_group

    from .embed import embed as run

    if num_workers is not None and num_workers < 0:
        raise ValueError(f"--num-workers must be at least 0, got {num_workers}")
    if engine == "ray":
        from .embed_ray import embed_with_ray

        shown = embed_with_ray(source, model, out, settings, ray, num_workers=num_workers, show=not quiet)
        return _print(shown, as_json=as_json)
    if ray != _RAY:
        raise ValueError("--ray-address and --ray-workers need --engine ray")
    with process_group() as device:
        report = run(
            source,
            clipkit.load(model, device=device),
            out,
            settings,
            model_name=model,
            num_workers=_default_workers(device) if num_workers is None else num_workers,
            show=not quiet,
        )
    return 0 if report is None else _print(report, as_json=as_json)


def _default_workers(device: torch.device) -> int:
    """One for each core that a GPU leaves free; next to a tower on the CPU, one."""
    import os

    if device.type == "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _print(report: EmbedReport, *, as_json: bool) -> int:
    import json

    from clipkit.data.problems import describe_counts

    from .embed_folder import FAILED_NAME

    failed, indexed = report.manifest["failed"], report.manifest["found_by_index"]
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        print(report.to_text())
        if failed:
            print(f"not embedded: {describe_counts(failed)}; listed in {report.out / FAILED_NAME}")
        if indexed:
            print(f"found by the index: {describe_counts(indexed)}; examples in {report.out / FAILED_NAME}")
    return 0 if report.manifest["num_rows"] else 1
