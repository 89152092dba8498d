import json
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_shards import (
    BROKEN_AT_INDEX,
    NUM_INDEXED,
    encode,
    photo,
    sample,
    write_broken,
    write_good,
    write_tar,
)

from clipkit.data import files
from clipkit.data.files import read_range
from clipkit.data.problems import SampleError
from clipkit.data.samples import SampleKeys, check_usable
from clipkit.data.sources import open_source

JPEG = encode(photo(0))


def keys_of(source):
    return [source.read(index).key for index in range(len(source))]


def reason_of(source, index):
    with pytest.raises(SampleError) as caught:
        source.read(index)
    return caught.value.reason


def test_broken_shards_are_counted_by_the_index(tmp_path):
    source = open_source("broken", write_broken(tmp_path / "shards"))
    assert source.problems.counts == BROKEN_AT_INDEX
    assert len(source) == NUM_INDEXED
    assert source.sizes_per_shard == (30, 10, 2)
    assert source.problems.examples["missing caption"] == ["00001.tar: no-text", "00001.tar: no-text-either"]
    assert source.where(30) == "00001.tar: cut-jpeg"


def test_locations(tmp_path):
    folder = write_good(tmp_path / "shards", num_shards=3, num_samples=2)
    everything = keys_of(open_source("a", folder))
    assert everything == ["0-000", "0-001", "1-000", "1-001", "2-000", "2-001"]
    assert keys_of(open_source("a", f"{folder}/{{0..2}}.tar")) == everything
    assert (
        keys_of(open_source("a", f"{folder}/{{1..2}}.tar::{folder}/0.tar")) == everything[2:] + everything[:2]
    )
    assert keys_of(open_source("a", folder / "1.tar")) == everything[2:4]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("{tmp}/shardz", "nothing at '{tmp}/shardz'; the nearest existing thing is '{tmp}/shards'"),
        (
            "{tmp}/shards/{{0..4}}.tar",
            "nothing at '{tmp}/shards/3.tar' of '{tmp}/shards/{{0..4}}.tar' (2 of its 5 files are missing); "
            "the nearest existing thing is '{tmp}/shards/2.tar'",
        ),
        ("{tmp}/no/such/x.tar", "nothing at '{tmp}/no/such/x.tar'; the nearest existing folder is '{tmp}'"),
        ("pipe:aws s3 cp s3://x/y.tar -", "only local paths are read"),
        ("s3://bucket/x.tar", "only local paths are read"),
        ("{tmp}", "'{tmp}' holds folders of tars: name one of them, such as {tmp}/shards"),
        ("{tmp}/shards/${{HOME_OF}}/x.tar", "missing environment variable"),
    ],
)
def test_locations_that_are_refused(tmp_path, location, message):
    write_good(tmp_path / "shards", num_shards=3, num_samples=1)
    with pytest.raises((ValueError, OSError)) as caught:
        open_source("a", location.format(tmp=tmp_path))
    assert message.format(tmp=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_compressed_tar_is_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="decompress it"):
        open_source("a", tmp_path / "x.tar.gz")


def test_image_and_caption_keys(tmp_path):
    record = {"caption": " from json ", "alt": ["one", "", 3, "two"], "deep": {"er": "nested"}}
    members = {
        "a.webp": b"W",
        "a.jpg": b"J",
        "a.txt": b"first\n\n second \r\n",
        "a.json": json.dumps(record).encode(),
    }
    path = write_tar(tmp_path / "x.tar", members)

    def read(**keys):
        return open_source("a", path, SampleKeys(**keys)).read(0)

    assert read().captions == ("first", "second")
    assert read().image == b"J"
    assert read().fields == {}
    assert read(fields=True).fields["deep"] == {"er": "nested"}
    assert read(image=("webp", "jpg")).image == b"W"
    assert read(caption=("json.caption",)).captions == ("from json",)
    assert read(caption=("json.alt", "txt")).captions == ("one", "two", "first", "second")
    assert read(caption=("json.deep.er",)).captions == ("nested",)
    assert len(open_source("a", path, SampleKeys(image=("png",)))) == 0


def test_json_captions_that_are_missing_empty_or_unreadable(tmp_path):
    texts = {
        "a": b'{"caption": "good"}',
        "b": b'{"other": 1}',
        "c": b'{"caption": " "}',
        "d": b"{",
        "e": b"[]",
    }
    members = {}
    for key, text in texts.items():
        members |= {f"{key}.jpg": JPEG, f"{key}.json": text}
    source = open_source("a", write_tar(tmp_path / "x.tar", members), SampleKeys(caption=("json.caption",)))
    assert source.read(0).captions == ("good",)
    reasons = [reason_of(source, index) for index in range(1, 5)]
    assert reasons == ["missing caption", "empty caption", "unreadable json", "unreadable json"]


def test_labels(tmp_path):
    members = {"a.jpg": JPEG, "a.cls": b"7", "b.jpg": JPEG, "b.cls": b"cat", "c.jpg": JPEG, "c.txt": b"x"}
    source = open_source("a", write_tar(tmp_path / "x.tar", members), SampleKeys(require=("label",)))
    assert source.read(0).label == 7
    assert source.read(0).captions == ()
    assert reason_of(source, 1) == "missing label"
    assert source.problems.counts == {"missing label": 1}


def test_sizes_json_is_compared(tmp_path):
    folder = write_good(tmp_path / "shards", num_shards=2, num_samples=3)
    (folder / "sizes.json").write_text(json.dumps({"0.tar": 3, "1.tar": 4}))
    source = open_source("a", folder)
    assert source.problems.counts == {"wrong sizes.json": 1}
    assert source.problems.examples["wrong sizes.json"] == ["1.tar: 4 stated, 3 found"]
    (folder / "sizes.json").write_text("[]")
    assert open_source("a", folder).problems.counts == {"wrong sizes.json": 1}


