"""Tasks on regions: what they make of features by hand, and of models end to end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from clipkit.zeroshot.region_source import (
    GROUNDED,
    HEAD,
    QUERIES,
    TOKENS,
    FoundByQueries,
    ImageRegions,
    RegionSet,
)
from clipkit.zeroshot.tasks.base import Features, ImageSet, Task
from clipkit.zeroshot.tasks.coco_classes import COCO_CLASSES
from clipkit.zeroshot.tasks.referring import Referring
from clipkit.zeroshot.tasks.region_boxes import RegionBoxes
from clipkit.zeroshot.tasks.region_data import CROPS, IMAGES, open_regions
from clipkit.zeroshot.tasks.region_grounding import RegionGrounding
from clipkit.zeroshot.tasks.region_intervals import class_mean_interval_over_images
from clipkit.zeroshot.tasks.region_recognition import RegionRecognition
from clipkit.zeroshot.tasks.region_retrieval import RegionRetrieval
from hand_features import at
from PIL import Image
from region_shards import COLOURS, draw, made_regions, random_model, trained_model, write_region_shards
from torch import Tensor

from clipkit.cli import main
from clipkit.data.samples import RawSample
from clipkit.regions.boxes import pairwise_iou

LEFT, RIGHT, TOP = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5]
HAND = [
    [{"box": LEFT, "phrase": "a cat"}, {"box": RIGHT, "phrase": "a dog"}],
    [{"box": TOP, "phrase": "A Dog"}],
]
GREY = [Image.new("RGB", (16, 16), "gray")] * 2
TEXTS = {"a cat": at(0)[0], "a dog": at(90)[0], "A Dog": at(90)[0], "a bird": at(200)[0]}


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_region_shards(tmp_path / "shards", HAND, pictures=GREY)


def _features(
    images: Sequence[ImageRegions],
    *,
    lacking: Mapping[str, str] | None = None,
    crops: Tensor | None = None,
    places: Sequence[int] | None = None,
    kind: str | None = "prompter",
) -> Features:
    samples = tuple(RawSample(f"{number}", b"", ()) for number in range(len(images)))
    sets = {IMAGES: ImageSet(name="made", features=torch.zeros(len(images), 2), samples=samples)}
    if crops is not None:
        found = tuple(RawSample(str(n), b"", (), fields={"prompt": n}) for n in range(len(crops)))
        sets[CROPS] = ImageSet(name="made", features=crops, samples=found)
    return Features(
        images=sets,
        texts=lambda wanted: torch.stack([TEXTS[text] for text in wanted]),
        logit_scale=10.0,
        regions={
            IMAGES: RegionSet(
                images=tuple(images),
                index=torch.tensor(range(len(images)) if places is None else places),
                lacking=lacking or {},
                head=kind,
            )
        },
    )


def _image(kept: Sequence[int], boxes: Sequence[Sequence[float]], **answers: Any) -> ImageRegions:
    return ImageRegions(
        kept=torch.tensor(kept, dtype=torch.int64), boxes=torch.tensor(boxes).reshape(-1, 4), **answers
    )


def _with_rows(head: Tensor, tokens: Tensor) -> list[ImageRegions]:
    return [
        _image([0, 1], [LEFT, RIGHT], features={HEAD: head[:2], TOKENS: tokens[:2]}),
        _image([0], [TOP], features={HEAD: head[2:], TOKENS: tokens[2:]}),
    ]


def test_recognition_by_hand(data: str) -> None:
    task = RegionRecognition(data=data)
    # The head mistakes the first dog for a cat, the tokens both dogs, the crops nothing.
    made = _features(_with_rows(at(10, 20, 80), at(10, 20, 30)), crops=at(0, 90, 80))
    found = task.measure(made)
    assert list(found.metrics)[:2] == ["mean_per_class_accuracy", "accuracy"]
    assert found.metrics["mean_per_class_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)
    assert found.metrics["tokens_mean_per_class_accuracy"] == pytest.approx(1 / 2)
    assert found.metrics["tokens_accuracy"] == pytest.approx(1 / 3)
    assert found.metrics["crop_accuracy"] == 1
    assert set(found.chance.values()) == {1 / 2}
    assert found.outcomes["accuracy"].tolist() == [1, 0, 1]
    by_features, published, by_class = found.tables
    assert [row[0] for row in by_features.rows] == [
        "region head (prompter)",
        "control: tokens in the box",
        "control: the box cut out",
    ]
    assert by_features.rows[0][1:] == ("75.0 %", "66.7 %")
    assert by_class.rows == (
        ("a dog", "2", "50.0 %", "0.0 %", "100.0 %"),
        ("a cat", "1", "100.0 %", "100.0 %", "100.0 %"),
    )
    assert published.rows[0] == ("region head (prompter)", "shards, 2 classes", "75.0")
    assert ("CLOC B/16, WiT+DFN (published)", "COCO, 80 classes", "70.1") in published.rows
    assert "arXiv:2410.02746" in published.note
    assert found.notes[0].startswith("3 regions of 2 of 2 classes")


def test_recognition_with_named_classes(data: str, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a bird\na_dog\n")
    TEXTS["a_dog"] = TEXTS["a dog"]
    task = RegionRecognition(data=data, class_names=str(names), controls=())
    task.sources()
    found = task.measure(_features(_with_rows(at(10, 150, 80), at(0, 0, 0))))
    # Of 150 degrees the bird is nearer than the dog.
    assert found.metrics["accuracy"] == 1 / 2
    assert found.metrics["mean_per_class_accuracy"] == 1 / 2
    assert "1 regions whose phrase is no class are left out." in found.notes
    with pytest.raises(
        ValueError, match=r"no region of .* is of a class of coco; its phrases are such as a cat"
    ):
        RegionRecognition(data=data, class_names="coco").sources()
    assert len(set(COCO_CLASSES)) == 80


def test_retrieval_by_hand(data: str) -> None:
    task = RegionRetrieval(data=data, recall_k=(1, 2))
    found = task.measure(_features(_with_rows(at(10, 20, 80), at(10, 95, 85)), crops=at(0, 90, 80)))
    # The first dog finds the cat first, then a dog. The cat finds its region first, and the dogs' text the
    # second dog, which is right for both.
    assert found.outcomes["r2t_recall@1"].tolist() == [1, 0, 1]
    assert found.outcomes["t2r_recall@1"].tolist() == [1, 1, 1]
    assert found.metrics["r2t_recall@2"] == 1
    assert next(iter(found.metrics)) == "r2t_recall@1"
    assert found.metrics["tokens_r2t_recall@1"] == 1
    # "A cat" comes before or behind both of "a dog"; of the regions, one is right for the cat, two for a dog.
    assert found.chance["r2t_recall@1"] == pytest.approx(1 / 2)
    assert found.chance["r2t_recall@2"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert found.chance["t2r_recall@2"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert found.tables[0].rows[0] == ("region head (prompter)", "66.7 %", "100.0 %", "100.0 %", "100.0 %")
    assert "2 distinct phrases; 2 regions share theirs" in found.notes[0]
    assert found.tables[1].rows[-1][1] == "GRIT, 2,000 images"
    with_ten = RegionRetrieval(data=data, recall_k=(10,)).measure(
        _features(_with_rows(at(10, 20, 80), at(0, 0, 0)))
    )
    assert with_ten.tables[1].rows[0] == ("region head (prompter)", "shards, 2 images", "100.0", "100.0")


def test_regions_that_the_crop_cuts_off_are_left_out_of_all_rows_and_counted(data: str) -> None:
    images = [
        _image(
            [1],
            [RIGHT],
            features={HEAD: at(80), TOKENS: at(0)},
            problems={"box_cut_off_by_the_crop": 1},
        )
    ]
    crops = at(0, 90, 80)
    found = RegionRecognition(data=data).measure(_features(images, crops=crops))
    assert (found.metrics["accuracy"], found.metrics["tokens_accuracy"]) == (1, 0)
    assert found.metrics["crop_accuracy"] == 1
    # Other models may have other regions, so that they are not compared region by region.
    assert found.outcomes == {}
    assert set(found.intervals) == set(found.metrics)
    assert "Of 3 regions 1 are left out: 1 box_cut_off_by_the_crop." in found.notes


def test_a_model_without_a_head_has_the_rows_of_the_controls(data: str) -> None:
    images = [
        _image([0, 1], [LEFT, RIGHT], features={TOKENS: at(0, 90)}),
        _image([0], [TOP], features={TOKENS: at(0)}),
    ]
    lacking = {HEAD: "the model has no region head"}
    found = RegionRetrieval(data=data).measure(_features(images, lacking=lacking, kind=None))
    assert all(name.startswith("tokens_") for name in found.metrics)
    assert "No region head: the model has no region head." in found.notes
    bare = [_image([0, 1], [LEFT, RIGHT]), _image([0], [TOP])]
    with pytest.raises(ValueError, match="nothing to measure: the model has no region head; add a control"):
        RegionRetrieval(data=data, controls=()).measure(_features(bare, lacking=lacking, kind=None))


def test_grounding_by_hand(data: str) -> None:
    images = [
        _image(
            [0, 1],
            [LEFT, RIGHT],
            grounded=torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 1.0]]),
            peaks=torch.tensor([[0.9, 0.5], [0.6, 0.5]]),
        ),
        _image([0], [TOP], grounded=torch.tensor([[0.0, 0.0, 1.0, 1.0]]), peaks=torch.tensor([[0.5, 0.1]])),
    ]
    found = RegionGrounding(data=data).measure(_features(images))
    assert found.outcomes["mean_iou"].tolist() == pytest.approx([1 / 2, 0, 1 / 2])
    assert found.outcomes["accuracy@0.5"].tolist() == [1, 0, 1]
    assert found.outcomes["pointing_accuracy"].tolist() == [1, 0, 1]
    assert found.outcomes["tokens_pointing_accuracy"].tolist() == [0, 1, 1]
    assert next(iter(found.metrics)) == "accuracy@0.5"
    assert found.chance == {"accuracy@0.5": 1, "mean_iou": 1 / 2}
    assert found.tables[0].rows[0][:3] == ("large, over 10 %", "3", "66.7 %")


def test_grounding_of_a_phrase_with_several_boxes_takes_the_nearest(tmp_path: Path) -> None:
    twice = [[{"box": LEFT, "phrase": "a dog"}, {"box": RIGHT, "phrase": "a dog"}]]
    shards = write_region_shards(tmp_path / "twice", twice, pictures=GREY[:1])
    answer = _image([0, 1], [LEFT, RIGHT], grounded=torch.tensor([RIGHT]))
    assert RegionGrounding(data=shards).measure(_features([answer])).metrics["mean_iou"] == 1
    # With that box outside the crop, the other is the only right one.
    cut = _image([0], [LEFT], grounded=torch.tensor([RIGHT]))
    assert RegionGrounding(data=shards).measure(_features([cut])).metrics["mean_iou"] == 0


def test_grounding_without_a_head_points_by_tokens(data: str) -> None:
    images = [
        _image([0, 1], [LEFT, RIGHT], peaks=torch.tensor([[0.1, 0.5], [0.2, 0.5]])),
        _image([], [], peaks=torch.tensor([[0.5, 0.1]])),
    ]
    lacking = {GROUNDED: "the model has no region head"}
    found = RegionGrounding(data=data).measure(_features(images, lacking=lacking, kind=None))
    assert found.metrics == {"tokens_pointing_accuracy": 1 / 2}
    assert found.outcomes == {}
    assert "No grounded boxes: the model has no region head." in found.notes


def test_boxes_of_queries_by_hand(data: str) -> None:
    def found_by(*boxes: Sequence[float]) -> FoundByQueries:
        return FoundByQueries(
            boxes=torch.tensor(boxes), features=at(*[0.0] * len(boxes)), image_feature=at(0)[0]
        )

    images = [
        # Each box has the query that is best for it, whatever their order.
        _image([0, 1], [LEFT, RIGHT], queries=found_by([0.5, 0.0, 1.0, 0.5], LEFT)),
        _image([0], [TOP], queries=found_by([0.0, 0.5, 0.1, 0.6], TOP)),
    ]
    found = RegionBoxes(data=data).measure(_features(images, kind="query-decoder"))
    assert found.outcomes["mean_iou"].tolist() == pytest.approx([1, 1 / 2, 1])
    # One query is not enough for two boxes.
    images[0] = _image([0, 1], [LEFT, RIGHT], queries=found_by([0.5, 0.0, 1.0, 0.5]))
    images[1] = _image([0], [TOP], queries=found_by(TOP))
    found = RegionBoxes(data=data).measure(_features(images, kind="query-decoder"))
    assert found.outcomes["mean_iou"].tolist() == pytest.approx([0, 1 / 2, 1])
    assert found.metrics["recall@0.5"] == pytest.approx(2 / 3)
    assert "1 of 3 boxes are more than the 1 queries of an image and count as not found." in found.notes
    lacking = {QUERIES: "the model has no region head"}
    with pytest.raises(ValueError, match=r"no region head: train .*--regions\.head query-decoder"):
        RegionBoxes(data=data).measure(_features(images, lacking=lacking))


def test_regions_of_a_data_set_are_checked_and_counted(tmp_path: Path) -> None:
    bad = [
        [
            {"box": LEFT, "phrase": "a cat"},
            {"box": LEFT, "phrase": " "},
            {"box": [0.1, 0.1, 0.1, 0.5], "phrase": "a line"},
            {"box": [0.1, float("nan"), 0.3, 0.5], "phrase": "nothing"},
        ],
        [],
        [{"box": RIGHT, "phrase": "a dog"}, {"box": RIGHT, "phrase": "a dog"}, {"box": TOP, "phrase": "it"}],
    ]
    pool = open_regions(write_region_shards(tmp_path / "some", bad, pictures=[GREY[0]] * 3))
    assert pool.numbers == (0, 2)
    assert pool.phrases == ("a cat", "a dog", "a dog", "it")
    assert pool.starts == [0, 1]
    assert pool.lost == {
        "region_without_phrase": 1,
        "box_without_area": 1,
        "box_not_four_finite_numbers": 1,
    }
    assert pool.num_without == 1
    pixels = [[{"box": [10, 20, 30, 40], "phrase": "a cat"}]] * 2
    with pytest.raises(ValueError, match=r"got \[10.0, 20.0, 30.0, 40.0\]: they look like pixels"):
        open_regions(write_region_shards(tmp_path / "pixels", pixels, pictures=GREY))
    # Two boxes an image are too few to tell; all together are not.
    sides = [[{"box": [0.5 + n / 50, 0.6, 0.1, 0.3], "phrase": "a cat"}] for n in range(2)] * 6
    with pytest.raises(ValueError, match=r"they look like x, y, width, height in fractions"):
        open_regions(write_region_shards(tmp_path / "sides", sides, pictures=[GREY[0]] * 12))
    with pytest.raises(ValueError, match=r"has no regions: expected .*clipkit regions convert"):
        open_regions(write_region_shards(tmp_path / "none", [[], []], pictures=GREY))


def test_a_pool_is_drawn_by_its_seed(tmp_path: Path) -> None:
    shards = write_region_shards(tmp_path / "many", made_regions(12))
    pools = [open_regions(shards, max_images=5, seed=seed).numbers for seed in (0, 0, 1)]
    assert pools[0] == pools[1] != pools[2]
    assert [len(pool) for pool in pools] == [5, 5, 5]
    assert list(pools[0]) == sorted(pools[0])
    assert len(open_regions(shards, max_images=99).numbers) == 12


@pytest.mark.parametrize("task", [RegionRecognition, RegionRetrieval])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"controls": ("crops",)}, "controls must be some of tokens, crop"),
        ({"max_images": -1}, "max_images must be >= 0"),
    ],
)
def test_settings_are_checked(task: type[Task], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(data="scenes", **settings)  # type: ignore[call-arg]


def test_referring_by_features_of_regions(data: str) -> None:
    task = Referring(data=data, kinds=("region", "tokens"), subtract=0, prompt="{d}")
    assert list(task.sources()) == ["images"]
    images = _with_rows(at(10, 80, 80), at(80, 10, 80))
    found = task.measure(_features(images))
    assert found.outcomes["accuracy_region"].tolist() == [1, 1, 1]
    assert found.outcomes["accuracy_tokens"].tolist() == [0, 0, 1]
    images[0] = _image([1], [RIGHT], features={HEAD: at(80), TOKENS: at(80)})
    left = task.measure(_features(images))
    assert left.outcomes["accuracy_region"].tolist() == [1]
    assert any(note.startswith("2 of 3 questions are left out") for note in left.notes)
    with pytest.raises(ValueError, match="the model has no region head"):
        task.measure(_features(images, lacking={HEAD: "the model has no region head"}))


def _evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, float]:
    assert main(["evaluate", *arguments, "--json", "--quiet"]) == 0
    metrics: dict[str, float] = json.loads(capsys.readouterr().out)["metrics"]
    return metrics


def test_a_head_that_learned_the_colours_recognises_regions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    regions = made_regions(12)
    shards = write_region_shards(tmp_path / "shards", regions)
    trained_model(regions).save(tmp_path / "model")
    output = ["--output", str(tmp_path / "results"), "--data", shards]
    recognised = _evaluate(capsys, str(tmp_path / "model"), "--task", "region_recognition", *output)
    assert recognised["accuracy"] > 0.9
    retrieved = _evaluate(capsys, str(tmp_path / "model"), "--task", "region_retrieval", *output)
    assert retrieved["r2t_recall@1"] == pytest.approx(recognised["accuracy"])
    assert set(retrieved) >= {"tokens_r2t_recall@10", "crop_t2r_recall@1"}
    text = (tmp_path / "results" / "report.md").read_text()
    assert "region head (roi-align)" in text
    assert "CLOC L/14 (published)" in text
    # Another head of the same towers is another model to results and cache.
    random_model("roi-align", seed=5).save(tmp_path / "model")
    other = _evaluate(capsys, str(tmp_path / "model"), "--task", "region_recognition", *output)
    assert other["accuracy"] < recognised["accuracy"]
    assert other["tokens_accuracy"] == recognised["tokens_accuracy"]


def test_grounding_and_boxes_end_to_end_equal_the_model_image_by_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    regions = made_regions(4)
    shards = write_region_shards(tmp_path / "shards", regions)
    model = random_model("query-decoder")
    model.save(tmp_path / "model")
    output = ["--output", str(tmp_path / "results"), "--data", shards]
    grounded = _evaluate(capsys, str(tmp_path / "model"), "--task", "region_grounding", *output)
    ious = []
    for own in regions:
        image = model.preprocess()(draw(own))[None]
        boxes = model.ground(image, [one["phrase"] for one in own])
        ious += pairwise_iou(boxes, torch.tensor([one["box"] for one in own])).diagonal().tolist()
    assert grounded["mean_iou"] == pytest.approx(sum(ious) / len(ious), abs=1e-5)
    matched = _evaluate(capsys, str(tmp_path / "model"), "--task", "region_boxes", *output)
    assert 0 <= matched["mean_iou"] < 1
    random_model(None).save(tmp_path / "plain")
    assert main(["evaluate", str(tmp_path / "plain"), "--task", "region_boxes", *output, "--quiet"]) == 2
    assert "query-decoder" in capsys.readouterr().err
    pointed = _evaluate(capsys, str(tmp_path / "plain"), "--task", "region_grounding", *output)
    assert list(pointed) == ["tokens_pointing_accuracy"]
    assert len(COLOURS) == 4


def test_the_interval_of_a_class_mean_is_around_it_and_by_image() -> None:
    """Of ten classes of one region, all right, and one of 200 regions, half of them right."""
    labels = torch.tensor([*range(10), *[10] * 200])
    values = torch.tensor([1.0] * 10 + [1.0, 0.0] * 100)
    alone = torch.arange(210)
    low, high = class_mean_interval_over_images(values, labels, alone)
    # By hand: 10 / 11 + 0.5 / 11, of which only the last class is uncertain, by 0.5 / sqrt(200).
    assert (low + high) / 2 == pytest.approx(10.5 / 11, abs=0.001)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 200**0.5 / 11, rel=0.1)
    # Where four regions of an image are right or wrong together, it is twice as wide.
    together = values.clone()
    together[10:] = torch.tensor([1.0] * 4 + [0.0] * 4).repeat(25)
    image = torch.cat([alone[:10], 10 + torch.arange(50).repeat_interleave(4)])
    wide_low, wide_high = class_mean_interval_over_images(together, labels, image)
    assert wide_high - wide_low == pytest.approx(2 * (high - low), rel=0.15)
