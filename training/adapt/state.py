"""The state of an unfinished adaptation, in `heads/.NAME.train` of the model directory: tensors and JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.model_dir import HEADS_NAME
from clipkit.whole_file import flush_to_disk, whole_file

STATE_NAME = "state.safetensors"
_FACTS = "clipkit"
"""The entry of the file's metadata with all that is no tensor, as JSON."""
_PARTS = ("head", "training", "optimizer")
"""The fields of a snapshot that hold tensors."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A training between two steps. Nothing random is in it: draws follow from the seed and the step."""

    key: Mapping[str, Any]
    """JSON-ready; what must be equal for the training to go on."""
    step: int
    seconds: float
    loss: float
    head: Mapping[str, Tensor]
    training: Mapping[str, Tensor]
    """Of `Head.training_tensors`."""
    optimizer: Mapping[str, Tensor]
    """Of `optimizer_tensors`."""
    scaler: Mapping[str, Any]
    """State dict of a `GradScaler`: numbers, or nothing."""


class TrainState:
    """Where a training is kept between interruptions."""

    def __init__(self, model_dir: Path, name: str) -> None:
        self.folder = model_dir / HEADS_NAME / f".{name}.train"

    def read(self, key: Mapping[str, Any]) -> Snapshot | None:
        """What was written last, on the CPU; None where nothing was.

        Raises:
            ValueError: it is of another configuration than `key`, or damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = self.folder / STATE_NAME
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[_FACTS])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            parts: dict[str, Any] = {part: _below(part, tensors) for part in _PARTS}
            snapshot = Snapshot(**facts, **parts)
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is damaged ({reason}): --overwrite begins again") from None
        now, then = json.loads(json.dumps(key)), snapshot.key
        changed = [name for name in {**now, **then} if now.get(name) != then.get(name)]
        if changed:
            raise ValueError(
                f"{self.folder} is an unfinished training with {changed[0]} {then.get(changed[0])!r}, got "
                f"{now.get(changed[0])!r}: give the same settings, another --name, or --overwrite"
            )
        return snapshot

    def write(self, snapshot: Snapshot) -> None:
        """Keep a state in place of the last, all of it or none.

        Raises:
            OSError: it cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        content = vars(snapshot)
        tensors = {
            f"{part}.{name}": value.detach().cpu().contiguous().clone()
            for part in _PARTS
            for name, value in content[part].items()
        }
        facts = {name: value for name, value in content.items() if name not in _PARTS}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / STATE_NAME
        try:
            with whole_file(path) as temporary:
                save_file(tensors, temporary, metadata={_FACTS: json.dumps(facts)})
                flush_to_disk(temporary)
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from None

    def remove(self) -> None:
        """Forget it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer has gathered, as `NUMBER.NAME` of the parameter's number and the tensor's name.

    Its settings are left out: they are the recipe's.
    """
    gathered = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, values in gathered.items()
        for name, value in values.items()
        if value is not None
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer of the same parameters and settings what `optimizer_tensors` took."""
    gathered: dict[int, dict[str, Tensor]] = {}
    for place, value in tensors.items():
        number, name = place.split(".", 1)
        gathered.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": gathered})


def _below(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `part.`, without it."""
    begin = f"{part}."
    return {name.removeprefix(begin): value for name, value in tensors.items() if name.startswith(begin)}