@pytest.mark.parametrize(("suffix", "separator"), [("csv", "\t"), ("csv", ","), ("tsv", "\t")])
def test_table_as_open_clip_reads_it(tmp_path, suffix, separator):
    (tmp_path / "img").mkdir()
    (tmp_path / "img/a.jpg").write_bytes(b"A")
    (tmp_path / "img/b.jpg").write_bytes(b"B")
    rows = [
        ("filepath", "title"),
        ("img/a.jpg", '"one, and more"'),
        (str(tmp_path / "img/b.jpg"), "two"),
        ("img/a.jpg", "three"),
        ("img/gone.jpg", "four"),
        ("img/b2.jpg", " "),
        ("", "six"),
    ]
    path = tmp_path / f"t.{suffix}"
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    source = open_source("t", path)
    assert len(source) == 4
    assert source.problems.counts == {"missing image": 1}
    first, second = source.read(0), source.read(1)
    assert (first.key, first.image, first.captions) == ("img/a.jpg", b"A", ("one, and more", "three"))
    assert (second.image, second.captions) == (b"B", ("two",))
    assert reason_of(source, 2) == "missing file"
    (tmp_path / "img/b2.jpg").write_bytes(b"")
    assert reason_of(source, 3) == "empty caption"


def test_table_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file_path,text\na.jpg,hello\n")
    (tmp_path / "a.jpg").write_bytes(JPEG)
    with pytest.raises(ValueError, match=r"no column 'filepath', .*did you mean 'file_path'"):
        open_source("t", path)
    keys = SampleKeys(image_column="file_path", caption_column="text")
    assert open_source("t", path, keys).read(0).captions == ("hello",)


def test_parquet_table(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    pq.write_table(
        pa.table({"filepath": ["a.jpg", "a.jpg"], "title": ["x", None], "n": [1, 2]}), tmp_path / "t.parquet"
    )
    source = open_source("t", tmp_path / "t.parquet")
    assert source.read(0).captions == ("x",)
    assert source.problems.counts == {"missing caption": 1}
    (tmp_path / "u.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a parquet file"):
        open_source("t", tmp_path / "u.parquet")


def test_folder_of_pairs(tmp_path):
    for name in ("b.jpg", "sub/a.PNG", "alone.jpg", "b.png", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    for name in ("b.txt", "sub/a.txt", "orphan.txt"):
        (tmp_path / name).write_text(f"caption {name}")
    os.symlink(tmp_path, tmp_path / "sub" / "loop")
    source = open_source("f", tmp_path)
    assert keys_of(source) == ["b", "sub/a"]
    assert source.read(1).captions == ("caption sub/a.txt",)
    assert source.read(0).image == b"b.jpg"
    assert source.problems.counts == {"missing caption": 1, "missing image": 1, "duplicate key": 1}
    assert source.classnames is None


def test_folder_of_classes(tmp_path):
    for name in ("dog/1.jpg", "cat/2.jpg", "cat/deep/3.jpg", "stray.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JPEG)
    source = open_source("f", tmp_path, SampleKeys(require=("label",)))
    assert source.classnames == ("cat", "dog")
    assert [(source.read(i).key, source.read(i).label) for i in range(3)] == [
        ("cat/2", 0),
        ("cat/deep/3", 0),
        ("dog/1", 1),
    ]
    assert source.problems.counts == {"missing label": 1}


def test_nothing_usable_says_what_was_found(tmp_path):
    source = open_source("mine", write_tar(tmp_path / "x.tar", {"a.txt": b"1", "b.jpg": JPEG}))
    with pytest.raises(ValueError, match=r"'mine' \(found: 1 missing caption, 1 missing image\)"):
        check_usable(source)


def test_a_source_can_be_pickled_and_carries_no_index(tmp_path):
    source = open_source("a", write_good(tmp_path / "shards", num_shards=2, num_samples=50))
    source.read(0)
    data = pickle.dumps(source)
    assert len(data) < 5_000
    assert keys_of(pickle.loads(data)) == keys_of(source)


def test_tables_of_many_shards_are_dropped_and_read_again(tmp_path, monkeypatch):
    from clipkit.data import shards

    monkeypatch.setattr(shards, "_NUM_TABLES_KEPT", 2)
    source = open_source("a", write_good(tmp_path / "shards", num_shards=5, num_samples=2))
    assert keys_of(source) == [f"{shard}-00{number}" for shard in range(5) for number in range(2)]
    assert len(source._tables) == 2


def test_a_shard_that_changes_under_way_is_an_error(tmp_path):
    folder = write_good(tmp_path / "shards", num_shards=1, num_samples=2)
    source = pickle.loads(pickle.dumps(open_source("a", folder)))
    write_tar(folder / "0.tar", sample("other"))
    with pytest.raises(OSError, match="changed while it was in use"):
        source.read(0)


def test_open_files_are_bounded_and_replaced_files_opened_anew(tmp_path):
    files._open.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(files.MAX_OPEN_FILES + 40):
        path = tmp_path / str(number)
        path.write_bytes(b"abc")
        assert read_range(path, 1, 2) == b"bc"
    assert len(os.listdir("/proc/self/fd")) - before == files.MAX_OPEN_FILES
    path.unlink()
    path.write_bytes(b"xyz")
    assert read_range(path, 0, 3, stamp=2) == b"xyz"
    with pytest.raises(OSError, match="became shorter"):
        read_range(path, 2, 2, stamp=2)
    files._open.cache_clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_sample_keys_are_checked():
    with pytest.raises(ValueError, match="image keys"):
        SampleKeys(image=())
    with pytest.raises(ValueError, match="'captions'"):
        SampleKeys(require=("captions",))
