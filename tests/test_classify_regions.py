"""`clipkit classify` about boxes, and with the regions that a query decoder finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from clipkit.zeroshot.box_files import read_boxes
from clipkit.zeroshot.scoring import class_means
from PIL import Image
from region_shards import COLOURS, draw, made_regions, random_model, trained_model

from clipkit.cli import main
from clipkit.regions.answers import grid_of

REGIONS = made_regions(12)
BANK = {"cat": ["whiskers", "a long tail"], "dog": ["often barks"], "cow": []}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, own in enumerate(REGIONS):
        draw(own).save(folder / f"{number:02d}.png")
    return folder


def _write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def _boxes(side: int = 1) -> dict[str, list[list[float]]]:
    return {
        f"{number:02d}.png": [[edge * side for edge in one["box"]] for one in own]
        for number, own in enumerate(REGIONS)
    }


def _classify(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[Any], str]:
    status = main(["classify", *arguments, "--json"])
    printed = capsys.readouterr()
    return status, [json.loads(line) for line in printed.out.splitlines()], printed.err


def test_boxes_get_the_class_that_the_head_has_learned(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_model(REGIONS).save(tmp_path / "model")
    (tmp_path / "templates.txt").write_text("{c}\n")
    how = ["--model", str(tmp_path / "model"), "--classes", ",".join(COLOURS)]
    how += ["--templates", str(tmp_path / "templates.txt"), "--top", "1"]
    fractions, pixels = _boxes(), _boxes(side=64)
    fractions["02.png"].append([0.1, 0.2, 0.1, 0.4])
    pixels["02.png"].append([70, 70, 90, 90])
    coco = {
        "images": [{"id": 7 + number, "file_name": name} for number, name in enumerate(pixels)],
        "annotations": [
            {"image_id": 7 + number, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            for number, own in enumerate(pixels.values())
            for x0, y0, x1, y1 in own
        ],
    }
    right = [one["phrase"] for own in REGIONS for one in own]
    given = [box for own in _boxes().values() for box in own]
    for name, content, scale, note in (
        ("fractions", fractions, 1, "24 boxes in fractions of the picture; left out: 1 box_without_area"),
        ("pixels", pixels, 64, "boxes left out: 1 box_outside_the_image\n25 boxes in pixels"),
        ("coco", coco, 64, "boxes left out: 1 box_outside_the_image\n25 boxes in pixels"),
    ):
        file = _write(tmp_path / f"{name}.json", content)
        status, found, said = _classify(capsys, str(pictures), *how, "--boxes", file)
        assert status == 0, said
        assert note in said
        assert [one["predictions"][0]["class_name"] for one in found] == right
        assert [one["path"] for one in found][:3] == [f"{pictures}/00.png"] * 2 + [f"{pictures}/01.png"]
        for one, box in zip(found, given, strict=True):
            assert one["box"] == pytest.approx([edge * scale for edge in box], abs=1e-5)
    # Without paths, the pictures are those of the file, in its folder.
    file = _write(pictures / "boxes.json", {"03.png": _boxes()["03.png"]})
    assert main(["classify", *how, "--boxes", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{pictures}/03.png  [0.02, ")
    assert lines[0].split("]  ")[1].startswith(f"{REGIONS[3][0]['phrase']} ")


def test_pictures_without_boxes_are_counted_and_unreadable_ones_reported(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_model("prompter").save(tmp_path / "model")
    (pictures / "01.png").write_bytes(b"nothing")
    boxes = {str(pictures / f"0{n}.png"): [[0.1, 0.1, 0.5, 0.5]] for n in (0, 1)}
    file = _write(tmp_path / "boxes.json", boxes)
    how = ["--model", str(tmp_path / "model"), "--classes", "a,b", "--boxes", file]
    status, found, said = _classify(capsys, str(pictures), *how)
    assert status == 1
    assert len(found) == 1
    assert "10 pictures without boxes" in said
    assert "01.png: not an image" in said
    explained = _classify(capsys, str(pictures / "00.png"), *how, "--explain")[1]
    assert len(explained[0]["explanations"]) == 2
    assert "box" not in _classify(capsys, str(pictures / "00.png"), *how[:4])[1][0]


def test_the_second_question_about_boxes_is_answered_from_the_cache(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_model("prompter", seed=3).save(tmp_path / "model")
    how = ["--model", str(tmp_path / "model"), "--boxes", _write(pictures / "boxes.json", _boxes())]
    first = _classify(capsys, *how, "--classes", "a,b")
    second = _classify(capsys, *how, "--classes", "a,b")
    assert first[1] == second[1]
    assert "features of 0 were known" in first[2]
    assert "features of 12 were known" in second[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "does not parse as JSON"),
        (
            "[1]",
            "must hold {image: [[x0, y0, x1, y1], ...]} or COCO's images and annotations: got a JSON list",
        ),
        ('{"a.png": 3}', "annotations: 'a.png' has 3 instead of a list of boxes"),
        ('{"a.png": {"box": [0, 0, 1, 1]}}', 'has {"box": [0, 0, 1, 1]} instead of a list of boxes'),
        ('{"images": 3, "annotations": []}', "annotations: images must be a list, got int"),
        ('{"a.png": [[50, 60, 10, 20], [80, 10, 20, 30]]}', "are impossible"),
        ('{"images": [], "annotations": {"image_id": 1}}', "must hold {image:"),
        ('{"images": [], "annotations": [{"image_id": 1}]}', "1 box_of_an_image_that_is_not_listed"),
        ('{"a.png": [[1e999, 0, 1, 1], [1%s, 0, 1, 1]]}' % ("0" * 400), "2 box_not_four_finite_numbers"),
        (
            '{"images": [{"id": 1, "file_name": "a.png"}], '
            '"annotations": [{"image_id": 1, "bbox": [0.1, 0.1, 0.5, 0.5]}]}',
            "got [0.1, 0.1, 0.5, 0.5]: they look like fractions of the image; convert the file to x, y",
        ),
        ('{"a.png": [[1, 1, 1, 5]]}', "has no usable box (left out: 1 box_without_area)"),
        ('{"b.png": [[0, 0, 1, 1]]}', "none of 1 pictures has boxes"),
        ('{"x/a.png": [[0, 0, 1, 1]], "y/a.png": [[0, 0, 1, 1]]}', "may be those of x/a.png or of y/a.png"),
    ],
)
def test_files_of_boxes_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "boxes.json").write_text(content)
    how = ["--model", "x", "--classes", "a,b", "--boxes", str(tmp_path / "boxes.json")]
    assert main(["classify", str(tmp_path / "a.png"), *how]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("boxes.json") <= 1
    assert error.count("\n") == 1


def test_a_model_without_a_region_head_is_refused_in_one_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_model(None).save(tmp_path / "model")
    how = ["--model", str(tmp_path / "model"), "--classes", "a,b"]
    file = _write(tmp_path / "boxes.json", _boxes())
    assert main(["classify", str(pictures), *how, "--boxes", file]) == 2
    error = capsys.readouterr().err
    assert "no region head: train one with `clipkit train --regions.head prompter`" in error
    assert error.count("\n") == 1


def _mixed(
    capsys: pytest.CaptureFixture[str], pictures: Path, model: Path, bank: str, weight: float
) -> list[Any]:
    how = ["--model", str(model), "--descriptions", bank, "--image-weight", str(weight), "--top", "3"]
    return _classify(capsys, str(pictures), *how)[1]


def test_grains_score_is_that_of_a_slow_oracle(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model("query-decoder")
    model.save(tmp_path / "model")
    bank = _write(tmp_path / "bank.json", BANK)
    prompts = ["cat, which has whiskers.", "cat, which is a long tail.", "dog, which often barks.", "cow."]
    owners = [0, 0, 1, 2]
    with torch.no_grad():
        texts = model.encode_text(model.tokenizer(prompts), normalize=True)
        images = torch.stack([model.preprocess()(draw(own)) for own in REGIONS])
        seen = model.tokens(images)
        found = model.region_head.find(seen.tokens[0], grid_of(seen))  # type: ignore[union-attr, operator]
    means = class_means(texts, torch.tensor(owners), 3)
    for weight in (0.0, 0.3, 1.0):
        answers = _mixed(capsys, pictures, tmp_path / "model", bank, weight)
        for row, answer in enumerate(answers):
            scores = {}
            for label, name in enumerate(("cat", "dog", "cow")):
                own = [text for text, owner in zip(texts, owners, strict=True) if owner == label]
                best = [max(float(query @ text) for text in own) for query in found.features[row]]
                whole = float(found.image_features[row] @ means[label])
                scores[name] = weight * whole + (1 - weight) * sum(best) / len(best)
            given = {one["class_name"]: one["score"] for one in answer["predictions"]}
            assert given == pytest.approx(scores, abs=1e-5)
            assert answer["predictions"][0]["class_name"] == max(scores, key=lambda name: scores[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-weight", "0.5", "--classes", "a,b"], "--image-weight needs --descriptions"),
        (["--image-weight", "2", "--descriptions", "bank.json"], "must be from 0 to 1, got 2"),
        (["--image-weight", "1", "--descriptions", "bank.json", "--explain"], "leave out --boxes, --explain"),
        (
            ["--image-weight", "1", "--descriptions", "bank.json"],
            "prompter, which finds no regions by itself: train a query decoder",
        ),
        (["--boxes", "b.json", "--head", "birds"], "answers about whole pictures: leave out --boxes"),
        (["--boxes", "b.json", "--classes", "a,b", "--cards", "c"], "--cards draws whole pictures"),
    ],
)
def test_what_does_not_go_together_is_refused(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "bank.json", BANK)
    random_model("prompter").save(tmp_path / "model")
    assert main(["classify", str(pictures), "--model", "model", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_names_are_matched_by_path_before_by_name(tmp_path: Path) -> None:
    paths = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "a.png")
        Image.new("RGB", (8, 8)).save(paths[-1])
    content = {"x/a.png": [[0, 0, 1, 1]], "y/a.png": [[0, 0, 0.5, 1], [0, 0, 1, 0.5]]}
    file = read_boxes(Path(_write(tmp_path / "boxes.json", content)))
    assert [len(own) for own in file.of(paths[::-1])] == [2, 1]
    assert not file.in_pixels


def test_an_edge_that_rounding_moved_makes_no_pixels(tmp_path: Path) -> None:
    """Nor do a box far outside and a box of zeros, which are bad themselves."""
    content = {"a.png": [[0.4, 0, 1.0000001, 1], [0.1, 0.1, 0.2, 30], [0, 0, 0.5, 0.5]]}
    file = read_boxes(Path(_write(tmp_path / "boxes.json", content)))
    assert not file.in_pixels
    assert [region.box for region in file.regions["a.png"]] == [(0.4, 0, 1, 1), (0, 0, 0.5, 0.5)]
    assert file.problems == {"box_outside_the_image": 1}


def test_crowds_and_unlisted_images_of_coco_are_counted(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": None}],
        "annotations": [
            {"image_id": 1, "bbox": [1, 1, 4, 4]},
            {"image_id": 1, "bbox": [0, 0, 8, 8], "iscrowd": 1},
            {"image_id": 2, "bbox": [1, 1, 4, 4]},
            {"image_id": [], "bbox": [1, 1, 4, 4]},
            {"image_id": 1},
            {"image_id": 1, "bbox": [1, 1, 0, 4]},
        ],
    }
    file = read_boxes(Path(_write(tmp_path / "boxes.json", content)))
    assert [region.box for region in file.regions["a.png"]] == [(1, 1, 5, 5)]
    assert file.problems == {
        "annotation_without_a_box": 1,
        "box_of_a_crowd": 1,
        "box_of_an_image_that_is_not_listed": 2,
        "box_without_area": 1,
    }


@pytest.mark.parametrize("size_is_in", ["file", "picture"])
def test_corners_in_a_coco_file_are_refused(tmp_path: Path, size_is_in: str) -> None:
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    size = {"width": 100, "height": 80} if size_is_in == "file" else {}
    name = "a.png" if size_is_in == "picture" else "elsewhere.png"
    corners = [[x, y, x + 20, y + 10] for x in (0, 30, 60, 80) for y in (0, 20, 70)]
    content = {
        "images": [{"id": 1, "file_name": name, **size}],
        "annotations": [{"image_id": 1, "bbox": box} for box in corners],
    }
    message = r"boxes\.json: boxes must be x, y, width, height in pixels, but 8 of 12 .* like x0, y0, x1, y1"
    with pytest.raises(ValueError, match=message):
        read_boxes(Path(_write(tmp_path / "boxes.json", content)))
    for annotation, (x0, y0, x1, y1) in zip(content["annotations"], corners, strict=True):
        annotation["bbox"] = [x0, y0, x1 - x0, y1 - y0]
    assert len(read_boxes(Path(_write(tmp_path / "boxes.json", content))).regions[name]) == 12
