from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from clipkit.training import cli, loop
from clipkit.training.config import DataConfig, ModelConfig, TrainConfig, to_dict
from cyclopts.exceptions import CycloptsError

from clipkit.cli import main

MINIMAL = ["--output", "run", "--model.name", "tiny-vit", "--data.sources.mine", "shards", "--steps", "3"]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Configurations that reach training, in order."""
    configs: list[TrainConfig] = []

    def record(config: TrainConfig) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr(loop, "train", record)
    return configs


def test_flags(parsed: list[TrainConfig]) -> None:
    flags = ["--data.sources.other", "a/{00..03}.tar::b", "--data.weights.other", "2.5", "--optim.lr", "1e-4"]
    assert main(["train", *MINIMAL, *flags, "--optim.betas", "0.8", "0.9", "--compile"]) == 0
    (config,) = parsed
    assert config.data.sources == {"mine": "shards", "other": "a/{00..03}.tar::b"}
    assert config.data.weights == {"other": 2.5}
    assert (config.optim.lr, config.optim.betas, config.compile) == (1e-4, (0.8, 0.9), True)


def test_flags_win_over_the_environment_and_that_over_yaml(
    parsed: list[TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\nsteps: 1\noptim: {lr: 0.5, eps: 0.1}\n")
    monkeypatch.setenv("CLIPKIT_TRAIN_OPTIM_LR", "0.25")
    assert main(["train", str(path), *MINIMAL]) == 0
    (config,) = parsed
    assert (config.steps, config.seed, config.optim.lr, config.optim.eps) == (3, 1, 0.25, 0.1)


def test_a_written_configuration_reads_back_as_itself(parsed: list[TrainConfig], tmp_path: Path) -> None:
    everything = ["--data.weights.mine", "0.5", "--eval.retrieval.val", "v", "--optim.ema-decay", "0.9"]
    everything += ["--eval.best-metric", "val/text_to_image_R@1", "--data.augment.scale", "0.5", "0.75"]
    everything += ["--data.caption-keys", "json.caption", "--data.caption-keys", "txt"]
    assert main(["train", *MINIMAL, *everything]) == 0
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(parsed[0])))
    assert main(["train", "--config", str(path)]) == 0
    assert parsed[1] == parsed[0]
    assert parsed[0].data.caption_keys == ("json.caption", "txt")


def _error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["train", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--optim.lrr", "1"], "Did you mean --optim.lr?"),
        (["--optim.lr", "0"], "optim.lr must be > 0, got 0.0"),
        (["--optim.lr", "fast"], "fast"),
        (["--epochs", "2"], "one of epochs and steps"),
        (["--model.lock-image-unlocked-groups", "1"], "needs model.lock_image"),
        (["--optim.cooldown-steps", "5"], "constant-cooldown"),
        (["--data.weights.mien", "2"], "data.weights names mien"),
        (["--data.batch-size-per-rank", "10", "--data.micro-batch-size-per-rank", "3"], "must divide"),
        (["--eval.best-metric", "val/text_to_image_R@1"], "choose from none"),
        (["--eval.retrieval.v", "x", "--eval.best-metric", "v/text_to_image_R1"], "v/text_to_image_R@1"),
        (["--eval.every-steps", "3"], "needs something to evaluate"),
        (["--seed", "-1"], "seed must be"),
        (["--precision", "fp8"], "fp8"),
        (["--data.augment.scale", "0.9", "0.5"], "augment.scale must rise"),
    ],
)
def test_mistakes_are_one_line_with_a_cure(
    capsys: pytest.CaptureFixture[str], parsed: list[TrainConfig], arguments: list[str], complaint: str
) -> None:
    assert complaint in _error(capsys, *MINIMAL, *arguments)
    assert not parsed


def test_an_unknown_key_in_yaml_is_named(
    capsys: pytest.CaptureFixture[str], parsed: list[TrainConfig], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("optim: {learning_rate: 1}\n")
    assert "learning_rate" in _error(capsys, str(path), *MINIMAL)
    path.write_text("optim: {lrr: 1}\n")
    error = _error(capsys, str(path), *MINIMAL)
    assert "lrr" in error
    assert "optim.lr" in error
    assert not parsed


def test_every_setting_is_explained_in_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "300")
        assert main(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()

    def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
        names = []
        for key, value in values.items():
            nested = isinstance(value, dict) and value
            names += leaves(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}".replace("_", "-")]
        return names

    config = TrainConfig(
        output=Path("o"),
        model=ModelConfig(name="x"),
        data=DataConfig(sources={"a": "b"}),
        steps=1,
    )
    names = [name for name in leaves(to_dict(config)) if not name.startswith("data.sources.")]
    assert len(names) > 50
    for name in names:
        rows = [line for line in lines if f"--{name} " in line]
        assert rows, name
        assert len(rows[0].split(f"--{name}")[1].strip(" │")) > 20, rows[0]


def test_cli_errors_are_cyclopts_errors() -> None:
    with pytest.raises(CycloptsError):
        cli.app(["--nonsense"], exit_on_error=False, print_error=False)
