from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from clipkit.zeroshot.encoder import Encoder
from clipkit.zeroshot.tasks.base import Features, ImageSet
from clipkit.zeroshot.tasks.referring import Referring, share_right
from clipkit.zeroshot.tasks.referring_files import read_questions
from PIL import Image
from small_models import small_model

from clipkit.data.samples import RawSample, Source

BOXES = [[0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 8, 8]]
DOGS = {"image": "dogs.png", "expressions": ["left dog", "white dog"], "boxes": BOXES, "answer": 0}
BALL = {"image": "dogs.png", "expressions": ["the ball"], "boxes": BOXES, "answer": 2}
CUP = {
    "image": "cup.png",
    "expressions": ["a cup"],
    "boxes": [[0, 0, 6, 6], [6, 0, 8, 8]],
    "truth": [0, 0, 5, 6],
}


def write_lines(path: Path, lines: Sequence[Any]) -> str:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    for name in ("dogs.png", "cup.png"):
        Image.new("RGB", (8, 8), "green").save(tmp_path / name)
    return write_lines(tmp_path / "data.jsonl", [DOGS, BALL, CUP])


def made_features(
    task: Referring, images: dict[tuple[str, int, str], list[float]], texts: dict[str, list[float]]
) -> Features:
    """Features by (name of the image, number of the region, kind) and by text; others are not usable."""
    source = task.sources()["regions"]
    samples, rows = [], []
    for index in range(len(source)):
        name, _, prompt = source.where(index).rpartition("#")
        number, kind = prompt.split("/")
        if (Path(name).name, int(number), kind) in images:
            samples.append(RawSample(source.where(index), b"", (), fields={"prompt": index}))
            rows.append(images[Path(name).name, int(number), kind])
    return Features(
        images={"regions": ImageSet(name="regions", features=torch.tensor(rows), samples=tuple(samples))},
        texts=lambda wanted: torch.tensor([texts[text] for text in wanted]),
        logit_scale=10.0,
    )


TEXTS = {
    "a photo of left dog": [1.0, 0.0],
    "a photo of white dog": [0.0, 1.0],
    "a photo of the ball": [0.6, 0.8],
    "a photo of a cup": [0.0, 1.0],
}
# By a crop the dogs are told apart wrongly and the ball rightly; the cup is not the second box.
CROPS = {
    ("dogs.png", 0, "crop"): [0.0, 1.0],
    ("dogs.png", 1, "crop"): [1.0, 0.0],
    ("dogs.png", 2, "crop"): [0.6, 0.8],
    ("cup.png", 0, "crop"): [0.0, 1.0],
    ("cup.png", 1, "crop"): [1.0, 0.0],
}


def test_one_kind_without_subtraction_by_hand(data: str) -> None:
    task = Referring(data=data, kinds=("crop",), subtract=0)
    found = task.measure(made_features(task, CROPS, TEXTS))
    assert found.outcomes["accuracy"].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert found.metrics == {"accuracy": 0.75}
    # Of three candidates one is right, three times, and of two one.
    assert found.chance["accuracy"] == pytest.approx((1 + 1 / 2) / 4)
    assert found.tables[0].header == ("prompt", "accuracy")
    assert found.tables[0].rows == (("crop", "75.0"),)
    assert found.notes == ()


def test_logits_of_several_kinds_are_summed(data: str) -> None:
    # The blurred pictures are surer of the left dog than the crops are of the right one, and no help else.
    blurred = {(name, number, "blur_reverse"): [0.0, 0.0] for name, number, _ in CROPS}
    blurred["dogs.png", 0, "blur_reverse"] = [1.5, 0.0]
    task = Referring(data=data, subtract=0)
    found = task.measure(made_features(task, {**CROPS, **blurred}, TEXTS))
    assert found.outcomes["accuracy"].tolist() == [1.0, 1.0, 0.0, 1.0]
    assert found.outcomes["accuracy_crop"].tolist() == [0.0, 1.0, 1.0, 1.0]
    # Equally good candidates share the answer.
    assert found.outcomes["accuracy_blur_reverse"].tolist() == pytest.approx([1, 1 / 3, 0, 1 / 2])
    assert next(iter(found.metrics)) == "accuracy"
    assert [row[0] for row in found.tables[0].rows] == ["crop", "blur_reverse", "all together"]
    assert found.tables[0].rows[2][1] == "75.0"


