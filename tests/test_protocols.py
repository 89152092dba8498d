"""Averages of protocols by hand, and the published tables recomputed from their own rows."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from clipkit.zeroshot.protocols.averages import harmonic_mean, over_datasets, over_seeds, spread
from clipkit.zeroshot.protocols.base_to_new import base_and_new_accuracy
from clipkit.zeroshot.protocols.chosen_heads import by_seed, check_base_head, heads_that_begin
from clipkit.zeroshot.protocols.published import (
    AVERAGE,
    _table,
    is_transductive,
    published_rows,
    published_source,
)

# Printed figures that are not the ones of their rows: (method, data set, printed, recomputed).
ODD_HARMONIC_MEANS = {
    ("PromptKD", "stanford_cars"): (83.13, 83.08),
    ("PromptKD", "ucf101"): (86.10, 85.83),
}
ODD_AVERAGES = {"CLIP": (57.17, 57.18), "CoCoOp": (59.90, 59.91), "MaPLe": (60.26, 60.28)}
ROUNDING = 0.0051


def test_harmonic_mean_by_hand():
    assert round(harmonic_mean(82.28, 75.14), 2) == 78.55
    assert harmonic_mean(0.5, 0.5) == 0.5
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(1.0, 0.0) == 0.0
    with pytest.raises(ValueError, match="not be negative"):
        harmonic_mean(-0.1, 0.5)


def test_harmonic_mean_lies_between_the_smaller_and_the_geometric_mean():
    for base, new in [(0.9, 0.1), (0.3, 0.31), (1.0, 0.5)]:
        assert min(base, new) <= harmonic_mean(base, new) <= math.sqrt(base * new)
        assert harmonic_mean(base, new) == harmonic_mean(new, base)


def test_seeds_by_hand():
    row = over_seeds([(0.8, 0.4), (0.6, 0.6), (0.7, 0.5)])
    assert row.base.mean == pytest.approx(0.7)
    assert row.base.std == pytest.approx(0.1)
    assert row.new.count == 3
    # Of the means, 0.7 and 0.5; the mean of the three harmonic means would be 0.5722.
    assert row.harmonic_mean == pytest.approx(2 * 0.7 * 0.5 / 1.2)
    assert spread([0.25]).std is None
    with pytest.raises(ValueError, match="at least one seed"):
        spread([])


def test_data_sets_by_hand():
    row = over_datasets({"a": [(0.8, 0.4), (0.6, 0.6)], "b": [(0.4, 0.2), (0.4, 0.4)]})
    # Seeds averaged over the data sets: (0.6, 0.3) and (0.5, 0.5).
    assert row.base.mean == pytest.approx(0.55)
    assert row.base.std == pytest.approx(0.1 / math.sqrt(2))
    assert row.new.mean == pytest.approx(0.4)
    assert row.harmonic_mean == pytest.approx(2 * 0.55 * 0.4 / 0.95)
    with pytest.raises(ValueError, match="same number of seeds"):
        over_datasets({"a": [(0.8, 0.4)], "b": []})
    with pytest.raises(ValueError, match="same number of seeds"):
        over_datasets({})


def test_published_base_to_new_recomputes():
    methods = _table("base-to-new")["methods"]
    assert len(methods) == 6
    for method, rows in methods.items():
        assert len(rows) == 12
        for name, (base, new, printed) in rows.items():
            expected, recomputed = ODD_HARMONIC_MEANS.get((method, name), (printed, printed))
            assert (printed, harmonic_mean(base, new)) == (expected, pytest.approx(recomputed, abs=ROUNDING))
        for column in (0, 1):
            mean = fmean(row[column] for name, row in rows.items() if name != AVERAGE)
            assert mean == pytest.approx(rows[AVERAGE][column], abs=ROUNDING)


@pytest.mark.parametrize(("protocol", "odd"), [("cross-dataset", {}), ("domain", ODD_AVERAGES)])
def test_published_averages_are_of_the_targets_without_the_source(protocol, odd):
    for method, row in _table(protocol)["methods"].items():
        mean = fmean(value for name, value in row.items() if name not in ("imagenet", AVERAGE))
        expected, recomputed = odd.get(method, (row[AVERAGE], row[AVERAGE]))
        assert (row[AVERAGE], mean) == (expected, pytest.approx(recomputed, abs=ROUNDING))


def test_published_rows_are_found_by_any_spelling():
    assert published_rows("base-to-new", "Oxford-Pets")["MaPLe"] == [95.43, 97.76, 96.58]
    assert published_rows("domain", "imagenet-a")["MaPLe"] == 50.90
    assert "PromptKD" not in published_rows("cross-dataset", "imagenet")  # nothing printed
    assert published_rows("base-to-new", "my pets") == {}
    assert [name for name in published_rows("base-to-new", AVERAGE) if is_transductive(name)] == ["PromptKD"]
    assert published_source("base-to-new").endswith("ViT-B/16, 16 shots")
    with pytest.raises(ValueError, match="nothing is published"):
        published_rows("few-shot", "dtd")


class OneHotHead:
    """Class k of the names it is asked for is the axis that the name says."""

    def class_texts(self, model, names):
        return torch.stack([torch.eye(5)[int(name)] for name in names])

    def logits(self, model, image_features, texts):
        return image_features @ texts.T


def test_base_images_meet_base_names_alone():
    # Of five classes three are base. Rows: the scores of the five names.
    features = torch.tensor(
        [
            [1.0, 0, 0, 9, 0],  # 0, right: the new name 3, which fits best, is no choice
            [0, 0, 1.0, 0, 0],  # 1, taken for 2
            [0, 0, 1.0, 0, 0],  # 2, right
            [9, 0, 0, 1.0, 0],  # 3, right: the base name 0 is no choice
            [0, 0, 0, 1.0, 0],  # 4, taken for 3
        ]
    )
    found = base_and_new_accuracy(None, OneHotHead(), features, torch.arange(5), list("01234"))
    assert found == (pytest.approx(2 / 3), 0.5)
    with pytest.raises(ValueError, match="no image of 2 classes"):
        base_and_new_accuracy(None, OneHotHead(), features[:3], torch.arange(3), list("01234"))


def test_base_and_new_accuracy_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(700, 5, generator=generator), torch.arange(700) % 5
    right = {True: [], False: []}
    for row, label in zip(features.tolist(), labels.tolist(), strict=True):
        choices = range(3) if label < 3 else range(3, 5)
        right[label < 3].append(max(choices, key=row.__getitem__) == label)
    found = base_and_new_accuracy(None, OneHotHead(), features, labels, list("01234"))
    assert found == (pytest.approx(fmean(right[True])), pytest.approx(fmean(right[False])))


def test_heads_are_chosen_by_name_or_beginning():
    names = ["coop-s1", "maple", "maple-s1", "maple-s2"]
    assert heads_that_begin(["maple"], names) == ["maple"]
    assert heads_that_begin(["maple-", "coop", "maple-s1"], names) == ["maple-s1", "maple-s2", "coop-s1"]
    with pytest.raises(ValueError, match="no head begins with 'vpt'"):
        heads_that_begin(["vpt"], names)


def test_a_head_that_saw_new_classes_is_refused():
    classes = ["a", "b", "c", "d", "e"]
    check_base_head("h", {"class_names": ["c", "a", "b"]}, classes)
    with pytest.raises(ValueError, match="trained on 1 new classes"):
        check_base_head("h", {"class_names": ["a", "b", "c", "d"]}, classes)
    with pytest.raises(ValueError, match="not the 3 base classes"):
        check_base_head("h", {"class_names": ["a", "b"]}, classes)


def test_heads_that_differ_by_seed_stand_together():
    maple = {"method": "maple", "shots": 16}
    groups = by_seed(
        {"x": maple | {"seed": 2}, "y": maple | {"seed": 1}, "z": maple | {"seed": 1, "shots": 4}}
    )
    assert groups == {("maple", 16): {1: "y", 2: "x"}, ("maple", 4): {1: "z"}}
    assert list(groups["maple", 16]) == [1, 2]
    with pytest.raises(ValueError, match="name the one that counts"):
        by_seed({"x": maple | {"seed": 1}, "y": maple | {"seed": 1}})
    with pytest.raises(ValueError, match="says no seed"):
        by_seed({"x": maple})
