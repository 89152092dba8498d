from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from clipkit.training.config import DataConfig, LogConfig, ModelConfig, TrainConfig
from clipkit.training.runlog import RunLog, read_runlog
from clipkit.training.stopwatch import Stopwatch, verdict


def config(output: Path, **log: Any) -> TrainConfig:
    return TrainConfig(
        output=output,
        model=ModelConfig(name="test-vit"),
        data=DataConfig(sources={"a": "b"}),
        log=LogConfig(**log),
        steps=1,
    )


def test_a_resumed_log_forgets_what_is_done_again(tmp_path: Path) -> None:
    log = RunLog.open(config(tmp_path), is_main=True, resume_step=0)
    for step in range(1, 6):
        log.log(step, {"loss_nats": float(step)})
    log.close()
    path = tmp_path / "runlog.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "loss_na')
    log = RunLog.open(config(tmp_path), is_main=True, resume_step=3)
    log.log(4, {"loss_nats": 40.0})
    log.close()
    assert [(line["step"], line["loss_nats"]) for line in read_runlog(path)] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
    ]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    log = RunLog.open(config(tmp_path), is_main=True, resume_step=0)
    log.log(1, {"grad_norm": math.inf, "loss_nats": 0.5})
    log.close()
    assert read_runlog(tmp_path / "runlog.jsonl") == [{"step": 1, "grad_norm": None, "loss_nats": 0.5}]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = RunLog.open(config(tmp_path, tensorboard=True), is_main=False, resume_step=0)
    log.log(1, {"loss_nats": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            calls.append((step, values))

        def finish(self) -> None:
            calls.append("finish")

    def init(**settings: Any) -> Run:
        calls.append((settings["project"], settings["config"]["optim"]["lr"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    log = RunLog.open(config(tmp_path, wandb_project="mine"), is_main=True, resume_step=0)
    log.log(2, {"loss_nats": 1.0})
    log.close()
    assert calls == [("mine", 5e-4), (2, {"loss_nats": 1.0}), "finish"]


@pytest.mark.parametrize(
    ("module", "log", "extra"),
    [
        ("wandb", {"wandb_project": "mine"}, "clipkit[wandb]"),
        ("torch.utils.tensorboard", {"tensorboard": True}, "clipkit[tensorboard]"),
    ],
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, log: dict[str, Any], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match="needs") as error:
        RunLog.open(config(tmp_path, **log), is_main=True, resume_step=0)
    assert extra in str(error.value)


def test_stopwatch_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Started at 0; asked for a batch at 1, given at 3; asked at 4, given at 4; lap at 8; then a pause to 20.
    ticks = iter([0.0, 1.0, 3.0, 4.0, 4.0, 8.0, 8.0, 20.0, 20.0, 21.0, 21.0, 21.0])
    monkeypatch.setattr("clipkit.training.stopwatch.time.perf_counter", lambda: next(ticks))
    watch = Stopwatch(images_per_step=16)
    batches = watch.timed(iter("ab"))
    assert [next(batches), next(batches)] == ["a", "b"]
    assert watch.lap() == {"images_per_second": 4.0, "data_wait_fraction": 0.25}
    watch.pause()
    assert watch.data_wait_fraction == 0.25


def test_the_verdict_is_said_in_words() -> None:
    assert verdict(0.5).startswith("loader-bound (50%")
    assert verdict(0.05).startswith("compute-bound (5%")