def test_a_region_that_matches_everything_is_held_back_by_subtraction(data: str) -> None:
    images = {**CROPS, ("dogs.png", 1, "crop"): [2.0, 2.0], ("dogs.png", 0, "crop"): [1.9, 0.0]}
    task = Referring(data=data, kinds=("crop",))
    found = task.measure(made_features(task, images, TEXTS))
    # The mean expression is (0.4, 0.7): the scores of "left dog" are 1.9, 2, 0.6 less 0.76, 2.2, 0.8.
    assert found.outcomes["accuracy_without_subtraction"].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert found.outcomes["accuracy"].tolist()[0] == 1.0
    assert found.metrics["accuracy"] == found.outcomes["accuracy"].mean().item()
    assert found.tables[0].header == ("prompt", "accuracy", "less 500 random expressions")
    assert found.notes == ("Of 500 random expressions asked for there are 4.",)


def test_subtraction_is_that_of_the_mean_score(data: str) -> None:
    """Against the published procedure written out: score less the mean of scores with each random text."""
    generator = torch.Generator().manual_seed(0)
    images = {key: torch.randn(8, generator=generator).tolist() for key in CROPS}
    texts = {text: torch.randn(8, generator=generator).tolist() for text in TEXTS}
    task = Referring(data=data, kinds=("crop",))
    features = made_features(task, images, texts)
    found = task.measure(features).outcomes["accuracy"]
    expected = []
    for line in (DOGS, BALL, CUP):
        regions = torch.tensor(
            [images[line["image"], number, "crop"] for number in range(len(line["boxes"]))]
        )
        for expression in line["expressions"]:
            scores = regions @ torch.tensor(texts[f"a photo of {expression}"])
            means = torch.stack([regions @ torch.tensor(text) for text in texts.values()]).mean(dim=0)
            expected.append(float((scores - means).argmax() == line.get("answer", 0)))
    assert 0 < sum(expected) < 4
    assert found.tolist() == expected


def test_the_random_expressions_follow_from_the_seed(data: str) -> None:
    asked: dict[int, list[list[str]]] = {}
    for seed in (0, 0, 1, 2, 3):
        task = Referring(data=data, kinds=("crop",), subtract=2, seed=seed)
        features = made_features(task, CROPS, TEXTS)
        calls: list[list[str]] = []

        def texts(wanted: Sequence[str], calls: list[list[str]] = calls) -> torch.Tensor:
            calls.append(list(wanted))
            return torch.tensor([TEXTS[text] for text in wanted])

        task.measure(Features(images=features.images, texts=texts, logit_scale=1.0))
        asked.setdefault(seed, []).append(calls[-1])
    assert asked[0][0] == asked[0][1]
    drawn = [call for calls in asked.values() for call in calls]
    assert all(len(set(call)) == 2 for call in drawn)
    assert len({tuple(call) for call in drawn}) > 1


def test_questions_about_unusable_images_are_left_out_and_counted(data: str) -> None:
    task = Referring(data=data, kinds=("crop",), subtract=0)
    images = {key: value for key, value in CROPS.items() if key != ("cup.png", 1, "crop")}
    found = task.measure(made_features(task, images, TEXTS))
    assert len(found.outcomes["accuracy"]) == 3
    assert found.notes[0].startswith("1 of 3 questions are left out")
    only_one = {("cup.png", 0, "crop"): [1.0, 0.0]}
    with pytest.raises(ValueError, match="no question has all its candidates"):
        task.measure(made_features(task, only_one, TEXTS))


