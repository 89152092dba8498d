"""The state of an unfinished adaptation, in `heads/.NAME.train` of the model directory."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from clipkit.model_dir import HEADS_NAME

STATE_NAME = "state.pt"


class TrainState:
    """Where a training is kept between interruptions."""

    def __init__(self, model_dir: Path, name: str) -> None:
        self.folder = model_dir / HEADS_NAME / f".{name}.train"

    def read(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """What was written last, None where nothing was.

        Raises:
            ValueError: it is of another configuration than `key`, or damaged.
        """
        path = self.folder / STATE_NAME
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is damaged ({reason}): --overwrite begins again") from None
        then = state["key"]
        changed = [name for name in {**key, **then} if key.get(name) != then.get(name)]
        if changed:
            raise ValueError(
                f"{self.folder} is an unfinished training with {changed[0]} {then.get(changed[0])!r}, got "
                f"{key.get(changed[0])!r}: give the same settings, another --name, or --overwrite"
            )
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Keep a state in place of the last, all of it or none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{STATE_NAME}.tmp"
        with temporary.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self.folder / STATE_NAME)

    def remove(self) -> None:
        """Forget it."""
        shutil.rmtree(self.folder, ignore_errors=True)
