from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import broken_shards
import open_clip
import pytest
import rank_jobs
import torch
from clipkit.training import checkpoint
from clipkit.training.runlog import read_runlog
from pair_shards import write_pairs
from rank_pool import RankPool
from torch.distributed.checkpoint import FileSystemWriter

import clipkit
from clipkit.cli import main

NUM_STEPS = 24


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pairs(tmp_path_factory.mktemp("data") / "train", 72)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pairs(tmp_path_factory.mktemp("data") / "labelled", 40, labels=True)


def flags(output: Path, shards: str, *more: str) -> list[str]:
    """A short run on the tiles; of a flag that is set twice the last counts, and `-` takes it back."""
    fixed = ["--output", str(output), "--model.name", "test-vit", "--data.sources.tiles", shards]
    fixed += ["--data.batch-size-per-rank", "8", "--data.num-workers", "0", "--log.every-steps", "1"]
    settings: dict[str, list[str]] = {}
    for token in [*fixed, "--optim.warmup-steps", "2", *more]:
        if token.startswith("--"):
            name = token
            settings[name] = []
        else:
            settings[name].append(token)
    kept = {name: values for name, values in settings.items() if values != ["-"]}
    return ["train", *(token for name, values in kept.items() for token in (name, *values))]


def losses(output: Path) -> list[tuple[int, float]]:
    return [
        (line["step"], line["loss_nats"]) for line in read_runlog(output / "runlog.jsonl") if "lr" in line
    ]


def test_a_run_ends_with_a_model_directory_that_open_clip_loads(
    tmp_path: Path, shards: str, labelled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    more = ["--epochs", "2", "--eval.retrieval.val", shards, "--eval.zero-shot.tiles4", labelled]
    assert main(flags(output, shards, *more, "--optim.lr", "1e-3", "--eval.best-metric", "tiles4/top1")) == 0
    printed = capsys.readouterr()
    assert "skipped: none" in printed.out
    assert "waiting for data" in printed.out
    log = read_runlog(output / "runlog.jsonl")
    steps = [line for line in log if "loss_nats" in line]
    assert [line["step"] for line in steps] == list(range(1, 19))
    assert {"logit_scale", "grad_norm", "lr", "images_per_second", "data_wait_fraction"} <= steps[0].keys()
    assert steps[-1]["loss_nats"] < steps[0]["loss_nats"]
    evaluations = [line for line in log if "tiles4/top1" in line]
    assert [line["step"] for line in evaluations] == [9, 18]
    assert evaluations[-1]["tiles4/top1"] > 0.5
    assert evaluations[-1].keys() >= {"val/text_to_image_R@10", "val/image_to_text_mean_rank"}
    model = clipkit.load(output / "model")
    peer = open_clip.create_model(f"local-dir:{output / 'model'}").eval()
    text = model.tokenizer(["a red tile"])
    with torch.inference_mode():
        torch.testing.assert_close(model.eval().encode_text(text), peer.encode_text(text), atol=1e-6, rtol=0)
    assert "tiles4/top1" in (output / "model" / "README.md").read_text()
    assert (output / "best" / "clipkit.json").exists()


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_a_run_on_broken_shards_counts_every_bad_sample_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_workers: str
) -> None:
    folder = broken_shards.write_broken(tmp_path / "broken")
    assert broken_shards.NUM_INDEXED % 7 == 0, "an epoch would leave samples out"
    arguments = ["--data.batch-size-per-rank", "7", "--epochs", "2", "--data.num-workers", num_workers]
    assert main(flags(tmp_path / "run", str(folder), *arguments)) == 0
    counts = json.loads((tmp_path / "run" / "skipped.json").read_text())["tiles"]
    assert counts == broken_shards.BROKEN_AT_INDEX | broken_shards.BROKEN_AT_READ
    printed = capsys.readouterr().out
    for reason in counts:
        assert reason in printed