def test_a_region_that_is_asked_for_twice_is_prompted_once(data: str) -> None:
    source = Referring(data=data).sources()["regions"]
    assert len(source) == (3 + 2) * 2
    keys = [source.read(index).key.rpartition("/")[0].rpartition("/")[2] for index in range(0, 10, 2)]
    assert keys == ["dogs.png#0", "dogs.png#1", "dogs.png#2", "cup.png#0", "cup.png#1"]
    kinds = [source.read(index).key.rpartition("/")[2] for index in range(2)]
    assert kinds == ["crop", "blur_reverse"]


def test_shares_of_the_answer() -> None:
    is_right = torch.tensor([False, True, True])
    scores = torch.tensor([[1.0, 3, 2], [3, 1, 2], [3, 3, 1], [1, 1, 1], [math.nan, 3, 1], [1, math.nan, 0]])
    assert share_right(scores, is_right).tolist() == pytest.approx([1, 0, 0.5, 2 / 3, 0, 0])


def test_answers_and_proposals(data: str) -> None:
    found = read_questions(data)
    assert [sorted(question.right) for question in found.questions] == [[0], [2], [0]]
    assert found.expressions == ("left dog", "white dog", "the ball", "a cup")
    # 30 / 36 of the union; half of it is not more than half.
    for truth, right in (([0, 0, 6, 3], []), ([0, 0, 6, 3.1], [0]), ([6, 0, 8, 8], [1])):
        write_lines(Path(data), [{**CUP, "truth": truth}])
        assert sorted(read_questions(data).questions[0].right) == right
    write_lines(Path(data), [{**DOGS, "answer": [0, 1]}])
    assert read_questions(data).questions[0].right == {0, 1}


def test_expressions_without_a_right_candidate_count_as_wrong(data: str) -> None:
    write_lines(Path(data), [{**CUP, "truth": [7, 7, 8, 8]}, {**BALL, "boxes": [BOXES[0]], "answer": 0}])
    task = Referring(data=data, kinds=("crop",), subtract=0)
    found = task.measure(made_features(task, CROPS, TEXTS))
    assert found.outcomes["accuracy"].tolist() == [0.0, 1.0]
    assert found.chance["accuracy"] == 0.5
    assert found.notes == (
        "No candidate is right for 1 of 2 expressions, which count as wrong.",
        "1 of 2 expressions have one candidate only.",
    )


def test_masks_and_images_lie_in_the_folder_of_images(tmp_path: Path) -> None:
    line = {**CUP, "masks": ["m/0.png", None]}
    data = write_lines(tmp_path / "data.jsonl", [line])
    found = read_questions(data, images=str(tmp_path / "photos"))
    assert found.source.where(0) == str(tmp_path / "photos" / "cup.png")
    assert [region.mask for region in found.questions[0].candidates] == [
        tmp_path / "photos" / "m" / "0.png",
        None,
    ]


RECLIP = {
    "file_name": "COCO_train2014_000000000007_3.jpg",
    "image_id": 7,
    "ref_id": 1,
    "anns": [
        {"id": 11, "bbox": [0, 0, 4, 4]},
        {"id": 12, "bbox": [0, 0, 4, 5]},
        {"id": 13, "bbox": [4, 4, 4, 4]},
    ],
    "ann_id": 11,
    "sentences": [{"raw": "Left Dog"}, {"raw": "dog"}],
}


def test_the_release_of_reclip(tmp_path: Path) -> None:
    other = {**RECLIP, "ann_id": ["13"], "anns": [{"id": "13", "bbox": [1, 1, 2, 2]}]}
    data = write_lines(tmp_path / "refcoco_val.jsonl", [RECLIP, other])
    found = read_questions(data)
    assert found.source.where(0) == str(tmp_path / "COCO_train2014_000000000007.jpg")
    assert len(found.source) == 1
    first, second = found.questions
    assert first.expressions == ("left dog", "dog")
    assert [region.box for region in first.candidates] == [(0, 0, 4, 4), (0, 0, 4, 5), (4, 4, 8, 8)]
    # The second annotation covers four fifths of the union with the true one.
    assert first.right == {0, 1}
    assert second.right == {0}


