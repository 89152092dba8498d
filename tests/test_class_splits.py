"""Published split files, splits of folders, draws of a few images."""

import hashlib
import json

import pytest
import torch

from clipkit.data.class_splits import base_classes, few_shot, new_classes, open_class_splits


@pytest.fixture
def folder(tmp_path):
    for name, count in (("cat", 10), ("dog", 8), ("eel", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.jpg").write_bytes(b"x")
    return tmp_path


def sizes(splits):
    parts = (splits.train, splits.val, splits.test)
    return [part.labels.bincount(minlength=len(splits.names)).tolist() for part in parts]


def test_folder_is_split_by_hash(folder):
    splits = open_class_splits(str(folder))
    assert splits.names == ("cat", "dog", "eel")
    assert sizes(splits) == [[5, 4, 1], [2, 2, 0], [3, 2, 1]]
    order = sorted(range(10), key=lambda n: hashlib.sha256(f"cat/{n}.jpg".encode()).hexdigest())
    assert [splits.train.where(row) for row in range(5)] == [str(folder / f"cat/{n}.jpg") for n in order[:5]]
    files = [part.where(row) for part in (splits.train, splits.val, splits.test) for row in range(len(part))]
    assert len(set(files)) == len(files) == 20


def test_folder_with_parts(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for name in ("b", "a"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / part / name / f"{number}.png").write_bytes(b"x")
    assert sizes(open_class_splits(str(tmp_path))) == [[3, 3], [0, 0], [2, 2]]


def test_published_file(tmp_path):
    rows = {
        "train": [["x/1.jpg", 1, "b"], ["y/2.jpg", 0, "a"]],
        "val": [],
        "test": [["x/3.jpg", 1, "b"], ["y/4.jpg", 0, "a"]],
    }
    (tmp_path / "pictures" / "x").mkdir(parents=True)
    (tmp_path / "pictures" / "x" / "1.jpg").write_bytes(b"one")
    path = tmp_path / "split_zhou_set.json"
    path.write_text(json.dumps(rows))
    splits = open_class_splits(f"{path}::{tmp_path / 'pictures'}")
    assert splits.names == ("a", "b")
    sample = splits.train.read(0)
    assert (sample.image, sample.label) == (b"one", 1)
    with pytest.raises(FileNotFoundError, match="JSON::FOLDER"):
        open_class_splits(str(path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": [], "val": []}, "test is missing"),
        ({"train": [["a.jpg", "0", "a"]], "val": [], "test": []}, r"\[path, label, class name\]"),
        ({"train": [["a", 0, "a"], ["b", 0, "b"]], "val": [], "test": []}, "is named 'a' and 'b'"),
        ({"train": [["a", 0, "a"], ["b", 2, "b"]], "val": [], "test": []}, "without gaps"),
    ],
)
def test_damaged_file_is_refused(tmp_path, rows, message):
    (tmp_path / "split.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message) as caught:
        open_class_splits(str(tmp_path / "split.json"))
    assert "\n" not in str(caught.value)


def test_class_with_one_image_is_refused(folder):
    (folder / "fox").mkdir()
    (folder / "fox" / "1.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"class 'fox' .* needs at least two images"):
        open_class_splits(str(folder))


def test_base_and_new():
    assert (base_classes("abcde"), new_classes("abcde")) == ([0, 1, 2], [3, 4])
    assert (base_classes("abcd"), new_classes("abcd")) == ([0, 1], [2, 3])


def test_subset_is_relabelled(folder):
    part = open_class_splits(str(folder)).of_classes([2, 1])
    assert part.names == ("eel", "dog")
    assert sizes(part) == [[1, 4], [0, 2], [1, 2]]
    assert "dog" in part.train.where(0)
    assert part.train.read(0).label == 1


def test_few_shot():
    labels = torch.tensor([0, 1, 2] * 7 + [2])
    rows = few_shot(labels, 3, 1)
    assert labels[rows].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert len(set(rows.tolist())) == 9
    assert torch.equal(rows, few_shot(labels, 3, 1))
    assert not torch.equal(rows, few_shot(labels, 3, 2))
    # The base classes get the same images, with or without the others.
    assert torch.equal(few_shot(torch.where(labels == 2, 5, labels), 3, 1)[:6], rows[:6])
    assert len(few_shot(labels, 100, 1)) == len(few_shot(labels, 0, 1)) == 22
