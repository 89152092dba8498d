import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from broken_shards import (
    BROKEN_AT_INDEX,
    BROKEN_AT_READ,
    NUM_GOOD,
    NUM_INDEXED,
    encode,
    photo,
    sample,
    write_broken,
    write_good,
    write_tar,
)
from clipkit.training.data.batches import choose_caption
from loader_jobs import count_on_ranks, loader, take
from PIL import Image

from clipkit.data.evaluation import build_eval_loader, open_eval_source
from clipkit.data.samples import SampleKeys
from clipkit.data.sources import open_source


@pytest.fixture
def good(tmp_path):
    return open_source("good", write_good(tmp_path / "good"))  # 60 samples


@pytest.fixture
def broken(tmp_path):
    return open_source("broken", write_broken(tmp_path / "broken"))


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch["key"] == other["key"]
        assert torch.equal(batch["image"], other["image"])
        assert torch.equal(batch["text"], other["text"])


def test_batch_contents(good):
    (batch,) = take(loader(good, batch=7), 1)
    assert batch["image"].shape == (7, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8
    assert batch["text"].shape == (7, 24)
    assert batch["text"].dtype == torch.int64
    for key, row in zip(batch["key"], batch["text"], strict=True):
        assert bytes(row[row > 0].tolist()).decode()[:-2] == key  # captions are `KEY a`, `KEY b`, `KEY c`


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_do_not_change_the_stream(good, broken, num_workers):
    options = {"weights": {"good": 1.5}, "shuffle_window_samples": 32}
    alone = take(loader(good, broken, **options), 25)  # more than two epochs
    assert_equal(alone, take(loader(good, broken, num_workers=num_workers, **options), 25))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_one_stream(good, broken, world):
    whole = take(loader(good, broken, batch=12), 12)
    parts = [take(loader(good, broken, batch=12 // world, rank=r, world=world), 12) for r in range(world)]
    for number, batch in enumerate(whole):
        assert batch["key"] == [key for part in parts for key in part[number]["key"]]
        assert torch.equal(batch["image"], torch.cat([part[number]["image"] for part in parts]))
        assert torch.equal(batch["text"], torch.cat([part[number]["text"] for part in parts]))


@pytest.mark.parametrize("start", [1, 6, 13])
def test_a_stream_from_step_k_is_the_rest_of_the_unbroken_one(good, broken, start):
    unbroken = take(loader(good, broken), 16)
    assert_equal(unbroken[start:], take(loader(good, broken, start_step=start, num_workers=2), 16 - start))


def test_an_epoch_has_every_sample_and_the_next_another_order(good):
    epochs = loader(good, batch=20)
    assert (epochs.num_samples_per_epoch, epochs.num_batches_per_epoch, epochs.batch_size_total) == (
        60,
        3,
        20,
    )
    batches = take(epochs, 6)
    first, second = ([key for batch in part for key in batch["key"]] for part in (batches[:3], batches[3:]))
    assert len(set(first)) == 60
    assert set(first) == set(second)
    assert first != second


def test_captions_are_drawn_evenly_and_anew_in_every_epoch(good):
    batches = take(loader(good, batch=60), 30)
    letters = [bytes(row[row > 0].tolist())[-1:] for batch in batches for row in batch["text"]]
    assert {letter: abs(letters.count(letter) - 600) < 80 for letter in letters} == {
        b"a": True,
        b"b": True,
        b"c": True,
    }


def test_caption_policies():
    captions = ("first", "the longest one", "last")
    assert choose_caption(captions, "first", 2) == "first"
    assert choose_caption(captions, "longest", 0) == "the longest one"
    assert [choose_caption(captions, "random", chance) for chance in (0, 1, 2, 3)] == [*captions, "first"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_counts_of_broken_samples_are_exact(broken, num_workers):
    steps = loader(broken, batch=7, num_workers=num_workers)
    assert steps.num_samples_per_epoch == NUM_INDEXED == 42
    batches = take(steps, 6)
    expected = dict(sorted({**BROKEN_AT_INDEX, **BROKEN_AT_READ}.items()))
    assert steps.skip_report().counts == {"broken": expected}
    assert steps.skip_report().examples["broken"]["empty file"] == ["00001.tar: zero-bytes"]
    assert all(batch["image"].shape == (7, 3, 16, 16) for batch in batches)
    used = {key for batch in batches for key in batch["key"]}
    assert len(used) == NUM_GOOD
    take(steps, 12)  # seen again, counted once
    assert steps.skip_report().counts == {"broken": expected}


def test_summary_in_words(good, broken):
    steps = loader(good, broken)
    assert (
        steps.skip_report().summary()
        == "skipped in broken: 2 missing caption, 1 missing image, 1 truncated tar"
    )
    assert loader(good).skip_report().summary() == "skipped: none"


def test_skip_state_goes_through_json(broken):
    import json

    whole = loader(broken, batch=7)
    take(whole, 6)
    first = loader(broken, batch=7)
    take(first, 3)
    rest = loader(broken, batch=7, start_step=3)
    rest.load_skip_state(json.loads(json.dumps(first.skip_state())))
    take(rest, 3)
    assert rest.skip_report().counts == whole.skip_report().counts


@pytest.mark.parametrize("world", [1, 2])
def test_counts_over_ranks(ranks, tmp_path, world):
    folder = write_broken(tmp_path / "broken")
    expected = dict(sorted({**BROKEN_AT_INDEX, **BROKEN_AT_READ}.items()))
    found = ranks.run(world, count_on_ranks, str(folder), str(tmp_path / "cache"))
    assert found == [{"broken": expected}] * world


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_source_with_nothing_usable_is_an_error(tmp_path, good, num_workers):
    members = {}
    for number in range(2_000):
        members |= {f"{number}.jpg": b"<html>", f"{number}.txt": b"x"}
    bad = open_source("bad", write_tar(tmp_path / "bad.tar", members))
    with pytest.raises(
        ValueError, match=r"1,000 samples drawn in a row from source 'bad' were unusable \(.*not an image"
    ) as caught:
        take(loader(good, bad, num_workers=num_workers), 1)
    assert "\n" not in str(caught.value)

    few = open_source("few", write_tar(tmp_path / "few.tar", dict(list(members.items())[:6])))
    with pytest.raises(ValueError, match=r"nothing usable in source 'few' \(3 not an image\)"):
        take(loader(few, batch=1, num_workers=num_workers), 1)

    empty = open_source("empty", write_tar(tmp_path / "empty.tar", {}))
    with pytest.raises(ValueError, match="nothing usable in source 'empty'"):
        loader(good, empty)


def test_one_good_sample_among_many_bad_is_enough(tmp_path):
    members = sample("good")
    for number in range(30):
        members |= {f"{number}.jpg": b"", f"{number}.txt": b"x"}
    steps = loader(open_source("a", write_tar(tmp_path / "a.tar", members)), batch=31)
    assert take(steps, 1)[0]["key"] == ["good"] * 31
    assert steps.skip_report().counts == {"a": {"empty file": 30}}


def test_fewer_samples_than_a_batch(good):
    with pytest.raises(ValueError, match=r"60 samples does not fill one batch of 4 rank\(s\) x 16 samples"):
        loader(good, batch=16, world=4)
    assert take(loader(good, batch=60, num_workers=4), 2)[1]["image"].shape[0] == 60


def test_a_vanished_shard_is_one_line(tmp_path):
    folder = write_good(tmp_path / "gone", num_shards=1)
    source = open_source("gone", folder)
    (folder / "0.tar").unlink()
    from clipkit.data import files

    files._open.cache_clear()
    with pytest.raises(OSError, match=r"No such file .*gone/0.tar"):
        take(loader(source, num_workers=2), 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_run_s_generator_is_left_alone(good, num_workers):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    take(loader(good, num_workers=num_workers), 2)
    assert torch.equal(torch.get_rng_state(), before)


SIGNALLED = """
    import os, signal, sys
    import torch
    sys.path[:0] = [{tests!r}]
    from clipkit.data.sources import open_source
    from loader_jobs import loader

    main, set_num_threads = os.getpid(), torch.set_num_threads

    def signalled_at_start(number):  # what every worker calls before it calls anything of ours
        if os.getpid() != main:
            os.kill(os.getpid(), {number})
        set_num_threads(number)

    torch.set_num_threads = signalled_at_start
    stopped = []
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), lambda *_: stopped.append(1))
    steps = iter(loader(open_source("a", {folder!r}), batch=5, num_workers=2))
    next(steps)
    os.killpg(os.getpgrp(), {number})
    for _ in range(40):  # more than was prefetched
        next(steps)
    print("stopped", len(stopped), flush=True)
"""  # ends with the iterator alive


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_workers_leave_signals_to_the_main_process(tmp_path, name):
    folder = write_good(tmp_path / "good")
    script = SIGNALLED.format(
        tests=os.path.dirname(__file__), folder=str(folder), number=int(getattr(signal, name))
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped 1\n", "")


def as_tensor(image):
    assert isinstance(image, Image.Image)
    return torch.tensor(image.resize((1, 1)).getpixel((0, 0)), dtype=torch.uint8)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_eval_batches_are_the_same_for_any_ranks(broken, world):
    loaders = [
        build_eval_loader(
            broken, transform=as_tensor, batch_size=4, rank=r, world_size=world, num_workers=r % 2
        )
        for r in range(world)
    ]
    batches = [list(rank_loader) for rank_loader in loaders]
    assert sum(map(len, loaders)) == -(-NUM_INDEXED // 4)
    together = sorted((batch for part in batches for batch in part), key=lambda batch: batch["index"][0])
    assert [len(batch["key"]) for batch in together] == [4] * 7 + [2, 2]  # 30 good, 10 bad, 2 good
    assert torch.cat([batch["index"] for batch in together]).tolist() == [*range(30), 40, 41]
    assert together[0]["captions"] == [
        ("caption of good00",),
        ("caption of good01",),
        *together[0]["captions"][2:],
    ]
    assert together[0]["label"] is None
    assert together[0]["image"].shape == (4, 3)
    found = {}
    for rank_loader in loaders:
        for reason, count in rank_loader.skip_report().counts["broken"].items():
            found[reason] = found.get(reason, 0) + (count if reason in BROKEN_AT_READ else 0)
    assert {reason: count for reason, count in found.items() if count} == BROKEN_AT_READ


def test_eval_loader_can_be_gone_through_again(broken):
    rows = build_eval_loader(broken, transform=as_tensor, batch_size=16)
    assert [b["key"] for b in rows] == [b["key"] for b in rows]
    assert rows.skip_report().counts["broken"]["corrupt image"] == BROKEN_AT_READ["corrupt image"]


def test_zero_shot_sets(tmp_path):
    for name in ("cat/1.jpg", "dog/2.jpg"):
        (tmp_path / "folders" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folders" / name).write_bytes(encode(photo(1)))
    folders = open_eval_source("f", tmp_path / "folders", "zero_shot")
    assert folders.classnames == ("cat", "dog")
    (batch,) = build_eval_loader(folders, transform=as_tensor, batch_size=8)
    assert batch["label"].tolist() == [0, 1]
    assert batch["captions"] == [(), ()]

    (tmp_path / "wds/test").mkdir(parents=True)
    write_tar(tmp_path / "wds/test/0.tar", {"s0.png": encode(photo(1), "PNG"), "s0.cls": b"1"})
    with pytest.raises(ValueError, match=r"needs class names: write .*classnames.txt"):
        open_eval_source("w", tmp_path / "wds/test", "zero_shot")
    (tmp_path / "wds/classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "wds/zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    shards = open_eval_source("w", tmp_path / "wds/test", "zero_shot", SampleKeys(image=("png",)))
    assert shards.classnames == ("cat", "dog")
    assert shards.templates == ("a photo of a {c}.",)
    assert shards.source.read(0).label == 1
    with pytest.raises(ValueError, match="nothing usable"):
        open_eval_source("w", tmp_path / "wds/test", "retrieval")
