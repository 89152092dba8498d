from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from clipkit.zeroshot.tasks.language_files import level_of_size, read_labels
from clipkit.zeroshot.tasks.multilingual import Multilingual
from made_features import features_of, random_unit
from PIL import Image
from torch import Tensor

E = torch.eye(4)
LABELS = {
    "EN": [[0, 1, 2, 3], ["dog", "cat", "crane", "crane"]],
    "DE": [[2, 0], ["Kran", "Hund"]],
    "SW": [[1, 2, 3], ["paka", "korongo", "x"]],
}
TEXTS = {
    "dog": E[0],
    "cat": E[1],
    "crane": E[2],
    "Hund": E[0],
    "Kran": E[2],
    "paka": E[1],
    "korongo": E[2],
    "x": E[3],
}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return write(tmp_path / "labels.json", LABELS)


def image_features(vectors: list[Tensor], numbers: list[int], texts: dict[str, Tensor], **named: Any) -> Any:
    return features_of(
        dict(zip(map(str, range(len(numbers))), vectors, strict=True)), texts, labels=numbers, **named
    )


# Two images of class 0, one of each other; the second is taken for a cat, of class 3 for what it is.
VECTORS, NUMBERS = [E[3], E[0], E[1], E[2], E[1]], [3, 0, 0, 2, 1]


def test_by_hand(labels: Path) -> None:
    task = Multilingual(data="unused", labels=labels)
    found = task.measure(image_features(VECTORS, NUMBERS, TEXTS))
    # DE: of classes 0 and 2, the cat-like dog ties between Kran and Hund, and the first, Kran, is taken.
    # SW: of classes 1, 2, 3, all right. EN: the second crane is never predicted, one dog is a cat.
    assert found.metrics == pytest.approx(
        {"mean_acc1": (2 / 3 + 1) / 2, "english_acc1": 3 / 5, "mean_acc1_low": (2 / 3 + 1) / 2}
    )
    assert next(iter(found.metrics)) == "mean_acc1"
    for name, values in found.outcomes.items():
        assert float(values.mean()) == pytest.approx(found.metrics[name])
    assert sorted(found.outcomes["english_acc1"].tolist()) == pytest.approx([0, 0, 1, 1, 1])
    assert found.chance == pytest.approx(
        {"mean_acc1": (1 / 2 + 1 / 3) / 2, "english_acc1": 1 / 4, "mean_acc1_low": (1 / 2 + 1 / 3) / 2}
    )
    levels, languages = found.tables
    assert levels.rows == (("low", "2", "83.3 %", "41.7 %"),)
    assert languages.title == "3 of the 3 languages of labels.json"
    assert languages.rows == (
        ("EN", "low", "4", "5", "60.0 %", "25.00 %", "80.0 %"),
        ("DE", "low", "2", "3", "66.7 %", "50.00 %", "100.0 %"),
        ("SW", "low", "3", "3", "100.0 %", "33.33 %", "100.0 %"),
    )
    assert found.notes == (
        "In 1 languages several classes share a label, which bounds their accuracy; most in EN, to 80.0 % "
        "(2 classes are 'crane').",
    )


def test_of_classes_with_one_label_the_first_is_predicted(labels: Path) -> None:
    task = Multilingual(data="unused", labels=labels, languages=("EN",))
    found = task.measure(image_features([E[2], E[2], E[2]], [3, 2, 3], TEXTS))
    assert found.outcomes["english_acc1"].tolist() == pytest.approx([0, 1, 0])
    assert found.tables[1].rows[0][6] == "33.3 %"


def test_equals_a_slow_oracle(tmp_path: Path) -> None:
    """Per language: images of its classes, among its classes, by the mean of the prompts' unit vectors."""
    generator = torch.Generator().manual_seed(0)
    content = {}
    for number in range(6):
        classes = torch.randperm(20, generator=generator)[: 4 + 2 * number].tolist()
        content[f"L{number}"] = [classes, [f"L{number} c{c}" for c in classes]]
    prompts = {language: ["{} one", "two {c}", "{} three"] for language in content}
    texts = {
        prompt.replace("{c}", "{}").format(label): random_unit(1, 16, seed=1000 + 7 * n + m)[0]
        for n, (_, names) in enumerate(content.values())
        for m, label in enumerate(names)
        for prompt in prompts[f"L{n}"]
    }
    for place, text in enumerate(texts):
        texts[text] = random_unit(1, 16, seed=place)[0]
    numbers = torch.randint(20, (150,), generator=generator).tolist()
    vectors = list(random_unit(150, 16, seed=5))
    task = Multilingual(
        data="unused",
        labels=write(tmp_path / "labels.json", content),
        prompts=write(tmp_path / "prompts.json", prompts),
    )
    found = task.measure(image_features(vectors, numbers, texts))
    accuracies = []
    for language, (classes, names) in content.items():
        means = [
            sum(texts[prompt.replace("{c}", "{}").format(name)] for prompt in prompts[language])
            for name in names
        ]
        classifier = torch.stack([mean / mean.norm() for mean in means])
        own = [(vector, classes.index(n)) for vector, n in zip(vectors, numbers, strict=True) if n in classes]
        right = sum(int((classifier @ vector).argmax()) == place for vector, place in own)
        accuracies.append(right / len(own))
        row = next(row for row in found.tables[1].rows if row[0] == language)
        assert row[2:5] == (str(len(classes)), str(len(own)), f"{100 * right / len(own):.1f} %")
        assert row[5] == f"{100 / len(classes):.2f} %"
    assert 0 < min(accuracies) < max(accuracies) < 1
    assert found.metrics["mean_acc1"] == pytest.approx(sum(accuracies) / 6)


