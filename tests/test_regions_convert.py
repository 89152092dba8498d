"""Annotations to shards, through the command."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import region_files
from broken_shards import encode, photo
from region_files import write_images, write_json

from clipkit.cli import main
from clipkit.data.problems import MISSING_FILE
from clipkit.data.regions import EMPTY_PHRASE, WRONG_CONVENTION
from clipkit.data.samples import SampleKeys
from clipkit.data.sources import open_source
from clipkit.images import CORRUPT_IMAGE
from clipkit.regions import boxes
from clipkit.regions.convert import OTHER_FILE_FORMAT, WRONG_SIZE
from clipkit.regions.formats.base import CROWD, LISTED_BEFORE, NO_BOX, UNREADABLE_IMAGE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["regions", "convert", *map(str, arguments), "--quiet", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def samples(shards: Path) -> list[Any]:
    source = open_source("shards", shards, SampleKeys(require=(), fields=True))
    assert source.problems.counts == {}
    return [source.read(index) for index in range(len(source))]


def coco(tmp_path: Path, content: dict[str, Any] | None = None) -> list[object]:
    """Arguments for the two images of COCO."""
    images = write_images(tmp_path / "images", {"a": "000000000009.jpg", "b": "train2017/000000000025.jpg"})
    source = write_json(tmp_path / "instances.json", content or region_files.coco_instances())
    return [source, "--format", "coco", "--images", images]


def test_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = write_json(tmp_path / "captions.json", region_files.coco_captions())
    out = tmp_path / "shards"
    report = run(capsys, *coco(tmp_path), "--captions", captions, "--out", out, "--shard-size", 1)
    assert report["num_shards"] == 2
    assert (report["num_images"], report["num_images_with_regions"], report["num_regions"]) == (2, 1, 2)
    assert report["boxes_left_out"] == {CROWD: 1}
    assert json.loads((out / "report.json").read_text()) == report
    assert json.loads((out / "sizes.json").read_text()) == {"00000.tar": 1, "00001.tar": 1}
    first, second = samples(out)
    assert first.key == "000000000"
    assert first.image == (tmp_path / "images" / "000000000009.jpg").read_bytes()
    assert first.captions == ("A dog beside a bowl.", "The dog waits.")
    assert first.fields == {
        "image": "000000000009.jpg",
        "width": 40,
        "height": 20,
        "regions": [
            {"box": [0.25, 0.25, 0.75, 0.75], "phrase": "bowl"},
            {"box": [0.0, 0.0, 1.0, 1.0], "phrase": "dog"},
        ],
    }
    assert second.fields["image"] == "train2017/000000000025.jpg"
    assert second.fields["regions"] == []
    assert {path.name for path in out.iterdir()} == {
        "00000.tar",
        "00001.tar",
        "convert.json",
        "report.json",
        "sizes.json",
    }


def test_a_second_run_writes_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "regions",
        "convert",
        *map(str, coco(tmp_path)),
        "--out",
        str(tmp_path / "shards"),
        "--quiet",
    ]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "2 images (1 with regions), 2 regions, 1 shard; 2 images have no caption" in first
    assert f"boxes left out: 1 {CROWD}" in first
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert main(arguments) == 0
    assert capsys.readouterr().out == first.rstrip() + "; complete already, nothing was written\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()} == before
    assert main([*arguments, "--shard-size", "1"]) == 1
    assert "already holds something else" in capsys.readouterr().err


def test_shards_of_files_that_have_changed_are_not_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever file of a format it is; one that no one reads may change."""
    names = {"a": "36979.jpg", "b": "train2014/COCO_train2014_000000000009.jpg"}
    images = write_images(tmp_path / "images", names)
    for path, size in (("VG_100K_2/1.jpg", (40, 20)), (names["b"], (40, 20))):
        (images / path).parent.mkdir(exist_ok=True)
        (images / path).write_bytes(encode(photo(3, size)))
    captions = write_json(tmp_path / "captions.json", region_files.coco_captions())
    refs, entities = region_files.write_refcoco(tmp_path / "r"), region_files.write_flickr30k(tmp_path / "f")
    genome = region_files.write_visual_genome(tmp_path / "vg")
    (entities / "notes.md").touch()
    for number, (source, form, files) in enumerate(
        [
            (refs.with_name("instances.json"), "coco", [refs.with_name("instances.json"), captions]),
            (refs, "refcoco", [refs.with_name("instances.json"), captions]),
            (genome.parent, "visual-genome", [genome, genome.with_name("image_data.json")]),
            (entities, "flickr30k-entities", [entities / "Sentences" / "36979.txt", entities / "train.txt"]),
        ]
    ):
        arguments = ["regions", "convert", str(source), "--format", form, "--images", str(images), "--quiet"]
        arguments += ["--out", str(tmp_path / str(number))]
        arguments += ["--captions", str(captions)] if captions in files else []
        assert main(arguments) == 0
        (entities / "notes.md").write_text(form)
        capsys.readouterr()
        for file in files:
            before = file.read_bytes()
            file.write_bytes(before + b"\n")
            assert main(arguments) == 1
            assert "already holds something else; name a new folder or remove it" in capsys.readouterr().err
            file.write_bytes(before)
            assert main(arguments) == 0
            assert "complete already" in capsys.readouterr().out


