"""`clipkit train` with each kind of loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import rank_jobs
import torch
from clipkit.training.config import LossConfig
from clipkit.training.objective import Objective, caption_keys
from clipkit.training.runlog import read_runlog
from rank_pool import RankPool

from clipkit.cli import main
from clipkit.losses import Pairs, clip_loss
from clipkit.scenes import SceneShards, write_shards


@dataclass(frozen=True)
class Run:
    """A run of 128 pairs a step, but for that which learns its bias first."""

    flags: list[str]
    world_size: int = 2
    num_steps: int = 8
    num_pairs: int = 128
    learns: bool = False


RUNS = {
    "ring of tiles": Run(["--loss.kernel", "tiled", "--loss.exchange", "ring"], num_steps=18, learns=True),
    "world": Run(["--loss.kernel", "dense"]),
    "group": Run(["--loss.scope", "group", "--loss.group-size", "2", "--loss.kernel", "tiled"], world_size=4),
    "sigmoid": Run(
        ["--loss.objective", "sigmoid", "--loss.kernel", "tiled", "--loss.exchange", "ring"],
        num_steps=80,
        num_pairs=32,
        learns=True,
    ),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "scenes"
    write_shards(path, SceneShards(num_train=4, num_train_objects=2_000, num_val=4, num_objects=320))
    return path


def flags(output: Path, scenes: Path, *more: str) -> list[str]:
    fixed = ["train", "--output", str(output), "--model.name", "tiny-conv", "--data.num-workers", "0"]
    fixed += ["--data.sources.objects", str(scenes / "train_objects"), "--log.every-steps", "1"]
    return [*fixed, *more]


@pytest.mark.slow
def test_every_kind_of_loss_learns_or_is_the_same_run(tmp_path: Path, scenes: Path, ranks: RankPool) -> None:
    common = ["--optim.lr", "3e-3", "--optim.warmup-steps", "6", "--optim.schedule", "constant"]
    accuracies, curves = {}, {}
    for name, run in RUNS.items():
        output = tmp_path / name
        more = [*run.flags, "--steps", str(run.num_steps)]
        more += ["--data.batch-size-per-rank", str(run.num_pairs // run.world_size)]
        if run.learns:
            more += ["--eval.zero-shot.objects", str(scenes / "objects" / "test")]
        done = ranks.run(run.world_size, rank_jobs.command, flags(output, scenes, *common, *more))
        assert done == [0] * run.world_size
        log = read_runlog(output / "runlog.jsonl")
        curves[name] = torch.tensor([line["loss_nats"] for line in log if "loss_nats" in line])
        if run.learns:
            accuracies[name] = log[-1]["objects/top1"]
            assert curves[name][-5:].mean() < 0.9 * curves[name][:5].mean(), name
    # Chance is 1 of 64, and the sigmoid loss is slower at first.
    assert accuracies["sigmoid"] > 2 / 64
    assert accuracies["ring of tiles"] > 6 / 64
    # The same run, until differences of rounding have grown.
    torch.testing.assert_close(curves["ring of tiles"][:8], curves["world"], rtol=1e-3, atol=1e-3)
    # A group of 2 has half the negatives, so its loss starts near the log of half as many pairs.
    assert curves["world"][0] - curves["group"][0] == pytest.approx(0.693, abs=0.15)
    assert curves["group"][-1] < curves["group"][0]


def test_equal_captions_have_equal_keys() -> None:
    text = torch.randint(0, 49_408, (64, 77), generator=torch.Generator().manual_seed(0))
    text[5] = text[40]
    keys = caption_keys(text)
    assert keys.dtype == torch.int64
    assert len(set(keys.tolist())) == 63
    assert keys[5] == keys[40]
    assert torch.equal(caption_keys(text[3:9]), keys[3:9])


@pytest.mark.parametrize("same_captions", ["negatives", "positives", "ignored"])
def test_equal_captions_count_as_asked(same_captions: str) -> None:
    text = torch.tensor([[1, 2], [1, 2], [3, 4]])
    features = {
        "image_features": torch.eye(3),
        "text_features": torch.eye(3)[[1, 0, 2]],
        "logit_scale": torch.tensor(2.0),
    }
    objective = Objective(config=LossConfig(same_captions=same_captions, label_smoothing=0.1), group=None)
    keys = torch.tensor([0, 0, 1])
    pairs = {
        "negatives": Pairs(),
        "positives": Pairs(positive_keys=keys),
        "ignored": Pairs(ignored_keys=keys),
    }[same_captions]
    expected = clip_loss(*features.values(), pairs=pairs, label_smoothing=0.1)
    assert float(objective(features, text)) == float(expected)
    plain = clip_loss(*features.values(), label_smoothing=0.1)
    assert (float(expected) == float(plain)) == (same_captions == "negatives")


def test_the_plan_is_printed_and_nothing_is_done(
    tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert main(flags(output, scenes, "--steps", "1", "--loss.plan", "--loss.kernel", "tiled")) == 0
    assert not output.exists()
    printed = capsys.readouterr().out
    assert "softmax loss of 256 pairs on each of 1 rank(s), 128 wide in float32" in printed
    (chosen,) = [line for line in printed.splitlines() if "→" in line and "TFLOP" not in line]
    assert "tiled" in chosen


def test_the_plan_of_four_ranks(tmp_path: Path, scenes: Path, ranks: RankPool) -> None:
    more = ["--steps", "1", "--loss.plan", "--loss.scope", "group", "--loss.group-nodes", "1"]
    arguments = flags(tmp_path / "run", scenes, *more, "--loss.exchange", "ring", "--precision", "bf16")
    (status, printed), *others = ranks.run(4, rank_jobs.command_with_output, arguments)
    assert status == 0
    assert [text for _, text in others] == [""] * 3
    rows = [line for line in printed.splitlines() if "dense" in line or "tiled" in line or "triton" in line]
    # Three kernels on the world and on pairs by two exchanges, and on each rank alone.
    assert len(rows) == 3 * (2 + 2 + 1)
    assert "128 wide in bfloat16" in printed
    # One machine is all four ranks.
    (chosen,) = [line for line in rows if "→" in line]
    assert "world" in chosen
    assert "ring" in chosen


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--loss.scope", "group"], "loss.scope=group needs one of loss.group_size and loss.group_nodes"),
        (["--loss.group-size", "2"], "no other scope takes any; got scope=world, group_size=2"),
        (
            ["--loss.scope", "group", "--loss.group-size", "2"],
            "loss.group_size=2: a group must have a size that",
        ),
        (
            ["--loss.plan", "--loss.scope", "group", "--loss.group-size", "2"],
            "loss.group_size=2: a group must have a size that divides the number of ranks, got 2 of 1 ranks",
        ),
        (["--loss.label-smoothing", "1"], "loss.label_smoothing must be in [0, 1), got 1.0"),
    ],
)
def test_settings_that_do_not_fit(
    tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    output = tmp_path / "run"
    assert main(flags(output, scenes, "--steps", "1", *more)) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not output.exists()


def test_a_kernel_that_the_device_cannot_run(
    tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    if torch.cuda.is_available():
        pytest.skip("this device can")
    assert main(flags(tmp_path / "run", scenes, "--steps", "1", "--loss.kernel", "triton")) == 2
    assert "kernel 'triton' needs a CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