def test_random_features_are_at_the_random_level_of_each_language(tmp_path: Path) -> None:
    content = {
        "AA": [list(range(40)), [f"a{n}" for n in range(40)]],
        "BB": [[3, 7, 9, 11], ["b", "c", "d", "e"]],
    }
    texts = {
        label: vector
        for _, names in content.values()
        for label, vector in zip(names, random_unit(len(names), 64, seed=len(names)), strict=True)
    }
    numbers = [n for n in range(40) for _ in range(100)]
    found = Multilingual(data="unused", labels=write(tmp_path / "labels.json", content)).measure(
        image_features(list(random_unit(4000, 64, seed=3)), numbers, texts)
    )
    for row, num_images, chance in zip(found.tables[1].rows, (4000, 400), (1 / 40, 1 / 4), strict=True):
        assert row[3] == f"{num_images:,}"
        accuracy = float(row[4].removesuffix(" %")) / 100
        assert abs(accuracy - chance) < 4 * math.sqrt(chance * (1 - chance) / num_images) + 5e-4
    assert found.chance["mean_acc1"] == pytest.approx((1 / 40 + 1 / 4) / 2)


def test_outcomes_are_of_images_and_have_the_spread_of_the_mean_over_languages(labels: Path) -> None:
    """Drawing an image again draws its outcomes in all languages, so that they add up to its value."""
    found = Multilingual(data="unused", labels=labels).measure(image_features(VECTORS, NUMBERS, TEXTS))
    values = found.outcomes["mean_acc1"]
    assert values.shape == (5,)
    mean = 5 / 6
    # Image 2, the cat-like dog, is only in DE, wrong: (0 - 2/3) / 3 * 5 / 2. Image 3 is in both, right.
    assert values.tolist() == pytest.approx(
        [mean, mean + (1 / 3) / 3 * 2.5, mean - (2 / 3) / 3 * 2.5, mean + (1 / 3) / 3 * 2.5, mean]
    )


def test_languages_are_chosen(labels: Path) -> None:
    features = image_features(VECTORS, NUMBERS, TEXTS)
    found = Multilingual(data="unused", labels=labels, languages=("sw", "EN")).measure(features)
    assert [row[0] for row in found.tables[1].rows] == ["EN", "SW"]
    assert found.tables[1].title == "2 of the 3 languages of labels.json"
    english = Multilingual(data="unused", labels=labels, languages=("EN",)).measure(features)
    assert list(english.metrics) == ["english_acc1"]
    with pytest.raises(ValueError, match="no labels in the language 'DEU'; did you mean 'DE'"):
        Multilingual(data="unused", labels=labels, languages=("DEU",)).sources()


def test_levels(tmp_path: Path, labels: Path) -> None:
    assert [level_of_size(n) for n in (1, 99, 100, 299, 300, 1000)] == [
        "low",
        "low",
        "mid",
        "mid",
        "high",
        "high",
    ]
    levels = write(tmp_path / "levels.json", {"DE": "rich", "EN": "rich"})
    found = Multilingual(data="unused", labels=labels, levels=levels).measure(
        image_features(VECTORS, NUMBERS, TEXTS)
    )
    assert found.metrics["mean_acc1_rich"] == pytest.approx(2 / 3)
    assert found.metrics["mean_acc1_no level"] == pytest.approx(1)
    assert [row[:2] for row in found.tables[0].rows] == [("no level", "1"), ("rich", "1")]
    for content in ([], {"DE": ["rich"]}):
        with pytest.raises(
            ValueError, match="must hold {LANGUAGE: level}".replace("{", r"\{").replace("}", r"\}")
        ):
            Multilingual(data="unused", labels=labels, levels=write(levels, content)).measure(
                image_features(VECTORS, NUMBERS, TEXTS)
            )


