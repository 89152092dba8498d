"""`clipkit embed`: what is in the folder, and that it is the same however often a run is broken off."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import embed_jobs
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from broken_shards import (
    BROKEN_AT_INDEX,
    BROKEN_AT_READ,
    NUM_GOOD,
    NUM_INDEXED,
    encode,
    photo,
    write_broken,
    write_tar,
)
from clipkit.retrieval import embed_folder, embed_towers
from clipkit.retrieval.store import EmbeddingFolder
from clipkit.retrieval.write_lock import write_lock
from embed_jobs import BAD, NUM_PAIRS, contents, image_rows, run_embed, text_rows, write_folder, write_pairs
from rank_pool import RankPool
from small_models import small_model

import clipkit
from clipkit.cli import main
from clipkit.data.problems import describe_counts

GOOD = [number for number in range(NUM_PAIRS) if number not in BAD]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embed")


@pytest.fixture(scope="module")
def model(root: Path) -> str:
    small_model().save(root / "model")
    return str(root / "model")


@pytest.fixture(scope="module")
def pairs(root: Path) -> Path:
    return write_pairs(root / "pairs")


@pytest.fixture(scope="module")
def whole(root: Path, pairs: Path, model: str) -> Path:
    """What an unbroken run gives."""
    report = run_embed(pairs, model, root / "whole")
    assert report is not None
    assert (report.num_partitions, report.num_partitions_kept) == (5, 0)
    return root / "whole"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are split over threads, so the last bits of an embedding can depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def captions_of(number: int) -> list[str]:
    return [f"picture {number} said {way}" for way in "abc"[: number % 3 + 1]]


def test_files_have_the_names_and_types_of_clip_retrieval(whole: Path) -> None:
    names = {name for name in contents(whole) if not name.startswith(("stats/", "more_text_emb/"))}
    files = {"img_emb": "npy", "text_emb": "npy", "metadata": "parquet"}
    expected = {f"{name}/{name}_{i}.{extension}" for name, extension in files.items() for i in range(5)}
    assert names == expected | {"clipkit.json", "failed.parquet"}
    array = np.load(whole / "img_emb" / "img_emb_1.npy")
    assert (array.dtype, array.shape) == (np.float16, (4, 16))
    table = pq.read_table(whole / "metadata" / "metadata_1.parquet")
    assert table.column_names == [
        "image_path", "caption", "more_captions", "shard", "url", "size.width", "size.height"
    ]  # fmt: skip


def test_rows_are_those_of_the_model(whole: Path, pairs: Path, model: str) -> None:
    folder = EmbeddingFolder.open(whole)
    assert folder.num_rows == len(GOOD)
    assert folder.model_id == clipkit.load(model).model_id
    assert folder.image_embeddings is not None
    assert folder.text_embeddings is not None
    assert folder.more_text_embeddings is not None
    images = np.concatenate(list(folder.image_embeddings.blocks()))
    np.testing.assert_allclose(images, image_rows(model, GOOD), atol=1e-3)
    texts = np.concatenate(list(folder.text_embeddings.blocks()))
    np.testing.assert_allclose(texts, text_rows(model, [captions_of(n)[0] for n in GOOD]), atol=1e-3)
    more = [(row, text) for row, n in enumerate(GOOD) for text in captions_of(n)[1:]]
    assert folder.rows_of_more_texts().tolist() == [row for row, _ in more]
    further = folder.more_text_embeddings.read(0, len(more))
    np.testing.assert_allclose(further, text_rows(model, [text for _, text in more]), atol=1e-3)

    table = folder.metadata(range(folder.num_rows)).to_pydict()
    assert table["image_path"] == [f"{number:09d}" for number in GOOD]
    assert table["shard"] == [str(pairs / f"{int(number > 10):05d}.tar") for number in GOOD]
    assert [[a, *b] for a, b in zip(table["caption"], table["more_captions"], strict=True)] == [
        captions_of(number) for number in GOOD
    ]
    assert table["url"] == [f"https://x/{number}" for number in GOOD]
    assert table["size.width"] == [24] * len(GOOD)


def test_what_could_not_be_used_is_listed(whole: Path) -> None:
    failed = pq.read_table(whole / "failed.parquet").to_pylist()
    assert [(one["sample"], one["reason"]) for one in failed] == list(BAD.items())
    assert failed[0]["place"] == "00000.tar: 000000004"
    manifest = json.loads((whole / "clipkit.json").read_text())
    assert manifest["failed"] == {"corrupt image": 1, "empty file": 1, "missing caption": 1}
    assert manifest["embedded"] == ["image", "text"]
    assert (manifest["num_rows"], manifest["num_samples"], manifest["complete"]) == (20, 23, True)
    sums = {name: embed_folder.sha256_of(whole / name) for name in manifest["files"]}
    assert sums == manifest["files"]
    assert len(sums) == 5 * 4


def test_any_number_of_ranks_and_workers_writes_the_same_bytes(
    ranks: RankPool, pairs: Path, model: str, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    made = {}
    for size in (1, 2, 3):
        out = tmp_path / str(size)
        answers = ranks.run(size, embed_jobs.embed_here, str(pairs), model, str(out), cache)
        assert answers == [5] + [None] * (size - 1)
        made[size] = contents(out)
    assert made[1] == made[2] == made[3]
    out = tmp_path / "again"
    ranks.run(2, embed_jobs.embed_here, str(pairs), model, str(out), cache)
    (out / "img_emb" / "img_emb_3.npy").write_bytes(b"damaged")
    (out / "stats" / "4.json").unlink()
    assert ranks.run(3, embed_jobs.embed_here, str(pairs), model, str(out), cache) == [2, None, None]
    assert contents(out) == made[1]


def test_workers_write_the_same_bytes(whole: Path, pairs: Path, model: str, tmp_path: Path) -> None:
    run_embed(pairs, model, tmp_path / "out", num_workers=2)
    assert contents(tmp_path / "out") == contents(whole)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_broken_off_at_any_file_goes_on(
    pairs: Path, model: str, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    real = embed_folder.write_whole
    countdown = 0

    def write_whole(path: Path, write: Any) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown < 0:
            if moment == "before":
                path.with_name(f".{path.name}.0123.tmp").write_bytes(b"the beginning of")
            else:
                real(path, write)
            raise Killed
        real(path, write)

    def run(out: Path) -> int:
        report = run_embed(pairs, model, out, write_batch_size=8, batch_size=4)
        assert report is not None
        return report.num_partitions_kept

    run(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    num_files = len(whole) + 1  # the manifest is written twice
    monkeypatch.setattr(embed_folder, "write_whole", write_whole)
    num_kept = []
    for written in range(num_files):
        out = tmp_path / f"{written}"
        countdown = written
        with pytest.raises(Killed):
            run(out)
        countdown = num_files
        num_kept.append(run(out))
        assert contents(out) == whole
    assert sorted(num_kept) == num_kept
    assert set(num_kept) == {0, 1, 2, 3}


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"

    def write(partial: Path, during: Any = None) -> None:
        with partial.open("wb") as stream:
            stream.write(b"one ")
            if during is not None:
                during()
                assert path.read_bytes() == b"one and all"
            stream.write(b"and all")

    embed_folder.write_whole(
        path, lambda partial: write(partial, lambda: embed_folder.write_whole(path, write))
    )
    assert path.read_bytes() == b"one and all"
    assert [file.name for file in tmp_path.iterdir()] == ["x.npy"]


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from clipkit.retrieval import embed_folder

    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    path = Path(sys.argv[1])
    try:
        rows = np.zeros((99, 99), "f2")
        embed_folder.write_whole(path, lambda partial: embed_folder._save_npy(partial, rows))
    except OSError as error:
        print(error)
"""