def test_the_same_settings_give_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = coco(tmp_path)
    for name in ("one", "two"):
        run(capsys, *arguments, "--out", tmp_path / name)
    assert (tmp_path / "one" / "00000.tar").read_bytes() == (tmp_path / "two" / "00000.tar").read_bytes()


def test_lvis_keeps_the_members_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", {"a": "train2017/000000391895.jpg"})
    source = write_json(tmp_path / "lvis_v1_train.json", region_files.lvis())
    report = run(capsys, source, "--format", "lvis", "--images", images, "--out", tmp_path / "shards")
    assert report["num_images_without_caption"] == 1
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        assert set(tar.getnames()) == {"000000000.jpg", "000000000.json"}
    assert samples(tmp_path / "shards")[0].fields["regions"] == [
        {"box": [0.1, 0.1, 0.3, 0.3], "phrase": "bow weapon"},
        {"box": [0.5, 0.5, 0.75, 0.75], "phrase": "aerosol can"},
    ]


def test_visual_genome(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", {"a": "VG_100K_2/1.jpg", "b": "2.jpg"})
    source = region_files.write_visual_genome(tmp_path / "vg")
    report = run(capsys, source, "--format", "visual-genome", "--images", images, "--out", tmp_path / "out")
    assert (report["num_images"], report["num_regions"]) == (2, 2)
    assert samples(tmp_path / "out")[0].fields["regions"][0] == {
        "box": [0.1, 0.1, 0.3, 0.3],
        "phrase": "the clock is green",
    }


def test_flickr30k_entities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", {"a": "36979.jpg"})
    source = region_files.write_flickr30k(tmp_path / "entities")
    arguments = (source, "--format", "flickr30k-entities", "--images", images, "--split", "train")
    report = run(capsys, *arguments, "--out", tmp_path / "out")
    assert (report["num_regions"], report["num_images_without_caption"]) == (3, 0)
    assert samples(tmp_path / "out")[0].fields["regions"][1] == {
        "box": [0.5, 0.2, 0.7, 0.7],
        "phrase": "one of them",
    }


def test_refcoco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", {"a": "train2014/COCO_train2014_000000000009.jpg"})
    source = region_files.write_refcoco(tmp_path / "refcoco")
    arguments = (source, "--format", "refcoco", "--images", images, "--split", "testA")
    report = run(capsys, *arguments, "--out", tmp_path / "out")
    assert (report["num_images"], report["num_regions"]) == (1, 1)
    assert samples(tmp_path / "out")[0].fields["regions"] == [{"box": [0, 0, 1, 1], "phrase": "big dog"}]


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([10, 5, 0, 10], boxes.NO_AREA),
        ([10, 5, -3, 10], boxes.WRONG_ORDER),
        ([39, 5, 10, 10], boxes.OUTSIDE),
        ([10, 5, float("nan"), 10], boxes.NOT_NUMBERS),
        ([10, 5, 10**400, 10], boxes.NOT_NUMBERS),
        ([20, 10, 1e-5, 10], boxes.NO_AREA),
        ([10, 5, 3], boxes.NOT_NUMBERS),
        (None, boxes.NOT_NUMBERS),
    ],
)
def test_unusable_boxes_are_counted(
    box: object, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = region_files.coco_instances()
    content["annotations"][0]["bbox"] = box
    report = run(capsys, *coco(tmp_path, content), "--out", tmp_path / "out")
    assert report["boxes_left_out"] == {CROWD: 1, reason: 1}
    assert report["examples"][reason] == ["000000000009.jpg"]
    assert [region["phrase"] for region in samples(tmp_path / "out")[0].fields["regions"]] == ["dog"]


def test_an_empty_phrase_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = region_files.coco_instances()
    content["categories"][2]["name"] = " "
    report = run(capsys, *coco(tmp_path, content), "--out", tmp_path / "out")
    assert report["boxes_left_out"] == {CROWD: 1, EMPTY_PHRASE: 1}


def test_boxes_of_another_convention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one image they are counted; where no box is left, the data set is refused."""
    content = region_files.coco_instances()
    content["annotations"] = [
        {"id": 1, "image_id": 25, "category_id": 18, "bbox": [25, 25, 29, 29]},
        {"id": 2, "image_id": 25, "category_id": 18, "bbox": [20, 24, 28, 30]},
        {"id": 3, "image_id": 9, "category_id": 18, "bbox": [0, 0, 40, 20]},
    ]
    report = run(capsys, *coco(tmp_path, content), "--out", tmp_path / "out")
    assert report["boxes_left_out"] == {WRONG_CONVENTION: 2}
    assert "all are possible as x0, y0, x1, y1 in pixels" in report["examples"][WRONG_CONVENTION][0]
    del content["annotations"][2]
    arguments = coco(tmp_path, content)
    assert main(["regions", "convert", *map(str, arguments), "--out", str(tmp_path / "new")]) == 2
    assert "no box can be used" in (error := capsys.readouterr().err)
    assert "all are possible as x0, y0, x1, y1 in pixels" in error
    assert sorted(path.name for path in tmp_path.iterdir() if "new" in path.name) == []


def test_a_file_of_another_convention_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the boxes of all images together, of which no single one has two; nothing is written."""
    content = region_files.coco_instances()
    image, box = content["images"][0], content["annotations"][0]
    corners = [[x, y, x + 8, y + 6] for x in (0, 10, 20, 30) for y in (0, 6, 12)]
    content["images"] = [{**image, "id": number} for number in range(len(corners))]
    for given, message in (
        (
            corners,
            "but 8 of 12 are impossible as such, for example [0.0, 12.0, 8.0, 18.0]; they look like x0,",
        ),
        ([[edge / 40 for edge in box] for box in corners], "they look like fractions of the image"),
    ):
        content["annotations"] = [
            {**box, "id": number, "image_id": number, "bbox": own} for number, own in enumerate(given)
        ]
        arguments = coco(tmp_path, content)
        assert main(["regions", "convert", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.endswith("; convert the file to x, y, width, height in pixels\n")
        assert error.count("\n") == 1
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_entries_that_cannot_be_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = region_files.coco_instances()
    content["images"].append({**content["images"][1], "id": 26, "file_name": None, "coco_url": None})
    del content["annotations"][0]["bbox"]
    report = run(capsys, *coco(tmp_path, content), "--out", tmp_path / "out")
    assert (report["num_images"], report["num_regions"]) == (2, 1)
    assert report["images_left_out"] == {UNREADABLE_IMAGE: 1}
    assert report["boxes_left_out"] == {CROWD: 1, NO_BOX: 1}
    assert report["examples"][NO_BOX] == ["annotation 1"]


def test_an_image_that_is_listed_twice_is_converted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = region_files.coco_instances()
    expected = run(capsys, *coco(tmp_path, content), "--out", tmp_path / "once")
    content["images"].append(content["images"][0])
    report = run(capsys, *coco(tmp_path, content), "--out", tmp_path / "out")
    assert report["images_left_out"] == {LISTED_BEFORE: 1}
    assert report["examples"][LISTED_BEFORE] == [f"images[2]: id {content['images'][0]['id']}"]
    assert (report["num_images"], report["num_regions"]) == (2, expected["num_regions"])
    assert (tmp_path / "out/00000.tar").read_bytes() == (tmp_path / "once/00000.tar").read_bytes()
    content["images"][0] = {"id": content["images"][2]["id"], "file_name": None}
    report = run(capsys, *coco(tmp_path, content), "--out", tmp_path / "second")  # the first cannot be read
    assert report["images_left_out"] == {UNREADABLE_IMAGE: 1}
    assert (report["num_images"], report["num_regions"]) == (2, expected["num_regions"])


@pytest.mark.parametrize(
    ("empty", "message"),
    [("images", "the annotations list no image"), ("annotations", "have no box for any of 2 images")],
)
def test_annotations_of_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], empty: str, message: str
) -> None:
    content = {**region_files.coco_instances(), empty: []}
    if empty == "images":
        content["annotations"] = []
    arguments = [*coco(tmp_path, content), "--out", tmp_path / "out"]
    assert main(["regions", "convert", *map(str, arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unusable_images_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = region_files.coco_instances()
    arguments = coco(tmp_path)
    folder = tmp_path / "images"
    for number, name in enumerate(
        ["gone.jpg", "small.jpg", "cut.jpg", "other.bmp", "/etc/passwd", "../a.jpg"]
    ):
        content["images"].append({"id": 100 + number, "file_name": name, "width": 40, "height": 20})
    (folder / "small.jpg").write_bytes(encode(photo(1, (20, 10))))
    (folder / "cut.jpg").write_bytes(encode(photo(1, (40, 20)))[:-40])
    (folder / "other.bmp").write_bytes(encode(photo(1, (40, 20)), "BMP"))
    (tmp_path / "a.jpg").write_bytes(encode(photo(1, (40, 20))))
    write_json(tmp_path / "instances.json", content)
    report = run(capsys, *arguments, "--out", tmp_path / "out")
    assert report["num_images"] == 2
    expected = {MISSING_FILE: 3, WRONG_SIZE: 1, CORRUPT_IMAGE: 1, OTHER_FILE_FORMAT: 1}
    assert report["images_left_out"] == expected
    assert report["examples"][WRONG_SIZE] == ["small.jpg: 20 x 10 pixels, 40 x 20 annotated"]
    assert report["examples"][MISSING_FILE] == ["gone.jpg", "/etc/passwd", "../a.jpg"]


def test_png_and_webp_keep_their_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = region_files.coco_instances()
    arguments = coco(tmp_path)
    for image, (name, kind) in zip(content["images"], [("a.png", "PNG"), ("b.webp", "WEBP")], strict=True):
        image["file_name"] = name
        (tmp_path / "images" / name).write_bytes(encode(photo(1, (image["width"], image["height"])), kind))
    write_json(tmp_path / "instances.json", content)
    run(capsys, *arguments, "--out", tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        assert {"000000000.png", "000000001.webp"} < set(tar.getnames())
    assert [sample.image[:4] for sample in samples(tmp_path / "out")] == [b"\x89PNG", b"RIFF"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--split", "train"],
            "--split is for flickr30k-entities and refcoco; coco has a file for each split",
        ),
        (["--shard-size", "0"], "--shard-size must be at least 1, got 0"),
        (["--images", "nowhere"], "there is no folder of images nowhere"),
        (["--format", "yolo"], "yolo"),
        (["--format", "flickr30k-entities", "--captions", "c.json"], "which has captions of its own"),
    ],
)
def test_mistakes_in_the_request(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--format": "coco", "--images": str(tmp_path), "--out": str(tmp_path / "out")}
    given.update(zip(arguments[::2], arguments[1::2], strict=True))
    flat = [text for pair in given.items() for text in pair]
    assert main(["regions", "convert", str(tmp_path / "instances.json"), *flat]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_no_image_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = coco(tmp_path)
    (tmp_path / "empty").mkdir()
    arguments[-1] = tmp_path / "empty"
    assert main(["regions", "convert", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
    assert "none of 2 images can be used (2 missing file); see --images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
