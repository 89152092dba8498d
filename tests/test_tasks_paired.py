from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from clipkit.zeroshot.tasks.paired import MmvpVlm, Winoground
from made_features import features_of, random_unit
from PIL import Image
from torch import Tensor

PATTERNS = (
    "Camera Perspective",
    "Color",
    "Orientation",
    "Presence",
    "Quantity",
    "Spatial",
    "State",
    "Text",
    "X",
)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def write_winoground(folder: Path, examples: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(example) + "\n" for example in examples)
    (folder / "examples.jsonl").write_text(lines)


def example(number: int, tag: str = "Object") -> dict[str, object]:
    names = {f"image_{i}": f"ex_{number}_img_{i}" for i in (0, 1)}
    captions = {f"caption_{i}": f"caption {number} {i}" for i in (0, 1)}
    return {"id": number, **names, **captions, "tag": tag, "collapsed_tag": "Both"}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    write_winoground(tmp_path, [example(0), example(1), example(2, "Relation")])
    for number in range(3):
        for i in (0, 1):
            write_image(tmp_path / "images" / f"ex_{number}_img_{i}.png")
    return tmp_path


def winoground_vectors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Example 0 is all right, 1 text alone, 2 all wrong."""
    e1, e2, _ = torch.eye(3)
    vectors = [
        (e1, e2, e1, e2),
        (torch.tensor([0.8, 0.6, 0]), torch.tensor([0.9, 0.95, 0]), e1, e2),
        (e1, e2, e2, e1),
    ]
    images, texts = {}, {}
    for number, (a, b, c, d) in enumerate(vectors):
        for i, (image, text) in enumerate(((a, c), (b, d))):
            images[str(folder / "images" / f"ex_{number}_img_{i}.png")] = image
            texts[f"caption {number} {i}"] = text
    return images, texts


def test_winoground_by_hand(three: Path) -> None:
    task = Winoground(data=three)
    images, texts = winoground_vectors(three)
    source = task.sources()["images"]
    assert [source.read(i).key for i in range(len(source))] == list(images)
    found = task.measure(features_of(images, texts))
    assert found.metrics == pytest.approx({"acc": 1 / 3, "text_acc": 2 / 3, "image_acc": 1 / 3})
    assert next(iter(found.metrics)) == "acc"
    assert found.outcomes["text_acc"].tolist() == [1, 1, 0]
    assert found.outcomes["acc"].dtype == torch.float64
    assert found.chance == {"acc": 1 / 6, "text_acc": 0.25, "image_acc": 0.25}
    assert [table.title for table in found.tables] == ["By tag", "By collapsed tag"]
    assert found.tables[0].rows == (
        ("Object", "2", "100.0 %", "50.0 %", "50.0 %"),
        ("Relation", "1", "0.0 %", "0.0 %", "0.0 %"),
    )
    assert found.notes == ()


def test_winoground_leaves_out_what_lacks_an_image(three: Path) -> None:
    images, texts = winoground_vectors(three)
    del images[str(three / "images" / "ex_0_img_1.png")]
    found = Winoground(data=three).measure(features_of(images, texts))
    assert found.outcomes["text_acc"].tolist() == [1, 0]
    assert found.notes == ("1 of 3 items are left out: an image of theirs cannot be read.",)
    with pytest.raises(ValueError, match="none of the 3 items has images that can be read"):
        Winoground(data=three).measure(features_of({"other": torch.eye(3)[0]}, texts))


def test_winoground_finds_the_release_layout(three: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("release") / "data"
    three.rename(moved)
    assert len(Winoground(data=moved.parent).sources()["images"]) == 6
    (moved / "images").rename(moved.parent / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"none of the 6 images is in .*; name their folder"):
        Winoground(data=moved.parent).sources()
    assert len(Winoground(data=moved.parent, images=moved.parent / "elsewhere").sources()["images"]) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption_1": " "}, "line 2 needs a text 'caption_1', got ' '"),
        ({"image_0": 3}, "line 2 needs a text 'image_0', got 3"),
        ({"id": 0}, "line 2 needs an 'id' of its own, got 0"),
        ({"id": None}, "line 2 needs an 'id' of its own, got None"),
    ],
)
def test_winoground_refuses_incomplete_examples(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write_winoground(tmp_path, [example(0), {**example(1), **change}])
    with pytest.raises(ValueError, match=message):
        Winoground(data=tmp_path).sources()


def test_lines_that_are_no_objects(tmp_path: Path) -> None:
    for content, message in (
        ("[1]\n", "line 1 must be a JSON object"),
        ("{\n", "line 1 does not parse"),
        ("\n", "no line"),
    ):
        (tmp_path / "examples.jsonl").write_text(content)
        with pytest.raises(ValueError, match=message):
            Winoground(data=tmp_path).sources()
    (tmp_path / "examples.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match="is not UTF-8"):
        Winoground(data=tmp_path).sources()


def write_mmvp(folder: Path, num_pairs: int = 15, patterns: tuple[str, ...] = PATTERNS) -> list[str]:
    """The file and all images; returns the paths of the images in their order."""
    images, rows, number = [], [["Question ID", "Type", "Statement"]], 0
    for pattern in patterns:
        for _ in range(2 * num_pairs):
            number += 1
            rows.append([str(number), pattern, f"thing {number}, seen"])
            path = folder / "MLLM_VLM Images" / pattern / f"{number}.jpg"
            write_image(path)
            images.append(str(path))
    with (folder / "Questions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return images


def mmvp_texts(vectors: Tensor, prompt: str = "a photo of {}") -> dict[str, Tensor]:
    return {prompt.format(f"thing {n}, seen"): vector for n, vector in enumerate(vectors, start=1)}


def test_mmvp_by_hand(tmp_path: Path) -> None:
    images = write_mmvp(tmp_path, 2, ("Color", "Text"))
    task = MmvpVlm(data=tmp_path)
    source = task.sources()["images"]
    assert [source.read(i).key for i in range(len(source))] == images
    e1, e2 = torch.eye(2)
    # Pairs 0 and 1 (Color) and 2 (Text) are right, pair 3 (Text) has one statement wrong.
    image_vectors = dict(zip(images, (e1, e2) * 4, strict=True))
    found = task.measure(features_of(image_vectors, mmvp_texts(torch.stack([e1, e2] * 3 + [e1, e1]))))
    assert found.outcomes["acc"].tolist() == [1, 1, 1, 0]
    assert found.metrics == pytest.approx({"acc": 0.75, "mean_per_pattern": 0.75})
    assert found.chance == {"acc": 0.25, "mean_per_pattern": 0.25}
    assert [row[:3] for row in found.tables[0].rows] == [("Color", "2", "100.0 %"), ("Text", "2", "50.0 %")]
    # Without an image of pair 0 the patterns weigh the same, the pairs do not.
    del image_vectors[images[0]]
    fewer = task.measure(features_of(image_vectors, mmvp_texts(torch.stack([e1, e2] * 3 + [e1, e1]))))
    assert fewer.metrics == pytest.approx({"acc": 2 / 3, "mean_per_pattern": 0.75})
    assert fewer.notes == ("1 of 4 items are left out: an image of theirs cannot be read.",)


def test_mmvp_random_features_are_at_chance_and_swapping_a_pair_changes_nothing(tmp_path: Path) -> None:
    images = write_mmvp(tmp_path)
    assert len(images) == 270
    task = MmvpVlm(data=tmp_path)
    swap = torch.arange(270).reshape(-1, 2).flip(1).flatten()
    total = 0.0
    for seed in range(20):
        vectors, texts = random_unit(270, 32, seed=seed), random_unit(270, 32, seed=100 + seed)
        found = task.measure(features_of(dict(zip(images, vectors, strict=True)), mmvp_texts(texts)))
        swapped = task.measure(
            features_of(dict(zip(images, vectors[swap], strict=True)), mmvp_texts(texts[swap]))
        )
        assert torch.equal(found.outcomes["acc"], swapped.outcomes["acc"])
        assert len(found.outcomes["acc"]) == 135
        assert found.metrics["acc"] == pytest.approx(found.metrics["mean_per_pattern"])
        total += found.metrics["acc"] / 20
    # 2,700 independent pairs: four standard deviations.
    assert abs(total - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2700)
    assert len(found.tables[0].rows) == 9
    assert all(row[1] == "15" for row in found.tables[0].rows)


def test_mmvp_prompt_and_image_folder_are_settings(tmp_path: Path) -> None:
    images = write_mmvp(tmp_path, 1, ("Color",))
    for name in ("MMVP_VLM_Images", "pictures"):
        (Path(images[0]).parent.parent).rename(tmp_path / name)
        images = [str(tmp_path / name / "Color" / Path(path).name) for path in images]
        source = MmvpVlm(data=tmp_path).sources()["images"]
        assert [source.read(i).key for i in range(len(source))] == images
    task = MmvpVlm(data=tmp_path, prompt="{statement}!", images=tmp_path / "pictures")
    vectors = dict(zip(images, torch.eye(2), strict=True))
    assert task.measure(features_of(vectors, mmvp_texts(torch.eye(2), "{}!"))).metrics["acc"] == 1
    with pytest.raises(ValueError, match=r"prompt needs \{statement\}"):
        MmvpVlm(data=tmp_path, prompt="a photo")
    with pytest.raises(FileNotFoundError, match="none of the 2 images is in"):
        MmvpVlm(data=tmp_path, images=tmp_path / "nowhere").sources()
    (tmp_path / "pictures" / "Color").rename(tmp_path / "pictures" / "Colour")
    with pytest.raises(FileNotFoundError, match="no folder with the images of the pattern 'Color'"):
        MmvpVlm(data=tmp_path).sources()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,Color,red\n", "must hold pairs of rows, got 1 rows"),
        ("", "must hold pairs of rows, got 0 rows"),
        ("1,Color,red\n2,Text,a\n", "line 3: the rows of a pair must share a pattern, got Color and Text"),
        (
            "1,Color,red\n2,Color\n",
            r"line 3 must hold a number, a pattern and a statement, got \['2', 'Color'\]",
        ),
        ("1,Color,red\n2,Color, \n", "line 3 must hold a number"),
    ],
)
def test_mmvp_refuses_damaged_files(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "Questions.csv").write_text(f"Question ID,Type,Statement\n{rows}")
    with pytest.raises(ValueError, match=message):
        MmvpVlm(data=tmp_path, images=tmp_path).sources()
