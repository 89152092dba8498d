"""Zero-shot accuracy over domains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from clipkit.zeroshot.suite import make_entry
from clipkit.zeroshot.tasks.base import ImageSet
from clipkit.zeroshot.tasks.robustness import Robustness
from hand_features import at, labelled, made_features
from pair_shards import write_pairs

NAMES = ("cat", "dog", "guinea pig")
TEXTS = {f"a photo of a {name}.": vector for name, vector in zip(NAMES, at(0, 90, 180), strict=True)}
TASK = Robustness(domains=("photo=a", "sketch=b"))


def photo(names: Sequence[str] = NAMES) -> ImageSet:
    return labelled(at(10, 80, 170, 100), [0, 1, 2, 2], name="photo", classnames=names)


def sketch(names: Sequence[str], labels: Sequence[int]) -> ImageSet:
    """A cat, a guinea pig, and a dog that looks like a cat, all at the angle of what they look like."""
    return labelled(at(5, 175, 20), labels, name="sketch", classnames=names)


def test_domains_by_hand() -> None:
    found = TASK.measure(made_features(photo(), sketch(NAMES, [0, 2, 1]), texts=TEXTS))
    assert list(found.metrics) == [
        "mean_domain_acc1",
        "worst_domain_acc1",
        "domain_gap",
        "acc1_photo",
        "acc1_sketch",
    ]
    assert found.metrics["acc1_photo"] == 3 / 4
    assert found.metrics["acc1_sketch"] == pytest.approx(2 / 3)
    assert found.metrics["mean_domain_acc1"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found.metrics["worst_domain_acc1"] == pytest.approx(2 / 3)
    assert found.metrics["domain_gap"] == pytest.approx(3 / 4 - 2 / 3)
    assert found.outcomes["acc1_sketch"].tolist() == [1.0, 1.0, 0.0]
    # The mean over domains, of different sizes, is a mean over images too.
    assert len(found.outcomes["mean_domain_acc1"]) == 7
    for name, values in found.outcomes.items():
        assert float(values.mean()) == pytest.approx(found.metrics[name])
    assert found.chance["worst_domain_acc1"] == pytest.approx(1 / 3)
    assert "domain_gap" not in found.chance
    (table,) = found.tables
    assert table.rows == (("photo", "4", "75.0 %", "0.0 %"), ("sketch", "3", "66.7 %", "8.3 %"))


def test_intervals_draw_each_domain_apart() -> None:
    photos = labelled(at(0, 90).repeat(100, 1), [0, 0] * 100, name="photo", classnames=NAMES)
    sketches = labelled(at(0).repeat(50, 1), [0] * 50, name="sketch", classnames=NAMES)
    found = TASK.measure(made_features(photos, sketches, texts=TEXTS))
    assert found.intervals["mean_domain_acc1"] == pytest.approx((0.75 - 0.035, 0.75 + 0.035), abs=0.01)
    assert found.intervals["worst_domain_acc1"] == pytest.approx((0.43, 0.57), abs=0.02)
    assert found.intervals["domain_gap"] == pytest.approx((0.43, 0.57), abs=0.02)


def test_classes_are_matched_by_name() -> None:
    found = TASK.measure(made_features(photo(), sketch(("Guinea_Pig", "dog", "cat"), [2, 0, 1]), texts=TEXTS))
    assert found.outcomes["acc1_sketch"].tolist() == [1.0, 1.0, 0.0]
    # Domains that do not know names have the labels of the first.
    found = TASK.measure(made_features(photo(), sketch((), [0, 2, 1]), texts=TEXTS))
    assert found.outcomes["acc1_sketch"].tolist() == [1.0, 1.0, 0.0]


def test_names_that_occur_twice_are_matched_by_place_only() -> None:
    twice = ("cat", "dog", "cat")
    found = TASK.measure(made_features(photo(twice), sketch(twice, [0, 2, 1]), texts=TEXTS))
    assert found.outcomes["acc1_sketch"].tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="sketch has several classes 'cat', which cannot be matched by name"):
        TASK.measure(made_features(photo(twice), sketch(("cat", "cat", "dog"), [0, 2, 1]), texts=TEXTS))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "dog", "owl"), r"'owl' only there, 'guinea pig' only elsewhere$"),
        (("cat", "dog"), r"of the other data; 'guinea pig' only elsewhere$"),
        ((*NAMES, *"abcdefg"), r"'a' only there, .* and 2 more$"),
    ],
)
def test_other_classes_are_one_line(names: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASK.measure(made_features(photo(), sketch(names, [0, 1, 1]), texts=TEXTS))


def test_a_label_that_is_no_class_is_told() -> None:
    with pytest.raises(ValueError, match="sketch: labels must be 0 to 2"):
        TASK.measure(made_features(photo(), sketch(NAMES, [0, 3, 1]), texts=TEXTS))


def test_names_of_a_file_are_how_classes_are_written(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("tabby\nhound\nrodent\n")
    task = Robustness(domains=("photo=a", "sketch=b"), class_names=path)
    texts = {
        f"a photo of a {name}.": row
        for name, row in zip(("tabby", "hound", "rodent"), at(0, 90, 180), strict=True)
    }
    found = task.measure(made_features(photo(), sketch(("dog", "cat", "guinea pig"), [1, 2, 0]), texts=texts))
    assert found.outcomes["acc1_photo"].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert found.outcomes["acc1_sketch"].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (("photo=a",), "two or more with different names"),
        (("photo=a", "photo=b"), "two or more with different names"),
        (("photo=a", "b"), "written NAME=DATA, got 'b'"),
        (("photo=a", "=b"), "written NAME=DATA, got '=b'"),
        ((), "two or more"),
    ],
)
def test_domains_that_say_too_little_are_refused(domains: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Robustness(domains=domains)


def test_domains_are_opened_by_name(tmp_path: Path) -> None:
    places = [write_pairs(tmp_path / name, 8, labels=True) for name in ("a", "b")]
    settings = {"task": "robustness", "domains": [f"photo={places[0]}", f"sketch={places[1]}"]}
    sources = make_entry("tiles", settings).settings.sources()
    assert {name: len(source) for name, source in sources.items()} == {"photo": 8, "sketch": 8}
    assert torch.tensor([source.read(0).label for source in sources.values()]).tolist() == [0, 0]