def test_a_disk_that_takes_a_part_is_said_with_the_file(tmp_path: Path) -> None:
    """By numpy, which names no file."""
    path = tmp_path / "img_emb_0.npy"
    script = textwrap.dedent(FULL_DISK)
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert re.fullmatch(
        rf"cannot write {re.escape(str(path))}: 9801 requested and \d+ written\n", done.stdout
    )
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_goes_on(model: str, tmp_path: Path, one_thread: None) -> None:
    members: dict[str, bytes] = {}
    for number in range(400):
        members |= {f"{number:06d}.jpg": encode(photo(number)), f"{number:06d}.txt": b"text %d" % number}
    location = write_tar(tmp_path / "many.tar", members)
    run_embed(location, model, tmp_path / "whole", write_batch_size=8, batch_size=3)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "clipkit", "embed", str(location), "--model", model, "--quiet"]
    command += ["--write-batch-size", "8", "--batch-size", "3", "--num-workers", "1", "--out", str(out)]

    def start() -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)

    process = start()
    while process.poll() is None and len(list(out.glob("stats/*.json"))) < 3:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 3 <= len(list(out.glob("stats/*.json"))) < 50
    process = start()
    printed, _ = process.communicate()
    assert process.returncode == 0
    assert b"400 rows (image and text) of 400 samples in 50 partitions, " in printed
    assert b"of them from before" in printed
    killed, whole = contents(out), contents(tmp_path / "whole")
    # The command names the model in the manifest; else the two have been asked for the same.
    named = json.loads(killed.pop("clipkit.json"))
    assert named.pop("model") == model
    assert named == {k: v for k, v in json.loads(whole.pop("clipkit.json")).items() if k != "model"}
    assert killed == whole


