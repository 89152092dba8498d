"""`clipkit embed --engine ray` writes what `clipkit embed` writes, and survives the loss of a worker."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from clipkit.retrieval import embed_ray
from clipkit.retrieval.embed import Job
from clipkit.retrieval.embed_ray import embed_with_ray
from clipkit.retrieval.embed_settings import EmbedSettings, RaySettings
from embed_jobs import contents, run_embed, write_pairs
from small_models import small_model

import clipkit
from clipkit.cli import main

SETTINGS = EmbedSettings(write_batch_size=5, batch_size=2)


def files(folder: Path) -> dict[str, object]:
    """Every byte, but for where the model came from."""
    found = contents(folder)
    manifest = json.loads(found.pop("clipkit.json"))
    del manifest["model"]
    return {**found, "clipkit.json": manifest}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    small_model().save(folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, pairs: Path, model: str) -> Path:
    """What one process with one thread writes."""
    out = tmp_path_factory.mktemp("local") / "out"
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_embed(pairs, model, out)
    torch.set_num_threads(num_threads)
    return out


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    """Ray on this machine with room for two workers of one thread."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'clipkit[ray]'")
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_workers_write_the_same_bytes_and_go_on(
    pairs: Path, model: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    two = RaySettings(ray_workers=2)
    relative = os.path.relpath(pairs), os.path.relpath(model)
    report = embed_with_ray(*relative, Path("out"), SETTINGS, two, num_workers=0)
    assert files(tmp_path / "out") == files(local)
    assert (report.num_partitions, report.num_partitions_kept, report.num_samples) == (5, 0, 23)
    assert report.rates["samples_per_second"] > 0
    assert report.manifest["complete"]

    (tmp_path / "out" / "img_emb" / "img_emb_3.npy").write_bytes(b"damaged")
    (tmp_path / "out" / "stats" / "0.json").unlink()
    report = embed_with_ray(*relative, Path("out"), SETTINGS, two, num_workers=1)
    assert (report.num_partitions, report.num_partitions_kept) == (5, 3)
    assert files(tmp_path / "out") == files(local)
    assert embed_with_ray(*relative, Path("out"), SETTINGS, two).num_partitions_kept == 5


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_more_workers_than_cores_do_not_wait_for_each_other(
    pairs: Path, model: str, local: Path, tmp_path: Path
) -> None:
    four = RaySettings(ray_workers=4)
    embed_with_ray(str(pairs), model, tmp_path / "out", SETTINGS, four, num_workers=0)
    assert files(tmp_path / "out") == files(local)


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_a_partition_of_a_lost_worker_is_made_again(
    pairs: Path, model: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed"

    class Mortal(embed_ray.Worker):
        def make(self, partition: int) -> torch.Tensor:
            if partition == 1 and not killed.exists():
                killed.touch()
                os._exit(1)
            return super().make(partition)

    monkeypatch.setattr(embed_ray, "Worker", Mortal)
    two = RaySettings(ray_workers=2)
    embed_with_ray(str(pairs), model, tmp_path / "out", SETTINGS, two, num_workers=0)
    assert killed.exists()
    assert files(tmp_path / "out") == files(local)


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_an_error_of_a_worker_is_one_line(
    pairs: Path, model: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(local, out)
    for name in ("img_emb", "stats"):
        shutil.rmtree(out / name)
    (out / "img_emb").write_text("in the way")
    arguments = ["embed", str(pairs), "--model", model, "--out", str(out), "--engine", "ray", "--quiet"]
    arguments += ["--write-batch-size", "5", "--batch-size", "2", "--num-workers", "0"]
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clipkit: [Errno 17] File exists")
    (out / "img_emb").unlink()
    assert main(arguments) == 0
    assert "20 rows (image and text) of 23 samples in 5 partitions" in capsys.readouterr().out
    assert files(out) == files(local)


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'clipkit[ray]'")
    with pytest.raises(OSError, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused"):  # noqa: SIM117
        with embed_ray._connected("127.0.0.1:1"):
            pass


def test_a_machine_with_another_model_or_other_data_is_refused(
    pairs: Path, model: str, tmp_path: Path
) -> None:
    facts = Job.open(str(pairs), clipkit.load(model), tmp_path, SETTINGS).facts
    embed_ray.Worker(str(pairs), model, tmp_path, SETTINGS, facts, 0).open()
    for name in ("model_id", "source_fingerprint"):
        worker = embed_ray.Worker(str(pairs), model, tmp_path, SETTINGS, {**facts, name: "f" * 64}, 0)
        with pytest.raises(ValueError, match=f"has {name} .* but this run ffff.*same data and model"):
            worker.open()


@pytest.mark.parametrize(
    ("machines", "wanted", "expected"),
    [
        ([{"CPU": 8.0}], None, (1, 8, 0)),
        ([{"CPU": 8.0}], 3, (3, 2, 0)),
        ([{"CPU": 2.0}], 4, (4, 0.5, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}, {"CPU": 0.0}, {}], None, (2, 4, 0)),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 64.0}], None, (4, 4, 1)),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}], 10, (10, 2, 0.5)),
        ([{"CPU": 16.0, "GPU": 8.0}] * 100, None, (50, 2, 1)),
    ],
)
def test_workers_fit_the_machines(
    machines: list[dict[str, float]], wanted: int | None, expected: tuple[float, ...]
) -> None:
    share = embed_ray._share(machines, wanted, 50)
    assert (share.count, share.num_cpus, share.num_gpus) == expected


def test_what_cannot_be_is_refused(
    pairs: Path,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="no CPU to run on"):
        embed_ray._share([{"CPU": 0.0}, {}], None, 50)
    arguments = ["embed", str(pairs), "--model", model, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*arguments, "--ray-workers", "2"]) == 2
    assert "need --engine ray" in capsys.readouterr().err
    assert main([*arguments, "--engine", "ray", "--ray-workers", "0"]) == 2
    assert "--ray-workers must be at least 1" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    assert main([*arguments, "--engine", "ray"]) == 1
    assert "pip install 'clipkit[ray]'" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*arguments, "--engine", "ray"]) == 2
    assert "without torchrun" in capsys.readouterr().err
