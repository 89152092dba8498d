"""Data of evaluations: CLIP_benchmark's folders, caption files, the built-in scenes, the hub."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from clipkit.zeroshot.caption_files import CaptionFile
from clipkit.zeroshot.datasets import open_images
from PIL import Image

from clipkit.data.problems import SampleError


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_benchmark(root: Path, *, split: str = "test", shards: int = 2, member: str = "cls") -> Path:
    """A data set in CLIP_benchmark's layout, three samples a shard."""
    folder = root / split
    folder.mkdir(parents=True)
    values = {"cls": b"1", "txt": b"a tile\na red tile\n"}
    array = io.BytesIO()
    np.save(array, np.array([0, 1, 1]))
    values["npy"] = array.getvalue()
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"{shard}.tar"), encoder=False) as tar:
            for number in range(3):
                key = f"s{3 * shard + number:07d}"
                tar.write({"__key__": key, "webp": png(), member: values[member]})
    (folder / "nshards.txt").write_text(f"{shards}\n")
    (root / "classnames.txt").write_text("cat\ndog\nhen\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    return root


def test_a_folder_of_clip_benchmark_gives_its_test_split_names_and_templates(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path / "pets")
    source = open_images(str(root), require=("label",))
    assert (len(source), source.name) == (6, "pets")
    assert source.classnames == ("cat", "dog", "hen")
    assert source.templates == ("a {c}", "the {c}")
    assert [source.read(number).label for number in range(6)] == [1] * 6
    assert source.read(4).key == "s0000004"


def test_the_training_split_is_taken_where_it_is_named(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path / "pets")
    write_benchmark(tmp_path / "more", split="train", shards=1)
    (tmp_path / "more" / "train").rename(root / "train")
    assert len(open_images(str(root / "train"), require=("label",))) == 3


def test_several_labels_a_sample(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path / "voc", member="npy")
    (root / "dataset_type.txt").write_text("multilabel\n")
    sample = open_images(str(root), require=("label",)).read(0)
    assert sample.label is None
    assert sample.fields["labels"] == [0, 1, 1]


def npy(values: list[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"no array", b"1", npy([[0, 1]]), npy([0, 2]), npy([0.5])])
def test_labels_that_are_no_array_are_a_reason(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test").mkdir()
    with webdataset.TarWriter(str(tmp_path / "test" / "0.tar"), encoder=False) as tar:
        tar.write({"__key__": "s0", "png": png(), "npy": content})
    source = open_images(str(tmp_path), require=("labels",))
    with pytest.raises(SampleError) as caught:
        source.read(0)
    assert caught.value.reason == "missing label"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path / "pets", shards=3)
    (root / "test" / "1.tar").unlink()
    with pytest.raises(ValueError, match=r"should have 3 shards by its nshards.txt, lacking 1\.tar"):
        open_images(str(root), require=("label",))
    (root / "test" / "nshards.txt").write_text("many\n")
    with pytest.raises(ValueError, match=r"nshards.txt must hold the number of shards, got 'many'"):
        open_images(str(root), require=("label",))


def test_a_folder_without_images_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no picture")
    with pytest.raises(ValueError, match="nothing usable in source"):
        open_images(str(tmp_path))


def test_scenes_are_built_in() -> None:
    scenes = open_images("scenes", require=("caption", "fields"))
    assert len(scenes) == 1000
    assert len(scenes.read(0).captions) == 4
    assert scenes.read(0).fields["foils"]
    objects = open_images("scenes:objects", require=("label",))
    assert objects.classnames is not None
    assert len(objects.classnames) == 64
    with pytest.raises(ValueError, match="the built-in data sets are"):
        open_images("scenes:other")


def test_the_hub_is_asked_for_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_benchmark(tmp_path / "wds_pets")
    asked = []

    def snapshot_download(repo: str, **settings: object) -> str:
        asked.append((repo, settings))
        return str(root)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert len(open_images("hf-hub:clip-benchmark/wds_pets", require=("label",))) == 6
    assert asked == [
        ("clip-benchmark/wds_pets", {"repo_type": "dataset", "allow_patterns": ["*.txt", "test/*"]})
    ]
    with pytest.raises(ValueError, match="expected hf-hub:OWNER/NAME"):
        open_images("hf-hub:pets")


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no route\nand a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(OSError, match=r"could not be downloaded: no route; download it elsewhere"):
        open_images("hf-hub:clip-benchmark/wds_pets")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """The layout of COCO: annotations/captions_val2017.json and val2017/."""
    (tmp_path / "val2017").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "val2017" / name).write_bytes(png())
    content = {
        "images": [
            {"id": 7, "file_name": "2.jpg"},
            {"id": 5, "file_name": "1.jpg"},
            {"id": 6, "file_name": "3.jpg"},
        ],
        "annotations": [
            {"image_id": 5, "caption": "a cat"},
            {"image_id": 7, "caption": " a dog "},
            {"image_id": 5, "caption": "an animal"},
        ],
    }
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return path


def test_captions_of_coco(coco: Path) -> None:
    source = open_images(str(coco), require=("caption",))
    assert [(source.read(n).key, source.read(n).captions) for n in range(2)] == [
        ("2.jpg", ("a dog",)),
        ("1.jpg", ("a cat", "an animal")),
    ]
    assert source.problems.counts == {"missing caption": 1}
    elsewhere = coco.parent.parent / "pictures"
    (coco.parent.parent / "val2017").rename(elsewhere)
    with pytest.raises(ValueError, match="name their folder as"):
        CaptionFile(str(coco))
    assert open_images(f"{coco}::{elsewhere}").read(0).image == png()


def test_captions_of_karpathy(tmp_path: Path) -> None:
    images = [
        {
            "filepath": "val2014",
            "filename": f"{n}.jpg",
            "split": split,
            "sentences": [{"raw": f"caption {n}"}, {"raw": "more"}],
        }
        for n, split in enumerate(("train", "test", "val", "test"))
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    (tmp_path / "val2014").mkdir()
    for n in range(4):
        (tmp_path / "val2014" / f"{n}.jpg").write_bytes(png())
    source = CaptionFile(str(path))
    assert [source.read(n).captions[0] for n in range(len(source))] == ["caption 1", "caption 3"]
    assert len(CaptionFile(f"{path}:val")) == 1
    with pytest.raises(ValueError, match="has no split 'dev'; name one as"):
        CaptionFile(f"{path}:dev")


def test_captions_in_lines(tmp_path: Path) -> None:
    path = tmp_path / "flickr30k_test_karpathy.txt"
    path.write_text("image,caption\n1.jpg,Two cats, one dog.\n1.jpg,Animals\n2.jpg,A hen\n")
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(png())
    source = CaptionFile(str(path))
    assert source.read(0).captions == ("Two cats, one dog.", "Animals")
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(SampleError, match="missing file"):
        source.read(1)
    path.write_text("1.jpg,A\nno comma\n")
    with pytest.raises(ValueError, match=r"line 2: expected NAME.jpg,caption, got 'no comma'"):
        CaptionFile(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not parse"),
        ("[]", "no file of captions"),
        ('{"images": [], "annotations": [{}]}', "lacks"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        CaptionFile(str(path))