@pytest.mark.parametrize("as_list", [False, True])
def test_the_detections_of_reclip(tmp_path: Path, as_list: bool) -> None:
    boxes = [[0, 0, 5, 4], [4, 4, 2, 2], [0, 0, 1, 1]]
    content: Any = {"7": boxes}
    if as_list:
        content = [{"image_id": 7, "box": box} for box in boxes]
    proposals = tmp_path / "dets.json"
    proposals.write_text(json.dumps(content))
    Image.new("RGB", (6, 4)).save(tmp_path / "without.jpg")
    without = {**RECLIP, "file_name": "without.jpg", "image_id": 8}
    missing = {**RECLIP, "file_name": "missing.jpg", "image_id": 9}
    lines = [RECLIP, without, missing]
    data = write_lines(tmp_path / "refcoco_val.jsonl", lines)
    found = read_questions(data, proposals=str(proposals)).questions
    assert [region.box for region in found[0].candidates] == [(0, 0, 5, 4), (4, 4, 6, 6), (0, 0, 1, 1)]
    assert found[0].right == {0}
    # Where nothing was detected, the whole image is the candidate: 16 of its 24 pixels are the true box.
    assert [region.box for region in found[1].candidates] == [(0, 0, 6, 4)]
    assert found[1].right == {0}
    assert found[2].right == frozenset()


class Shards(Source):
    def __init__(self, fields: list[dict[str, Any]]) -> None:
        super().__init__("shards")
        self.sizes_per_shard = (len(fields),)
        self.fields = fields

    def read(self, index: int) -> RawSample:
        return RawSample(f"s{index}", b"", (), fields=self.fields[index])

    def where(self, index: int) -> str:
        return f"0.tar: s{index}"