def test_a_finished_folder_is_left_as_it_is(whole: Path, pairs: Path, model: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*/*")}
    report = run_embed(pairs, model, whole)
    assert report is not None
    assert report.num_partitions_kept == 5
    assert {path: path.stat().st_mtime_ns for path in whole.glob("*/*")} == before
    assert "5 partitions, 5 of them from before" in report.to_text()
    assert "samples/s" not in report.to_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "was made with precision fp32, this run has bf16"),
        ({"batch_size": 3}, "was made with batch_size 2, this run has 3"),
        ({"embed": "image"}, r"was made with embedded \['image', 'text'\], this run has \['image'\]"),
    ],
)
def test_other_settings_are_refused(
    whole: Path, pairs: Path, model: str, options: dict[str, Any], message: str
) -> None:
    before = contents(whole)
    with pytest.raises(ValueError, match=message) as caught:
        run_embed(pairs, model, whole, **options)
    assert "\n" not in str(caught.value)
    assert contents(whole) == before


def test_another_model_or_source_is_refused(
    whole: Path, pairs: Path, model: str, root: Path, tmp_path: Path
) -> None:
    small_model(7).save(tmp_path / "other")
    with pytest.raises(ValueError, match="was made with model_id"):
        run_embed(pairs, str(tmp_path / "other"), whole)
    with pytest.raises(ValueError, match="was made with source"):
        run_embed(write_pairs(tmp_path / "pairs"), model, whole)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and has no clipkit.json"):
        run_embed(pairs, model, tmp_path / "full")
    with pytest.raises(ValueError, match=r"its clipkit.json is of something else"):
        run_embed(pairs, model, tmp_path / "other")
    with pytest.raises(ValueError, match="is a file"):
        run_embed(pairs, model, tmp_path / "full" / "notes.txt")