def test_the_written_configuration_repeats_the_run(tmp_path: Path, shards: str) -> None:
    assert main(flags(tmp_path / "a", shards, "--steps", "3", "--model.patch-dropout", "0.5")) == 0
    assert (
        main(["train", "--config", str(tmp_path / "a" / "config.yaml"), "--output", str(tmp_path / "b")]) == 0
    )
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_an_existing_run_is_not_overwritten(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags(tmp_path / "run", shards, "--steps", "1")
    assert main(arguments) == 0
    before = (tmp_path / "run" / "runlog.jsonl").read_text()
    assert main(arguments) == 2
    assert "--resume auto" in capsys.readouterr().err
    assert (tmp_path / "run" / "runlog.jsonl").read_text() == before


def start(arguments: list[str], world_size: int) -> subprocess.Popen[bytes]:
    """The command as a user starts it."""
    command = [sys.executable, "-m", "clipkit", *arguments]
    if world_size > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
        command = [sys.executable, *torchrun, "-m", "clipkit", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def family(pid: int) -> list[int]:
    """A process and its descendants; torchrun starts its workers in sessions of their own."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(relative for child in children for relative in family(int(child)))]


def wait_for_step(process: subprocess.Popen[bytes], output: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        path = output / "runlog.jsonl"
        if path.exists() and any(line["step"] >= step for line in read_runlog(path)):
            return
        time.sleep(0.005)
    error = process.stderr.read().decode() if process.stderr and process.poll() is not None else "no answer"
    raise AssertionError(error)


RESUMABLE = ["--steps", str(NUM_STEPS), "--checkpoint.every-steps", "4", "--model.patch-dropout", "0.5"]
RESUMABLE += ["--optim.ema-decay", "0.9", "--data.micro-batch-size-per-rank", "4"]


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 2)])
def test_a_killed_run_resumes_bit_for_bit(
    tmp_path: Path, shards: str, ranks: RankPool, world_size: int, num_workers: int
) -> None:
    workers = ["--data.num-workers", str(num_workers)]
    unbroken = flags(tmp_path / "unbroken", shards, *RESUMABLE, *workers)
    assert ranks.run(world_size, rank_jobs.command, unbroken) == [0] * world_size
    expected = losses(tmp_path / "unbroken")
    assert [step for step, _ in expected] == list(range(1, NUM_STEPS + 1))

    kill_at = random.SystemRandom().randint(5, NUM_STEPS - 5)
    output = tmp_path / "killed"
    process = start(flags(output, shards, *RESUMABLE, *workers), world_size)
    wait_for_step(process, output, kill_at)
    for pid in family(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not (output / "model").exists(), "the run had ended before it was killed"
    saved = [path.name for path in checkpoint.all_checkpoints(output / "checkpoints")]
    assert 1 <= len(saved) <= 2

    resumed = flags(output, shards, *RESUMABLE, *workers, "--resume", "auto")
    assert ranks.run(world_size, rank_jobs.command, resumed) == [0] * world_size
    assert losses(output) == expected, f"killed at {kill_at}, resumed from {saved[-1]}"
    first, second = clipkit.load(tmp_path / "unbroken" / "model"), clipkit.load(output / "model")
    assert first.model_id == second.model_id


def test_resume_with_other_workers_is_the_same_run(tmp_path: Path, shards: str) -> None:
    short = ["--steps", "6", "--checkpoint.every-steps", "3", "--optim.schedule", "constant"]
    assert main(flags(tmp_path / "unbroken", shards, *short)) == 0
    output = tmp_path / "broken"
    assert main(flags(output, shards, *short, "--steps", "3", "--data.num-workers", "1")) == 0
    assert main(flags(output, shards, *short, "--resume", "auto")) == 0
    assert losses(output) == losses(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (["--optim.lr", "0.1"], "optim.lr=0.0005, got optim.lr=0.1"),
        (["--data.batch-size-per-rank", "4"], "data.batch_size_per_rank=8"),
        (["--optim.ema-decay", "0.9"], "a run with no optim.ema_decay, got optim.ema_decay=0.9"),
    ],
)
def test_resuming_another_run_is_refused(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str], change: list[str], complaint: str
) -> None:
    short = ["--steps", "2", "--checkpoint.every-steps", "1"]
    assert main(flags(tmp_path / "run", shards, *short)) == 0
    assert main(flags(tmp_path / "run", shards, *short, *change, "--resume", "auto")) == 2
    assert complaint in capsys.readouterr().err


def test_resuming_on_another_number_of_ranks_is_refused(tmp_path: Path, shards: str, ranks: RankPool) -> None:
    arguments = flags(tmp_path / "run", shards, "--steps", "2", "--checkpoint.every-steps", "1")
    assert main(arguments) == 0
    results = ranks.run(2, rank_jobs.command_with_errors, [*arguments, "--resume", "auto"])
    for status, error in results:
        assert status == 2
        assert "written by 1 ranks" in error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_75(tmp_path: Path, shards: str, number: signal.Signals) -> None:
    output = tmp_path / "run"
    process = start(flags(output, shards, "--steps", "100000", "--data.num-workers", "1"), 1)
    wait_for_step(process, output, 3)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error.decode()
    assert "--resume auto" in error.decode()
    (saved,) = checkpoint.all_checkpoints(output / "checkpoints")
    last_step = losses(output)[-1][0]
    assert checkpoint.read_state(saved)["step"] == last_step
    assert main(flags(output, shards, "--steps", str(last_step + 2), "--resume", "auto")) == 0
    assert [step for step, _ in losses(output)] == list(range(1, last_step + 3))


def test_a_loss_that_is_not_finite_stops_before_the_update(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert main(flags(output, shards, "--steps", "20", "--optim.lr", "1e30")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    log = losses(output)
    assert all(math.isfinite(loss) for _, loss in log)
    failed = log[-1][0] + 1
    assert f"at step {failed}" in error
    keys = json.loads((output / f"nonfinite_step_{failed}_rank_0.json").read_text())
    assert len(keys["keys"]) == 8
    (saved,) = checkpoint.all_checkpoints(output / "checkpoints")
    assert checkpoint.read_state(saved)["step"] == failed - 1
    last_good = clipkit.load(output / "last_good").model.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in last_good.values())


def test_only_the_last_checkpoints_stay(tmp_path: Path, shards: str) -> None:
    arguments = ["--steps", "5", "--checkpoint.every-steps", "1", "--checkpoint.keep", "3"]
    assert main(flags(tmp_path / "run", shards, *arguments)) == 0
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step_3", "step_4", "step_5"]


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    arguments = flags(output, shards, "--steps", "4", "--checkpoint.every-steps", "1")
    write = FileSystemWriter.write_data

    def fails_at_third(writer: FileSystemWriter, *arguments: Any) -> Any:
        if "step_3" in str(writer.path):
            (Path(writer.path) / "half").write_bytes(b"x")
            raise OSError(28, "No space left on device")
        return write(writer, *arguments)

    monkeypatch.setattr(FileSystemWriter, "write_data", fails_at_third)
    assert main(arguments) == 1
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step_1", "step_2"]
    monkeypatch.setattr(FileSystemWriter, "write_data", write)
    assert main([*arguments, "--resume", "auto"]) == 0
    assert [step for step, _ in losses(output)] == [1, 2, 3, 4]


def test_fine_tuning_and_a_locked_tower(tmp_path: Path, shards: str) -> None:
    assert main(flags(tmp_path / "first", shards, "--steps", "2")) == 0
    source = tmp_path / "first" / "model"
    locks = ["--model.lock-image", "--model.lock-image-unlocked-groups", "1"]
    more = ["--steps", "2", "--model.source", str(source), "--model.name", "-"]
    assert main(flags(tmp_path / "second", shards, *more, *locks)) == 0
    before = clipkit.load(source).model.state_dict()
    after = clipkit.load(tmp_path / "second" / "model").model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "token_embedding.weight" in changed
    assert "visual.conv1.weight" not in changed
    assert not any(name.startswith("visual.transformer.resblocks.0.") for name in changed)
    assert any(name.startswith("visual.") for name in changed)


def test_how_images_are_resized_stays_with_the_model(tmp_path: Path, shards: str) -> None:
    more = ["--steps", "1", "--model.resize-mode", "longest", "--data.augment.no-random-crop"]
    assert main(flags(tmp_path / "run", shards, *more)) == 0
    assert clipkit.load(tmp_path / "run" / "model").preprocess_config.resize_mode == "longest"


@pytest.mark.parametrize(
    "more",
    [
        ["--loss.objective", "sigmoid"],
        ["--precision", "bf16", "--optim.ema-decay", "0.9"],
        ["--precision", "fp16", "--data.micro-batch-size-per-rank", "2"],
        ["--model.grad-checkpointing", "--optim.layer-decay", "0.8", "--optim.grad-clip-norm", "1.0"],
        ["--log.tensorboard"],
        ["--model.image-size", "48", "--model.context-length", "8"],
    ],
    ids=lambda more: more[0].strip("-"),
)
def test_settings_that_every_run_may_combine(tmp_path: Path, shards: str, more: list[str]) -> None:
    assert main(flags(tmp_path / "run", shards, "--steps", "3", *more)) == 0
    values = [loss for _, loss in losses(tmp_path / "run")]
    assert len(values) == 3
    assert all(math.isfinite(value) for value in values)
    clipkit.load(tmp_path / "run" / "model")


def test_micro_batches_change_nothing_but_memory(tmp_path: Path, shards: str) -> None:
    for name, micro in (("whole", "8"), ("parts", "2")):
        arguments = ["--steps", "4", "--data.micro-batch-size-per-rank", micro]
        assert main(flags(tmp_path / name, shards, *arguments)) == 0
    whole, parts = (torch.tensor(losses(tmp_path / name)) for name in ("whole", "parts"))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_two_ranks_are_one_run(
    tmp_path: Path, shards: str, ranks: RankPool, parallel: str, objective: str
) -> None:
    common = ["--steps", "4", "--loss.objective", objective, "--optim.grad-clip-norm", "0.5"]
    common += ["--optim.ema-decay", "0.5"]
    assert main(flags(tmp_path / "one", shards, *common, "--data.batch-size-per-rank", "8")) == 0
    two = [*common, "--data.batch-size-per-rank", "4", "--parallel", parallel]
    two += ["--data.micro-batch-size-per-rank", "2", "--checkpoint.every-steps", "2"]
    assert ranks.run(2, rank_jobs.command, flags(tmp_path / "two", shards, *two)) == [0, 0]
    one_curve, two_curve = (torch.tensor(losses(tmp_path / name)) for name in ("one", "two"))
    torch.testing.assert_close(one_curve, two_curve, rtol=1e-4, atol=1e-4)
    expected = clipkit.load(tmp_path / "one" / "model").model.state_dict()
    for name, tensor in clipkit.load(tmp_path / "two" / "model").model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_evaluation_is_equal_on_one_and_four_ranks(
    shards: str, labelled: str, ranks: RankPool, parallel: str
) -> None:
    # 72 and 40 samples in batches of 7: the ranks have different numbers of batches.
    (alone,) = ranks.run(1, rank_jobs.evaluation, shards, labelled, parallel)
    assert {"val/text_to_image_R@1", "tiles4/top1"} <= alone.keys()
    assert ranks.run(4, rank_jobs.evaluation, shards, labelled, parallel) == [alone] * 4


def test_batch_norm_evaluates_and_resumes_as_one_model_on_two_ranks(
    tmp_path: Path, shards: str, ranks: RankPool
) -> None:
    more = ["--model.name", "tiny-conv", "--eval.retrieval.val", shards, "--eval.every-steps", "2"]
    more += ["--checkpoint.every-steps", "3", "--optim.schedule", "constant", "--model.patch-dropout", "-"]
    for parallel in ("ddp", "fsdp"):
        whole, parts = tmp_path / f"{parallel}-whole", tmp_path / f"{parallel}-parts"
        common = [*more, "--parallel", parallel]
        assert ranks.run(2, rank_jobs.command, flags(whole, shards, *common, "--steps", "6")) == [0, 0]
        assert ranks.run(2, rank_jobs.command, flags(parts, shards, *common, "--steps", "3")) == [0, 0]
        resumed = flags(parts, shards, *common, "--steps", "6", "--resume", "auto")
        assert ranks.run(2, rank_jobs.command, resumed) == [0, 0]
        lines = [read_runlog(run / "runlog.jsonl") for run in (whole, parts)]
        recalls = [{n["step"]: n for n in log if "val/text_to_image_mean_rank" in n} for log in lines]
        assert set(recalls[0]) == {2, 4, 6}
        assert recalls[0][4] == recalls[1][4]
        assert losses(whole) == losses(parts)
        first, second = clipkit.load(whole / "model"), clipkit.load(parts / "model")
        assert first.model_id == second.model_id


def test_fp16_with_sharding_and_the_sigmoid_loss(tmp_path: Path, shards: str, ranks: RankPool) -> None:
    more = ["--precision", "fp16", "--parallel", "fsdp", "--loss.objective", "sigmoid", "--steps", "2"]
    more += ["--model.name", "tiny-conv"]
    assert ranks.run(2, rank_jobs.command, flags(tmp_path / "run", shards, *more)) == [0, 0]


def test_resuming_on_other_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_pairs(tmp_path / "data", 32)
    assert main(flags(tmp_path / "run", data, "--steps", "2")) == 0
    (tmp_path / "data" / "00001.tar").unlink()
    assert main(flags(tmp_path / "run", data, "--steps", "4", "--resume", "auto")) == 2
    assert "source 'tiles' is not what it was" in capsys.readouterr().err


def test_a_table_with_column_names_of_its_own(tmp_path: Path) -> None:
    rows = ["picture\twords"]
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(broken_shards.encode(broken_shards.photo(number)))
        rows.append(f"{number}.jpg\tpicture number {number}")
    table = tmp_path / "pairs.tsv"
    table.write_text("\n".join(rows))
    columns = ["--data.image-column", "picture", "--data.caption-column", "words"]
    assert main(flags(tmp_path / "run", str(table), *columns, "--steps", "1")) == 0
    assert json.loads((tmp_path / "run" / "skipped.json").read_text()) == {"tiles": {}}


def test_labels_without_a_class_name_are_refused(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = write_pairs(tmp_path / "labelled", 8, labels=True)
    (tmp_path / "labelled" / "classnames.txt").write_text("red\ngreen\n")
    assert main(flags(tmp_path / "run", shards, "--steps", "1", "--eval.zero-shot.t", labelled)) == 2
    assert "labels must be 0 to 1 for 2 class names" in capsys.readouterr().err


def test_what_evaluation_cannot_use_is_reported(tmp_path: Path, shards: str) -> None:
    broken = str(broken_shards.write_broken(tmp_path / "broken"))
    assert main(flags(tmp_path / "run", shards, "--steps", "1", "--eval.retrieval.val", broken)) == 0
    counts = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert counts == {"tiles": {}, "val": broken_shards.BROKEN_AT_INDEX | broken_shards.BROKEN_AT_READ}


@pytest.mark.parametrize(
    ("change", "complaint", "status"),
    [
        (["--model.name", "ViT-B-23"], "ViT-B-32", 2),
        (["--data.sources.tiles", "/no/such/{00..03}.tar"], "/no/such", 1),
        (["--data.batch-size-per-rank", "4096"], "4096", 2),
        (["--eval.retrieval.val", "/nowhere"], "/nowhere", 1),
        (["--model.lock-image", "--model.lock-text"], "nothing to train", 2),
        (["--eval.retrieval.val", "x", "--eval.best-metric", "val/R@1"], "val/", 2),
        (["--model.source", "/no/such/model"], "/no/such/model", 2),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    shards: str,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    complaint: str,
    status: int,
) -> None:
    assert main(flags(tmp_path / "run", shards, "--steps", "1", *change)) == status
    error = capsys.readouterr().err
    if status:
        assert complaint in error
        assert error.count("\n") == 1, error
        assert not (tmp_path / "run").exists()
