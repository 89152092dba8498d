"""Zero-shot classification of images with one label and with several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from clipkit.zeroshot.suite import make_entry
from clipkit.zeroshot.tasks.base import Measurement
from clipkit.zeroshot.tasks.classification import HEADLINES, ZeroshotClassification, data_set_name
from hand_features import at, labelled, made_features, random_rows
from pair_shards import write_pairs
from sklearn.metrics import average_precision_score, balanced_accuracy_score

NAMES = ("cat", "dog", "hen")
TEXTS = {f"a photo of a {name}.": vector for name, vector in zip(NAMES, at(0, 90, 180), strict=True)}
TASK = ZeroshotClassification(data="some/data")


def measured(task: ZeroshotClassification = TASK, **changes: object) -> Measurement:
    """Cats at 10 and 80 degrees, a dog at 95, hens at 170 and 100; the 2nd and the 5th look like dogs."""
    given = {"labels": [0, 0, 1, 2, 2], "classnames": NAMES, **changes}
    images = labelled(at(10, 80, 95, 170, 100), **given)  # type: ignore[arg-type]
    return task.measure(made_features(images, texts=TEXTS))


def test_single_labels_by_hand() -> None:
    found = measured()
    assert list(found.metrics) == ["acc1", "mean_per_class_recall", "ece"]
    assert found.metrics["acc1"] == pytest.approx(3 / 5)
    assert found.metrics["mean_per_class_recall"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert found.outcomes["acc1"].tolist() == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert found.outcomes["acc1"].dtype == torch.float64
    assert found.chance == {"acc1": pytest.approx(1 / 3), "mean_per_class_recall": pytest.approx(1 / 3)}
    # At a temperature of 1/100 every answer is sure: the error is the share of wrong ones.
    assert found.metrics["ece"] == pytest.approx(2 / 5, abs=1e-4)
    confusions, worst = found.tables
    assert confusions.rows == (("cat", "dog", "1", "50.0 %"), ("hen", "dog", "1", "50.0 %"))
    assert worst.rows == (("cat", "2", "50.0 %"), ("hen", "2", "50.0 %"), ("dog", "1", "100.0 %"))
    low, high = found.intervals["mean_per_class_recall"]
    assert 0 <= low < 2 / 3 < high <= 1


def test_the_temperature_is_that_of_the_model() -> None:
    images = labelled(at(10), [0], classnames=NAMES)
    found = TASK.measure(made_features(images, texts=TEXTS, logit_scale=1.0))
    confidence = (torch.tensor([10.0, 80.0, 170.0]).deg2rad().cos().softmax(dim=0))[0]
    assert found.metrics["acc1"] == 1.0
    assert found.metrics["ece"] == pytest.approx(1 - float(confidence), abs=1e-5)


def test_a_class_vector_is_the_unit_mean_of_its_prompts() -> None:
    images = labelled(at(50), [0], classnames=NAMES[:2], templates=("a {c}", "the {c}"))
    # The cat is at 40 degrees, the mean of 0 and 80, and the dog at 70. The mean of the cosines with the cat,
    # 0.754, would lose against the dog's, 0.940.
    texts = dict(zip(("a cat", "the cat", "a dog", "the dog"), at(0, 80, 70, 70), strict=True))
    found = TASK.measure(made_features(images, texts=texts))
    assert found.metrics["acc1"] == 1.0
    assert found.notes[0] == "prompts: 2 templates beside the data"


def test_named_templates_go_before_those_beside_the_data(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("my {}\n")
    images = labelled(at(50), [0], classnames=NAMES[:2], templates=("a {c}",))
    texts = {"my cat": at(40)[0], "my dog": at(70)[0]}
    found = ZeroshotClassification(data="x", templates=str(path)).measure(made_features(images, texts=texts))
    assert found.metrics["acc1"] == 1.0
    assert found.notes[0] == f"prompts: the template 'my {{c}}' of {path}"


def test_five_classes_and_more_have_a_top_five() -> None:
    names = [f"class {number}" for number in range(8)]
    vectors = torch.eye(8)
    texts = {f"a photo of a {name}.": vector for name, vector in zip(names, vectors, strict=True)}
    images = labelled(random_rows(200, 8, seed=0), [row % 8 for row in range(200)], classnames=names)
    found = TASK.measure(made_features(images, texts=texts))
    labels = torch.arange(200) % 8
    expected = (images.features.topk(5).indices == labels[:, None]).any(dim=1)
    assert torch.equal(found.outcomes["acc5"], expected.double())
    assert found.chance["acc5"] == 5 / 8
    recall = balanced_accuracy_score(labels.numpy(), images.features.argmax(dim=1).numpy())
    assert found.metrics["mean_per_class_recall"] == pytest.approx(recall, abs=1e-6)
    assert len(found.tables[0].rows) == 10


def test_two_classes_have_an_area_under_the_curve() -> None:
    images = labelled(at(10, 90, 40, 100), [0, 0, 1, 1], classnames=NAMES[:2])
    task = ZeroshotClassification(data="data/hateful_memes/test")
    found = task.measure(made_features(images, texts=TEXTS))
    # Of the four pairs only that of the cat at 90 and the dog at 40 is in the wrong order: the dog at 100 is
    # less of a dog than that cat, but even less of a cat.
    assert found.metrics["roc_auc"] == pytest.approx(3 / 4)
    assert next(iter(found.metrics)) == "roc_auc"
    assert found.chance["roc_auc"] == 0.5
    assert found.notes[0].endswith("; roc_auc is the usual metric of hatefulmemes")
    one_class = labelled(at(10, 60), [0, 0], classnames=NAMES[:2])
    assert "roc_auc" not in task.measure(made_features(one_class, texts=TEXTS)).metrics


SEVERAL = [[1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]


def test_several_labels() -> None:
    found = measured(
        ZeroshotClassification(data="wds/voc2007_multilabel"),
        labels=(),
        several=[row[:3] for row in SEVERAL],
    )
    assert list(found.metrics) == ["map11", "mean_average_precision"]
    scores = at(10, 80, 95, 170, 100) @ at(0, 90, 180).T
    expected = [
        average_precision_score([row[index] for row in SEVERAL], scores[:, index].numpy())
        for index in range(3)
    ]
    assert found.metrics["mean_average_precision"] == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert found.chance["map11"] == pytest.approx((2 / 5 + 3 / 5 + 2 / 5) / 3)
    for name, value in found.metrics.items():
        low, high = found.intervals[name]
        assert low <= value <= high
    assert found.outcomes == {}
    (worst,) = found.tables
    assert worst.rows[0][0] == "hen"
    assert worst.rows[0][1:] == ("2", f"{100 * expected[2]:.1f} %")


def test_classes_without_images_are_left_out_and_told() -> None:
    texts = TEXTS | {"a photo of a owl.": at(270)[0]}
    images = labelled(at(10, 80, 95, 170, 100), classnames=(*NAMES, "owl"), several=SEVERAL)
    three = measured(labels=(), several=[row[:3] for row in SEVERAL])
    found = TASK.measure(made_features(images, texts=texts))
    assert (found.metrics, found.chance) == (three.metrics, three.chance)
    assert "1 of 4 classes have no image; mean_average_precision leaves them out" in found.notes
    single = measured(labels=[0, 0, 1, 1, 1])
    assert single.metrics["mean_per_class_recall"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert "1 of 3 classes have no image; mean_per_class_recall leaves them out" in single.notes


def test_sentences_of_a_file_are_the_prompts(tmp_path: Path) -> None:
    path = tmp_path / "cupl.json"
    path.write_text(json.dumps({"dog": ["it barks"], "cat": ["it purrs", "it climbs"], "owl": ["no"]}))
    texts = dict(zip(("it barks", "it purrs", "it climbs"), at(90, 0, 40), strict=True))
    images = labelled(at(50, 60), [0, 1], classnames=NAMES[:2])
    found = ZeroshotClassification(data="x", prompts=path).measure(made_features(images, texts=texts))
    # The cat is at 20 degrees, by the unit mean of its sentences.
    assert found.outcomes["acc1"].tolist() == [1.0, 1.0]
    assert found.notes[0] == "prompts: 3 sentences of cupl.json"
    with pytest.raises(ValueError, match="no descriptions of 'hen'"):
        measured(ZeroshotClassification(data="x", prompts=path))


def test_names_of_a_file_replace_those_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("hen\ndog\ncat\n")
    found = measured(ZeroshotClassification(data="x", class_names=path), labels=[2, 2, 1, 0, 0])
    assert found.outcomes["acc1"].tolist() == [1.0, 0.0, 1.0, 1.0, 0.0]
    path.write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"names\.txt names 2 classes, images has 3"):
        measured(ZeroshotClassification(data="x", class_names=path))
    # More names than labels are only there to be told apart from.
    path.write_text("cat\ndog\nhen\nowl\n")
    texts = TEXTS | {"a photo of a owl.": at(100)[0]}
    task = ZeroshotClassification(data="x", class_names=path)
    found = task.measure(made_features(labelled(at(10, 94, 99), [0, 1, 1], classnames=NAMES), texts=texts))
    assert found.outcomes["acc1"].tolist() == [1.0, 1.0, 0.0]
    assert found.chance["acc1"] == 1 / 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 0, 1, 2, 3]}, r"labels must be 0 to 2 for 3 class names, got 0 to 3; give a file"),
        ({"labels": [0, 0, 1, 2, -1]}, r"labels must be 0 to 2 for 3 class names, got -1 to 2"),
        ({"labels": [0, 0, 1, 2, None]}, r"images: images4 has no label"),
        ({"labels": ()}, r"images: images0 has no label"),
        ({"classnames": ()}, r"images has no names of classes; give a file"),
        ({"labels": (), "several": [[1, 0]] * 5}, r"expected 3 labels an image, one a class name, got \[2\]"),
        ({"labels": (), "several": [[0, 0, 0]] * 5}, r"no image has a label"),
        ({"labels": [0, None, None, None, None], "several": [[1, 0, 0]] * 5}, r"some images have one label"),
    ],
)
def test_data_that_does_not_fit_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        measured(**changes)
    assert "\n" not in str(caught.value)


def test_names_that_several_classes_have_are_told() -> None:
    found = measured(classnames=("cat", "dog", "cat"))
    assert "1 names are those of several classes, such as 'cat', which look the same" in found.notes


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("wds/vtab/caltech101", "caltech101"),
        ("hf-hub:clip-benchmark/wds_vtab-caltech101/test", "caltech101"),
        ("/data/wds_fgvc_aircraft/test/{0..3}.tar", "fgvcaircraft"),
        ("https://huggingface.co/datasets/clip-benchmark/wds_vtab-pets/tree/main", "pets"),
        ("C:\\data\\FGVC-Aircraft\\val", "fgvcaircraft"),
        ("flowers/of/mine.csv", "mine"),
        ("hateful_memes.csv", "hatefulmemes"),
        ("/data/train", "data"),
        ("test", ""),
        ("scenes:objects", "scenesobjects"),
    ],
)
def test_names_of_data_sets(location: str, name: str) -> None:
    assert data_set_name(location) == name


def test_the_headline_is_the_usual_one_of_the_data_set() -> None:
    assert {data_set_name(name) for name in HEADLINES} == set(HEADLINES)
    found = measured(ZeroshotClassification(data="wds/vtab/pets"))
    assert next(iter(found.metrics)) == "mean_per_class_recall"
    assert found.metrics == measured().metrics
    # The objects of VOC, cut out, have one label each, and accuracy is all there is.
    assert next(iter(measured(ZeroshotClassification(data="wds/voc2007")).metrics)) == "acc1"
    chosen = ZeroshotClassification(data="wds/vtab/pets", headline="acc1")
    assert next(iter(measured(chosen).metrics)) == "acc1"


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="one of prompts and templates"):
        ZeroshotClassification(data="x", templates="openai", prompts=Path("a.json"))
    with pytest.raises(ValueError, match=r"headline must be one of acc1, .* got 'top1'"):
        ZeroshotClassification(data="x", headline="top1")
    with pytest.raises(ValueError, match="'map11' does not fit the labels of x; choose from acc1, mean_per"):
        measured(ZeroshotClassification(data="x", headline="map11"))


def test_what_is_wrong_with_files_is_known_before_any_image_is_read(tmp_path: Path) -> None:
    tiles = write_pairs(tmp_path / "tiles", 12, labels=True)
    (images,) = (
        make_entry("tiles", {"task": "zeroshot_classification", "data": str(tiles)})
        .settings.sources()
        .values()
    )
    assert len(images) == 12
    with pytest.raises(FileNotFoundError, match=r"templates 'nowhere\.txt'"):
        ZeroshotClassification(data=str(tiles), templates="nowhere.txt").sources()
    path = tmp_path / "cupl.json"
    path.write_text('{"a": ["b"]}')
    with pytest.raises(ValueError, match="descriptions must be of the"):
        ZeroshotClassification(data=str(tiles), prompts=path).sources()