def test_data_that_changed_are_refused(model: str, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    folder = write_folder(tmp_path / "folder", images=True, captions=True)
    run_embed(pairs, model, tmp_path / "of-pairs")
    run_embed(folder, model, tmp_path / "of-folder")
    write_tar(pairs / "00001.tar", {f"{n}.jpg": encode(photo(n)) for n in range(12)})
    (folder / "deep" / "x2.jpg").rename(folder / "deep" / "x3.jpg")
    (folder / "deep" / "x2.txt").rename(folder / "deep" / "x3.txt")
    for source, out in ((pairs, "of-pairs"), (folder, "of-folder")):
        with pytest.raises(ValueError, match="source_fingerprint"):
            run_embed(source, model, tmp_path / out, embed="both")


def test_a_partition_without_rows_has_no_files(model: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "data", images=True, captions=True)
    (source / "deep" / "x1.jpg").write_bytes(b"")
    run_embed(source, model, tmp_path / "out", write_batch_size=1)
    names = [path.name for path in sorted((tmp_path / "out").glob("*/*.*"))]
    assert names == [
        "img_emb_0.npy", "img_emb_2.npy", "metadata_0.parquet", "metadata_2.parquet", "more_text_emb_0.npy",
        "more_text_emb_2.npy", "0.json", "1.json", "2.json", "text_emb_0.npy", "text_emb_2.npy",
    ]  # fmt: skip
    assert EmbeddingFolder.open(tmp_path / "out").num_rows == 2
    report = run_embed(source, model, tmp_path / "out", write_batch_size=1)
    assert report is not None
    assert report.num_partitions_kept == 3


def test_the_command(pairs: Path, model: str, whole: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["embed", str(pairs), "--model", model, "--batch-size", "2", "--write-batch-size", "5"]
    arguments += ["--out", str(tmp_path / "out"), "--num-workers", "0", "--quiet"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    first, second, third = captured.out.splitlines()
    assert first == f"{tmp_path / 'out'}: 20 rows (image and text) of 23 samples in 5 partitions"
    assert "samples/s; the bottleneck was" in second
    assert third.startswith("not embedded: 1 corrupt image, 1 empty file, 1 missing caption; listed in ")
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["num_rows"], facts["num_partitions_kept"], facts["embedded"]) == (20, 5, ["image", "text"])
    assert contents(tmp_path / "out").keys() == contents(whole).keys()


def test_shards_with_every_kind_of_damage(model: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    source = write_broken(tmp_path / "data")
    arguments = ["embed", str(source), "--model", model, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*arguments, "--num-workers", "0"]) == 0
    first, _, third, fourth = capsys.readouterr().out.splitlines()
    # Two samples have no caption file; with images, that is found when they are read.
    assert f"{NUM_GOOD} rows (image and text) of {NUM_INDEXED + 2} samples" in first
    expected = Counter(BROKEN_AT_READ)
    expected["missing caption"] += expected.pop("empty caption") + BROKEN_AT_INDEX["missing caption"]
    assert third.startswith(f"not embedded: {describe_counts(expected)}; listed in")
    assert fourth.startswith("found by the index: 1 missing image, 1 truncated tar; examples in")
    failed = pq.read_table(tmp_path / "out" / "failed.parquet").to_pylist()
    assert Counter(one["reason"] for one in failed if one["sample"] is not None) == expected
    assert [(one["reason"], one["place"]) for one in failed if one["sample"] is None] == [
        ("missing image", "00001.tar: no-image"),
        ("truncated tar", "00002.tar"),
    ]


def test_nothing_embedded_is_a_failure(model: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    source = tmp_path / "data"
    source.mkdir()
    (source / "x.jpg").write_bytes(b"no picture")
    arguments = ["embed", str(source), "--model", model, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*arguments, "--num-workers", "0"]) == 1
    assert "0 rows (image) of 1 samples" in capsys.readouterr().out
    (source / "x.jpg").unlink()
    assert main(["embed", str(source), "--model", model, "--out", str(tmp_path / "o2"), "--quiet"]) == 2
    assert "nothing usable in source 'data'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--num-workers", "-1"], "--num-workers must be at least 0, got -1"),
        (["--embed", "pictures"], "pictures"),
    ],
)
def test_requests_that_are_wrong_are_one_line(arguments: list[str], message: str, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["embed", "nowhere", "--model", "m", "--out", "o", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_embeddings_that_are_not_finite_are_refused(
    pairs: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = embed_towers._stored
    monkeypatch.setattr(embed_towers, "_stored", lambda features: real(features) / 0)
    with pytest.raises(
        ValueError, match="img_emb: the embedding of 000000000 is not finite: give --precision"
    ):
        run_embed(pairs, model, tmp_path / "out")


def test_two_runs_do_not_write_to_one_folder(pairs: Path, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with write_lock(out / ".lock"), pytest.raises(OSError, match=r"another process is writing to .*/out"):
        run_embed(pairs, model, out)
    assert contents(out) == {}
    run_embed(pairs, model, out)
    before = contents(out)
    assert not [name for name in before if "lock" in name]
    with write_lock(out / ".lock"), pytest.raises(OSError, match="another process is writing to"):
        run_embed(pairs, model, out)
    assert contents(out) == before


def test_a_disk_that_is_full_ends_the_run(
    pairs: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, rows: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embed_folder, "_save_npy", full)
    with pytest.raises(OSError, match="No space left"):
        run_embed(pairs, model, tmp_path / "out")
    with pytest.raises(ValueError, match="is not finished"):
        EmbeddingFolder.open(tmp_path / "out")
