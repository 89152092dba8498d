"""The course of a run: one JSON line per logged step, and optional trackers behind the same call."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from clipkit.whole_file import whole_file

from .config import TrainConfig, to_dict

RUNLOG_NAME = "runlog.jsonl"


class Tracker(Protocol):
    """Anything that takes scalars by name and step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` of one optimiser step."""

    def close(self) -> None:
        """Write what is pending."""


class JsonLines:
    """`runlog.jsonl`: units in the keys, one flushed line per call, so a killed run loses nothing."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        _drop_lines_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; non-finite numbers become null, which JSON can hold."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """TensorBoard event files in `OUTPUT/tensorboard`."""

    def __init__(self, directory: Path, *, resume_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "log.tensorboard needs tensorboard: pip install 'clipkit[tensorboard]'"
            ) from error
        self._writer: Any = SummaryWriter(str(directory), purge_step=resume_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add each value as a scalar."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run named after the output folder."""

    def __init__(self, config: TrainConfig) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("log.wandb_project needs wandb: pip install 'clipkit[wandb]'") from error
        self._run: Any = wandb.init(
            project=config.log.wandb_project,
            name=config.output.name,
            id=hashlib.sha256(str(config.output.resolve()).encode()).hexdigest()[:16],
            dir=str(config.output),
            config=to_dict(config),
            resume="allow",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of one step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class RunLog:
    """All trackers of a run as one."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    @classmethod
    def open(cls, config: TrainConfig, *, is_main: bool, resume_step: int) -> RunLog:
        """Trackers that the configuration asks for; none on ranks other than the main one."""
        if not is_main:
            return cls([])
        trackers: list[Tracker] = []
        if config.log.tensorboard:
            trackers.append(TensorBoard(config.output / "tensorboard", resume_step=resume_step))
        if config.log.wandb_project:
            trackers.append(WeightsAndBiases(config))
        trackers.append(JsonLines(config.output / RUNLOG_NAME, resume_step=resume_step))
        return cls(trackers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the values to every tracker."""
        for tracker in self._trackers:
            tracker.log(step, values)

    def close(self) -> None:
        """Close every tracker."""
        for tracker in self._trackers:
            tracker.close()


def read_runlog(path: Path) -> list[dict[str, Any]]:
    """Lines of a run log; a last line cut by a kill is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def _drop_lines_after(path: Path, step: int) -> None:
    """Forget what a resumed run is about to do again."""
    if not path.exists():
        return
    kept = [entry for entry in read_runlog(path) if entry["step"] <= step]
    with whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
