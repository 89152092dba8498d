"""The run directory: configuration, log, checkpoints, models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from clipkit import distributed
from clipkit.whole_file import whole_file

from . import checkpoint
from .config import TrainConfig, to_dict
from .runlog import RUNLOG_NAME

CONFIG_NAME = "config.yaml"
CHECKPOINTS_NAME = "checkpoints"

_FREE_TO_CHANGE = {"output", "resume", "checkpoint", "log", "eval", "data.num_workers", "steps", "epochs"}
_FREE_TO_CHANGE |= {"loss.kernel", "loss.exchange", "loss.plan"}
"""Settings that leave the steps already taken as they are: bookkeeping, the length of the run, and the way by
which the same loss is computed."""


def find_checkpoint(config: TrainConfig) -> Path | None:
    """The checkpoint to continue from; nothing is written yet.

    Returns:
        The latest checkpoint if `config.resume` is `auto` and there is one.

    Raises:
        ValueError: the directory holds a run and resuming was not asked for, or the run in it was another.
    """
    latest = next(reversed(checkpoint.all_checkpoints(config.output / CHECKPOINTS_NAME)), None)
    if config.resume == "never" and (latest or (config.output / RUNLOG_NAME).exists()):
        raise ValueError(
            f"{config.output} holds a run already; add --resume auto to continue it, or name another --output"
        )
    if latest is not None:
        _check_same_run(config, checkpoint.read_state(latest), latest)
    return latest


def create(config: TrainConfig) -> None:
    """Make the run directory with its configuration, once model and data have proved usable."""
    distributed.barrier()
    if distributed.rank() == 0:
        config.output.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_leftovers(config.output / CHECKPOINTS_NAME)
        _write_config(config)


def _write_config(config: TrainConfig) -> None:
    with whole_file(config.output / CONFIG_NAME) as temporary:
        temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def _check_same_run(config: TrainConfig, state: dict[str, Any], path: Path) -> None:
    if state["format"] != checkpoint.FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {state['format']}, this version reads {checkpoint.FORMAT}"
        )
    if state["world_size"] != distributed.world_size():
        raise ValueError(
            f"{path} was written by {state['world_size']} ranks and holds a random state for each; resume on "
            f"as many, got {distributed.world_size()} (another data.num_workers is fine)"
        )
    now, then = _flat(to_dict(config)), _flat(state["config"])
    changed = [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]
    changed = [key for key in changed if not _is_free(key)]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{path} belongs to a run with {_said(then, key)}, got {_said(now, key)}; resume with the "
            "same settings, or start another --output with --model.source"
        )


def check_same_data(now: dict[str, str], then: dict[str, str], path: Path) -> None:
    """Refuse sources whose shards are others, since the order of samples follows from them.

    Args:
        now: `TrainLoader.fingerprint`.
        then: the one in the checkpoint.
        path: the checkpoint.
    """
    for name in now:
        if now[name] != then.get(name):
            raise ValueError(
                f"source {name!r} is not what it was when {path} was written (samples per shard differ), so "
                "the run cannot go on at its exact sample; restore the data or start another --output"
            )


def _said(values: dict[str, Any], key: str) -> str:
    return f"no {key}" if values.get(key) is None else f"{key}={values[key]}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _is_free(key: str) -> bool:
    return key in _FREE_TO_CHANGE or key.split(".")[0] in _FREE_TO_CHANGE