def test_regions_in_the_json_of_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    import clipkit.zeroshot.datasets as datasets

    star, moon = {"box": [0, 0, 0.5, 1], "phrase": "the star"}, {"box": [0.5, 0, 1, 1], "phrase": "the moon"}
    source = Shards([{"regions": [star, moon, {**moon, "box": [0, 0, 1, 1]}]}, {"regions": [star]}])
    monkeypatch.setattr(datasets, "open_images", lambda location, *, require: source)
    found = read_questions("shards")
    assert found.expressions == ("the star", "the moon", "the star")
    assert [(question.image, sorted(question.right)) for question in found.questions] == [
        (0, [0]),
        (0, [1, 2]),
        (1, [0]),
    ]
    assert not found.questions[0].candidates[0].in_pixels
    source.fields[1] = {"regions": [{"box": [0, 0, 1, 1]}]}
    with pytest.raises(ValueError, match=r"0\.tar: s1 has no regions .* in its json: 'phrase'"):
        read_questions("shards")
    source.fields[:] = [{"regions": []}, {"regions": []}]
    with pytest.raises(ValueError, match="shards has no regions with phrases"):
        read_questions("shards")
    with pytest.raises(ValueError, match=r"proposals goes with a \.jsonl file, got data 'shards'"):
        read_questions("shards", proposals="dets.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "must be an object"),
        ({**DOGS, "boxes": []}, "boxes must be a list with something in it, got \\[\\]"),
        ({**DOGS, "boxes": [[0, 0, 4]]}, "expected a box of four numbers, got \\[0, 0, 4\\]"),
        ({**DOGS, "boxes": [[4, 0, 4, 4]]}, "expected a box with x0 < x1 and y0 < y1, got"),
        ({**DOGS, "boxes": [[0, 0, 1, math.nan]]}, "expected a box with x0 < x1"),
        ({**DOGS, "answer": 3}, "answer must be a box 0 to 2, got 3"),
        ({**DOGS, "answer": True}, "answer must be a box 0 to 2, got True"),
        ({**DOGS, "answer": []}, "answer must be a box 0 to 2"),
        ({**DOGS, "truth": [0, 0, 1, 1]}, "expected either answer, .* or truth"),
        ({**DOGS, "masks": ["a.png"]}, "a mask for each of 3 boxes, got 1"),
        ({**DOGS, "expressions": ["  "]}, "expected a text, got '  '"),
        ({**DOGS, "expressions": "left dog"}, "expressions must be a list"),
        ({"image": "a.jpg", "boxes": BOXES, "answer": 0}, "line 2 lacks 'expressions'"),
        ({**RECLIP, "ann_id": 14}, "none of its anns has the ann_id 14"),
        ({**RECLIP, "sentences": [{}]}, "lacks 'raw'"),
    ],
)
def test_bad_lines_are_named(data: str, line: Any, message: str) -> None:
    write_lines(Path(data), [DOGS, line])
    with pytest.raises(ValueError, match=message) as raised:
        read_questions(data)
    assert f"{data}, line 2" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_files_are_named(tmp_path: Path, data: str) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl has no referring expression"):
        read_questions(str(empty))
    empty.write_text("{")
    with pytest.raises(ValueError, match=r"empty\.jsonl, line 1 does not parse as JSON"):
        read_questions(str(empty))
    with pytest.raises(OSError, match=r"no\.jsonl"):
        read_questions(str(tmp_path / "no.jsonl"))
    for content, message in (
        ("{", "does not parse"),
        ("[1]", "no detections"),
        ('{"7": [[1, 2]]}', "no detec"),
    ):
        (tmp_path / "dets.json").write_text(content)
        with pytest.raises(ValueError, match=rf"dets\.json .*{message}|dets\.json holds {message}"):
            read_questions(data, proposals=str(tmp_path / "dets.json"))
    (tmp_path / "dets.json").write_text("{}")
    with pytest.raises(ValueError, match="proposals go with ReCLIP's form"):
        read_questions(data, proposals=str(tmp_path / "dets.json"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ("crop", "blur")}, "kinds must be some of crop, box, .* got crop, blur"),
        ({"kinds": ()}, "each once, got none"),
        ({"kinds": ("crop", "crop")}, "each once, got crop, crop"),
        ({"prompt": "a photo"}, "prompt needs {d} where the expression goes, got 'a photo'"),
        ({"subtract": -1}, "subtract must be >= 0, got -1"),
        ({"sigma": 0.0}, "sigma must be > 0, got 0.0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Referring(data="data.jsonl", **settings)


def test_features_of_a_model_end_to_end(data: str) -> None:
    """Regions of other colours through a real tower; the text is the picture that it should find."""
    for name, colours in (("dogs.png", ("red", "white", "blue")), ("cup.png", ("black", "yellow"))):
        image = Image.new("RGB", (8, 8))
        line = DOGS if name == "dogs.png" else CUP
        for box, colour in zip(line["boxes"], colours, strict=True):
            image.paste(colour, tuple(box))
        image.save(Path(data).parent / name)
    model = small_model()
    task = Referring(data=data, kinds=("crop", "box"), subtract=2)
    encoded = Encoder(model, None).images(task.sources()["regions"])
    assert not encoded.unreadable
    image_set = ImageSet(name="regions", features=encoded.features, samples=encoded.samples)
    keys = [f"{Path(data).parent}/dogs.png#0/crop"] * 2 + [
        f"{Path(data).parent}/dogs.png#2/crop",
        f"{Path(data).parent}/cup.png#0/crop",
    ]
    wanted = encoded.features[[image_set.rows[key] for key in keys]]
    by_text = dict(zip(TEXTS, wanted, strict=True))
    features = Features(
        images={"regions": image_set},
        texts=lambda texts: torch.stack([by_text[text] for text in texts]),
        logit_scale=100.0,
    )
    found = task.measure(features)
    assert found.outcomes["accuracy_crop"].shape == (4,)
    plain = Referring(data=data, kinds=("crop",), subtract=0).measure(
        Features(images={"regions": _crops(image_set)}, texts=features.texts, logit_scale=1.0)
    )
    assert plain.metrics["accuracy"] == 1.0


def _crops(image_set: ImageSet) -> ImageSet:
    rows = [row for row, sample in enumerate(image_set.samples) if sample.key.endswith("/crop")]
    samples = tuple(
        RawSample(image_set.samples[row].key, b"", (), fields={"prompt": number})
        for number, row in enumerate(rows)
    )
    return ImageSet(name="regions", features=image_set.features[rows], samples=samples)