def test_prompts(tmp_path: Path, labels: Path) -> None:
    prompts = write(tmp_path / "prompts.json", {"DE": ["ein {}", "{} auf {}"]})
    texts = {"ein Kran": E[2], "Kran auf Kran": E[2], "ein Hund": E[0], "Hund auf Hund": E[1]}
    task = Multilingual(data="unused", labels=labels, prompts=prompts, languages=("DE", "SW"))
    found = task.measure(image_features(VECTORS, NUMBERS, texts))
    assert found.metrics["mean_acc1"] == 1.0  # the mean of both prompts is as near to a cat as to a dog
    assert found.notes == (f"SW is left out: {prompts} has no templates for it.",)
    with pytest.raises(ValueError, match="has no templates of SW"):
        Multilingual(data="unused", labels=labels, prompts=prompts, languages=("SW",)).sources()
    for content, message in (
        ({"DE": ["ein"]}, "a template of DE has no {} for the label: 'ein'"),
        ({"DE": []}, "needs a list of texts 'DE'"),
        (["{}"], "must hold {LANGUAGE: "),
    ):
        with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")):
            Multilingual(data="unused", labels=labels, prompts=write(prompts, content)).sources()


def test_english_has_the_templates_of_clip_with_prompts(tmp_path: Path, labels: Path) -> None:
    prompts = write(tmp_path / "prompts.json", {"DE": ["{}"], "EN": ["not {}"]})
    seen: list[str] = []

    class Texts(dict[str, Tensor]):
        def __missing__(self, text: str) -> Tensor:
            seen.append(text)
            return E[0]

    Multilingual(data="unused", labels=labels, prompts=prompts, languages=("EN",)).measure(
        image_features(VECTORS, NUMBERS, Texts())
    )
    assert len(seen) == 3 * 80  # the label that two classes share is encoded once
    assert "a bad photo of a dog." in seen


def test_english_from_the_data(labels: Path) -> None:
    names = ("hound", "kitten", "machine", "bird")
    texts = {**TEXTS, **dict(zip(names, E, strict=True))}
    task = Multilingual(data="unused", labels=labels, english_from_data=True, languages=("EN",))
    found = task.measure(image_features(VECTORS, NUMBERS, texts, classnames=names))
    assert found.metrics["english_acc1"] == pytest.approx(4 / 5)  # both cranes are told apart
    with pytest.raises(ValueError, match=r"english_from_data needs class names: write a classnames\.txt"):
        task.measure(image_features(VECTORS, NUMBERS, texts))


def test_data_with_other_classes_is_refused(labels: Path) -> None:
    features = image_features(VECTORS, NUMBERS, TEXTS, classnames=("a", "b", "c"))
    with pytest.raises(
        ValueError, match="numbers 4 classes, made has 3: its labels must be numbered as in the"
    ):
        Multilingual(data="unused", labels=labels).measure(features)


def test_classes_and_languages_without_images(labels: Path) -> None:
    found = Multilingual(data="unused", labels=labels).measure(image_features([E[1], E[1]], [1, 1], TEXTS))
    assert [row[0] for row in found.tables[1].rows] == ["EN", "SW"]
    assert "DE is left out: the data has no image of its classes." in found.notes
    assert any(
        note.startswith("In 2 languages classes without an image stay in the choice; most in EN, 3 of 4")
        for note in found.notes
    )
    with pytest.raises(ValueError, match="has no image of a class with a label in the chosen languages"):
        Multilingual(data="unused", labels=labels, languages=("DE",)).measure(
            image_features([E[1]], [1], TEXTS)
        )


def test_features_that_are_nan_are_never_right(labels: Path) -> None:
    nan = [torch.full((4,), math.nan)] * 5
    found = Multilingual(data="unused", labels=labels).measure(image_features(nan, NUMBERS, TEXTS))
    assert set(found.metrics.values()) == {0.0}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0, 1], ["a"]], "must be two lists of one length"),
        ([[], []], "must be two lists of one length"),
        ([[0, 1]], "must be two lists of one length"),
        ({"0": "a"}, "must be two lists of one length"),
        ([[0, -1], ["a", "b"]], "must number classes from 0"),
        ([[0, "1"], ["a", "b"]], "must number classes from 0"),
        ([[0, True], ["a", "b"]], "must number classes from 0"),
        ([[1, 1], ["a", "b"]], "has class 1 twice"),
        ([[0, 1], ["a", " "]], "has a label that is blank or no text"),
    ],
)
def test_damaged_labels(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"DE {message}"):
        read_labels(write(tmp_path / "labels.json", {"DE": value}))
    with pytest.raises(ValueError, match="must hold"):
        read_labels(write(tmp_path / "labels.json", []))


def test_opens_a_folder_of_classes(tmp_path: Path, labels: Path) -> None:
    for name in ("n0", "n1", "n2", "n3"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / name / "1.jpg")
    source = Multilingual(data=str(tmp_path / "data"), labels=labels).sources()["images"]
    assert [source.read(n).label for n in range(len(source))] == [0, 1, 2, 3]
    (tmp_path / "data" / "n3" / "1.jpg").unlink()
    with pytest.raises(ValueError, match="numbers 4 classes, data has 3"):
        Multilingual(data=str(tmp_path / "data"), labels=labels).sources()
