"""Adaptations that run in ranks and in processes that are killed."""

import os
import signal
from pathlib import Path

from clipkit.training.adapt import loop
from clipkit.training.adapt.loop import AdaptJob
from clipkit.training.adapt.recipe import recipe_of
from clipkit.training.adapt.state import TrainState

SETTINGS = {
    "coop": {"num_prompts": 2},
    "cocoop": {"num_prompts": 2},
    "tip-adapter": {"train_keys": True},
    "clip-adapter": {},
    "lora": {},
}


def job(model, data, name="head", method="maple", **changes):
    settings = changes.pop("settings", SETTINGS.get(method, {"depth": 1}))
    recipe = {"method": method, "settings": settings, "lr": 0.05, "batch_size": 4, "epochs": 3, "shots": 3}
    recipe |= {key: changes.pop(key) for key in list(changes) if key in ("shots", "epochs", "batch_size")}
    return AdaptJob(
        model=Path(model),
        data=str(data),
        name=name,
        recipe=recipe_of(recipe, "test"),
        recipe_name="test",
        quiet=True,
        **changes,
    )


def run(*arguments, **changes):
    return loop.adapt(job(*arguments, **changes))


def run_and_kill(model, data, name, method, states):
    """SIGKILL to this process as soon as so many states are written."""
    write, written = TrainState.write, []

    def counting(self, snapshot):
        write(self, snapshot)
        written.append(snapshot.step)
        if len(written) == states:
            os.kill(os.getpid(), signal.SIGKILL)

    TrainState.write = counting
    loop.SECONDS_BETWEEN_STATES = -1.0  # after every step
    run(model, data, name, method)
