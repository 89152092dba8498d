import io
import json
import os
import tarfile

import numpy as np
import pytest
from broken_shards import write_tar

from clipkit.data import tarindex
from clipkit.data.files import read_range
from clipkit.data.tarindex import cache_folder, load_index, load_indexes, scan_tar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def contents(path, index):
    """Member name -> content, read by the index alone."""
    return {
        f"{index.keys[group]}.{index.extensions[kind]}": read_range(path, int(offset), int(size))
        for group, kind, offset, size in zip(
            index.group, index.extension, index.offset, index.size, strict=True
        )
    }


def test_members_are_read_where_the_index_says(tmp_path):
    members = {
        "a.jpg": b"1",
        "a.txt": b"",
        "dir.x/b.JPG": b"22" * 400,
        "dir.x/b.seg.png": b"3",
        "c.json": b"4",
    }
    path = write_tar(tmp_path / "x.tar", members)
    index = scan_tar(path)
    assert index.keys == ("a", "dir.x/b", "c")
    assert index.extensions == ("jpg", "txt", "seg.png", "json")
    assert index.group.tolist() == [0, 0, 1, 1, 2]
    assert contents(path, index) == {name.replace("JPG", "jpg"): data for name, data in members.items()}
    assert index.problems.counts == {}


def test_grouping_equals_webdataset(tmp_path):
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    names = [
        "a.jpg",
        "a.txt",
        "b.txt",
        "c.d.e",
        "a.jpg",
        "sub/a.jpg",
        "sub/a.b.txt",
        "__meta__/x.json",
        "README",
    ]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = number + 1
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    with path.open("rb") as stream:
        files = [{**file, "__url__": ""} for file in tar_file_iterator(stream)]
    expected = [
        (sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")})
        for sample in group_by_keys(iter(files))
    ]
    index = scan_tar(path)
    groups = [(key, {}) for key in index.keys]
    for group, kind, offset, size in zip(index.group, index.extension, index.offset, index.size, strict=True):
        groups[group][1][index.extensions[kind]] = read_range(path, int(offset), int(size))
    assert groups == expected
    assert index.problems.counts == {"duplicate key": 1}


def test_hidden_files_folders_and_links_are_no_samples(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("d", tarfile.DIRTYPE),
            ("l.jpg", tarfile.SYMTYPE),
            ("d/._a.jpg", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
    assert scan_tar(path).keys == ()


def test_second_member_of_a_name_is_counted_and_the_first_kept(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for data in (b"one", b"two"):
            info = tarfile.TarInfo("a.txt")
            info.size = 3
            tar.addfile(info, io.BytesIO(data))
    index = scan_tar(path)
    assert index.problems.counts == {"duplicate member": 1}
    assert contents(path, index) == {"a.txt": b"one"}


@pytest.mark.parametrize("cut", ["data", "header", "boundary"])
def test_a_cut_tar_gives_its_whole_members(tmp_path, cut):
    path = write_tar(tmp_path / "x.tar", {f"{i}.txt": bytes([i]) * 700 for i in range(4)})
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = {"data": last.offset_data + 100, "header": last.offset + 100, "boundary": last.offset}[cut]
    path.write_bytes(path.read_bytes()[:end])
    index = scan_tar(path)
    assert index.keys == ("0", "1", "2")
    assert index.problems.counts == {"truncated tar": 1}


def test_a_damaged_header_in_the_middle_is_noticed(tmp_path):
    path = write_tar(tmp_path / "x.tar", {f"{i}.txt": b"x" for i in range(4)})
    data = bytearray(path.read_bytes())
    data[2 * 1024 : 2 * 1024 + 512] = b"\x07" * 512
    path.write_bytes(data)
    index = scan_tar(path)
    assert index.keys == ("0", "1")
    assert index.problems.counts == {"truncated tar": 1}


@pytest.mark.parametrize("content", [b"", b"not a tar", b"x" * 5000])
def test_not_a_tar(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    assert scan_tar(path).problems.counts == {"unreadable tar": 1}


def test_long_names_and_large_numbers(tmp_path):
    name = "very/long/" * 30 + "name.txt"
    path = tmp_path / "x.tar"
    for layout in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(path, "w", format=layout) as tar:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"data"))
        assert contents(path, scan_tar(path)) == {name: b"data"}


def test_index_is_cached_and_made_again_when_the_tar_changes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", {"a.txt": b"1"})
    scans = []
    monkeypatch.setattr(tarindex, "scan_tar", lambda path: scans.append(path) or scan_tar(path))
    first, second = load_index(path), load_index(path)
    assert len(scans) == 1
    assert (first.keys, first.extensions, first.problems) == (second.keys, second.extensions, second.problems)
    for name in ("group", "extension", "offset", "size"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))

    os.utime(path, ns=(1, 1))  # the time changes, the size does not
    load_index(path)
    assert len(scans) == 2
    write_tar(path, {"b.txt": b"1" * 20_000})
    os.utime(path, ns=(1, 1))  # the size changes, the time does not
    assert load_index(path).keys == ("b",)
    assert len(scans) == 3


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nothing", None])
def test_damaged_cache_is_ignored_and_replaced(tmp_path, damage):
    path = write_tar(tmp_path / "x.tar", {"a.txt": b"1"})
    load_index(path)
    (file,) = cache_folder().rglob("*.npz")
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2] if damage is None else damage)
    assert load_index(path).keys == ("a",)
    assert len(file.read_bytes()) == len(good)
    assert not list(cache_folder().rglob("*.tmp"))


def test_unwritable_cache_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_index(write_tar(tmp_path / "x.tar", {"a.txt": b"1"})).keys == ("a",)


def test_problems_survive_the_cache(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.txt": b"1", "b.txt": b"1"})
    path.write_bytes(path.read_bytes()[:1100])
    for _ in range(2):
        assert json.dumps(load_index(path).problems.counts) == '{"truncated tar": 1}'


def test_many_indexes_come_in_order(tmp_path):
    paths = [write_tar(tmp_path / f"{i}.tar", {f"k{i}.txt": b""}) for i in range(20)]
    done = []
    assert [index.keys[0] for index in load_indexes(paths, done.append)] == [f"k{i}" for i in range(20)]
    assert done == list(range(1, 21))
