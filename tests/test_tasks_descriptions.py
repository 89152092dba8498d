"""Description classification, its controls, and the selection, on a model that adds up the words it knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipkit.zeroshot.controls import (
    WaffleNoise,
    alphabet_of,
    matched_count,
    scrambled,
    shuffled,
    swapped,
)
from clipkit.zeroshot.descriptions import NO_PHRASE, DescriptionBank, PromptFormat
from clipkit.zeroshot.region_source import FoundByQueries, ImageRegions, RegionSet
from clipkit.zeroshot.runner import RunOptions, open_sources, run_model
from clipkit.zeroshot.selection import DescriptionPool
from clipkit.zeroshot.suite import make_entry
from clipkit.zeroshot.tasks.base import Features, Measurement
from clipkit.zeroshot.tasks.compared import Comparison, Difference, Labelled, Method, joined, verdict
from clipkit.zeroshot.tasks.description_controls import ControlOptions
from clipkit.zeroshot.tasks.description_selection import compare_selection
from clipkit.zeroshot.tasks.descriptions import Descriptions
from clipkit.zeroshot.tasks.region_descriptions import compare_regions
from clipkit.zeroshot.tasks.selection_bench import (
    Bench,
    SelectionOptions,
    as_assigned,
    random_pool,
    selected,
)
from hand_features import labelled
from pair_shards import write_pairs
from region_shards import random_model
from torch import Tensor
from torch.nn.functional import normalize

WORDS = ("cat", "dog", "striped", "spotted", "red", "blue", "big")
CLASSES = ("cat", "dog")
FORMAT = PromptFormat("{c}, {d}", rule=NO_PHRASE)


def vector(text: str) -> Tensor:
    """One dimension for each word that is known, and one for all the others together."""
    counts = torch.zeros(len(WORDS) + 1)
    for word in text.replace(",", " ").replace(".", " ").split():
        counts[WORDS.index(word) if word in WORDS else len(WORDS)] += 1
    return counts


def texts(wanted: Sequence[str]) -> Tensor:
    return normalize(torch.stack([vector(text) for text in wanted]), dim=-1)


def random_texts(wanted: Sequence[str]) -> Tensor:
    """Unrelated directions, each a function of its text."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=12) for text in wanted]
    return normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=-1)


def features(
    images: Sequence[str], labels: Sequence[int], train: Sequence[str] = (), train_labels: Sequence[int] = ()
) -> Features:
    """Images that look like sentences."""
    test = labelled(texts(images), labels, classnames=CLASSES)
    sets = {"images": test}
    if train:
        sets["train"] = labelled(texts(train), train_labels, name="train", classnames=CLASSES[::-1])
    return Features(images=sets, texts=texts, logit_scale=100.0)


def task(folder: Path, bank: Mapping[str, Sequence[str]], **settings: Any) -> Descriptions:
    path = folder / "descriptions.json"
    path.write_text(json.dumps(bank))
    return Descriptions(**{"data": "here", "descriptions": path, "joiner": "none", **settings})


BANK = {"cat": ["striped", "big"], "dog": ["spotted", "big"]}
# By name all images are as much a cat as a dog, and the first class wins.
IMAGES, LABELS = ["striped red", "spotted red", "spotted", "spotted blue"], [0, 1, 1, 1]


def test_classes_that_their_names_do_not_tell_apart_by_hand(tmp_path: Path) -> None:
    found = task(tmp_path, BANK, seeds=3).measure(features(IMAGES, LABELS))
    assert next(iter(found.metrics)) == "acc1"
    expected = {
        "acc1": 1.0,
        "names_acc1": 0.25,
        "noise_acc1": 0.25,
        "swapped_acc1": 0.0,
        "max_acc1": 1.0,
        "noise_max_acc1": 0.25,
        "weighted_acc1": 1.0,
        "difference_to_noise": 0.75,
        "difference_to_names": 0.75,
        "difference_to_swapped": 1.0,
    }
    assert {name: found.metrics[name] for name in expected} == expected
    assert found.outcomes["names_acc1"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert found.outcomes["difference_to_noise"].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert found.chance == {name: 0.5 for name in found.metrics if name.endswith("acc1")}
    assert found.notes[0] == (
        "Descriptions help: they beat noise of the same number by 75.0 points [25.0, 100.0]; "
        "they beat the names alone by 75.0 points [25.0, 100.0]."
    )
    (table,) = found.tables
    rows = {row[0]: row for row in table.rows}
    assert rows["names alone"][1:] == ("1", "25.0 % [4.6, 69.9]", "", "+75.0 [+25.0, +100.0]")
    assert rows["noise"][1:4] == ("2", "25.0 % [4.6, 69.9]", "25.0 to 25.0")
    assert not any("selected" in name for name in found.metrics)


def test_every_figure_of_descriptions_has_its_noise_and_every_mean_its_items(tmp_path: Path) -> None:
    found = task(tmp_path, BANK).measure(features(IMAGES, LABELS))
    for kind in ("", "max_", "weighted_"):
        assert f"noise_{kind}acc1" in found.metrics
        low, high = found.intervals[f"{kind}difference_to_noise"]
        assert low <= found.metrics[f"{kind}difference_to_noise"] <= high
    assert set(found.outcomes) == set(found.metrics)
    for name, values in found.outcomes.items():
        assert values.dtype == torch.float64
        assert float(values.mean()) == found.metrics[name]


def test_classes_whose_names_say_everything(tmp_path: Path) -> None:
    images = ["cat red", "dog red", "dog blue", "cat striped"]
    found = task(tmp_path, BANK).measure(features(images, [0, 1, 1, 0]))
    assert found.metrics["names_acc1"] == found.metrics["acc1"] == found.metrics["noise_acc1"] == 1.0
    assert found.notes[0] == (
        "Descriptions do not help: the difference to noise of the same number is 0.0 points [0.0, 0.0], "
        "which includes 0; the difference to the names alone is 0.0 points [0.0, 0.0], which includes 0."
    )


def test_wrong_descriptions_are_said_to_be_behind(tmp_path: Path) -> None:
    images = ["cat striped", "dog spotted"] * 20
    turned = {"cat": ["spotted spotted spotted"], "dog": ["striped striped striped"]}
    found = task(tmp_path, turned).measure(features(images, [0, 1] * 20))
    assert found.metrics["difference_to_names"] == -1.0
    assert found.notes[0].endswith("the difference to the names alone is -100.0 points [-100.0, -100.0].")


def recording(given: Features) -> tuple[Features, list[str]]:
    """The same features, and all texts that are asked for from now on."""
    asked: list[str] = []

    def recorded(wanted: Sequence[str]) -> Tensor:
        asked.extend(wanted)
        return given.texts(wanted)

    return replace(given, texts=recorded), asked


def test_noise_is_waffle_of_the_matched_count_in_the_same_prompts(tmp_path: Path) -> None:
    given, asked = recording(features(IMAGES, LABELS))
    words = tmp_path / "words.json"
    words.write_text(json.dumps(["alpha", "beta", "gamma", "delta"]))
    named = {"cat": ["striped", "big", "red"], "dog": ["spotted"]}
    task(tmp_path, named, words=words, seeds=2, template="a {c}: {d}!").measure(given)
    bank = DescriptionBank.of(named)
    for seed in range(2):
        noise = WaffleNoise(matched_count(bank), seed, ("alpha", "beta", "gamma", "delta"), alphabet_of(bank))
        descriptors = noise.descriptors(CLASSES)
        assert len(descriptors) == 2
        prompts = [f"a {name}: {noise}!" for name in CLASSES for noise in descriptors]
        assert asked[asked.index(prompts[0]) :][: len(prompts)] == prompts
        for name, row in zip(CLASSES, swapped(bank, seed).descriptors, strict=True):
            assert {f"a {name}: {descriptor}!" for descriptor in row} <= set(asked)
    assert {"a cat!", "a dog!"} <= set(asked)


def test_seeds_are_averaged_image_by_image(tmp_path: Path) -> None:
    bank = {name: [f"{name} {n}" for n in range(3)] for name in ("ab", "cd", "ef", "gh")}
    images = labelled(
        random_texts([str(n) for n in range(60)]), [n % 4 for n in range(60)], classnames=[*bank]
    )
    given = Features(images={"images": images}, texts=random_texts, logit_scale=1.0)
    one = [task(tmp_path, bank, seeds=n).measure(given) for n in (1, 2, 3)]
    first, both, all_three = (found.outcomes["noise_acc1"] for found in one)
    second, third = 2 * both - first, 3 * all_three - 2 * both
    assert all(set(values.round(decimals=9).tolist()) == {0.0, 1.0} for values in (first, second, third))
    assert not torch.equal(first, second)
    # An image is drawn with the answers of all seeds.
    difference = (one[2].outcomes["acc1"] - all_three).numpy()
    drawn = np.random.default_rng(1).choice(difference, size=(4000, 60)).mean(axis=1)
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose(one[2].intervals["difference_to_noise"], expected, atol=0.02)


def test_every_accuracy_equals_the_slow_way(tmp_path: Path) -> None:
    written = {name: [f"{name} {n}" for n in range(2 + len(name))] for name in ("ab", "cde", "f", "ghi")}
    bank = DescriptionBank.of(written)
    labels = [n * n % 4 for n in range(40)]
    images = labelled(random_texts([str(n) for n in range(40)]), labels, classnames=bank.names)
    given = Features(images={"images": images}, texts=random_texts, logit_scale=1.0)
    found = task(tmp_path, written, seeds=3, name_weight=2.5, template="{c}, {d}").measure(given).metrics

    def accuracy(bank: DescriptionBank, kind: str) -> float:
        num_right = 0
        for image, label in zip(images.features, labels, strict=True):
            scores = []
            for name, row in zip(bank.names, bank.descriptors, strict=True):
                cosines = [float(image @ one) for one in random_texts([f"{name}, {text}" for text in row])]
                alone = float(image @ random_texts([name])[0])
                mean = sum(cosines) / len(cosines)
                scores.append({"": mean, "max_": max(cosines), "weighted_": mean + 2.5 * alone}[kind])
            num_right += scores.index(max(scores)) == label
        return num_right / len(labels)

    def noise(seed: int) -> DescriptionBank:
        return WaffleNoise(matched_count(bank), seed, (), alphabet_of(bank)).bank(bank.names)

    for kind in ("", "max_", "weighted_"):
        assert found[f"{kind}acc1"] == pytest.approx(accuracy(bank, kind))
        of_seed = [accuracy(noise(seed), kind) for seed in range(3)]
        assert found[f"noise_{kind}acc1"] == pytest.approx(sum(of_seed) / 3)
    for control in (shuffled, swapped, scrambled):
        of_seed = [accuracy(control(bank, seed), "") for seed in range(3)]
        assert found[f"{control.__name__}_acc1"] == pytest.approx(sum(of_seed) / 3)


def test_whole_sentences_have_noise_with_names(tmp_path: Path) -> None:
    sentences = {"cat": ["striped and big"], "dog": ["spotted and big"]}
    given, asked = recording(features(IMAGES, LABELS))
    found = task(tmp_path, sentences, template="{d}", seeds=1).measure(given)
    assert found.metrics["acc1"] == 1.0
    bank = DescriptionBank.of(sentences)
    noise = WaffleNoise(1, 0, (), alphabet_of(bank)).descriptors(CLASSES)
    assert {PromptFormat().prompt(name, text) for name in CLASSES for text in noise} <= set(asked)
    assert found.metrics["names_acc1"] == found.metrics["noise_acc1"] == 0.25
    assert "Noise is put into '{c}, {d}.', as sentences have no place for the class name." in found.notes


def test_a_class_without_descriptors_goes_by_its_name(tmp_path: Path) -> None:
    bank = DescriptionBank.of({"cat": ["striped"], "dog": [], "red": ["big"]})
    images = labelled(texts(["dog", "striped", "red"]), [1, 0, 2], classnames=bank.names)
    given = Features(images={"images": images}, texts=texts, logit_scale=1.0)
    found = task(tmp_path, {"red": ["big"], "cat": ["striped"], "dog": []}).measure(given)
    assert found.metrics["acc1"] == 1.0
    assert "1 of 3 classes have no descriptor and go by their names." in found.notes


def test_a_destroyed_model_has_nothing_right(tmp_path: Path) -> None:
    given = features(IMAGES, LABELS, IMAGES, [1, 0, 0, 0])
    lost = {name: replace(one, features=one.features * torch.nan) for name, one in given.images.items()}
    found = task(tmp_path, BANK, train="there").measure(replace(given, images=lost))
    assert all(value == 0 for value in found.metrics.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"joiner": "und"}, "joiner must be one of dclip, waffle, none, got 'und'"),
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
        ({"num_kept": 0}, "num_kept must be >= 1"),
        ({"name_weight": -1.0}, "name_weight must be >= 0"),
        ({"train": "here"}, "train must be other images than data, got here twice"),
        ({"template": "a {c}"}, "template needs {d} where the descriptor goes, got 'a {c}'"),
        ({"template": "{x}, {d}"}, "got {x}"),
        ({"name_template": "a {d}"}, "a name template needs {c} and no {d}"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")) as caught:
        task(tmp_path, BANK, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        ({"cat": ["striped"], "dgo": ["spotted"]}, "descriptions.json: .*no class is called 'dgo'.*'dog'"),
        ({"cat": ["striped"]}, "no descriptions of 'dog'"),
        ({"cat": ["striped"], "dog": ["big"], "cow": ["big"]}, "no class is called 'cow'"),
        ({"cat": ["striped"], "dog": []}, "at least two classes need a descriptor"),
    ],
)
def test_descriptions_of_other_classes(tmp_path: Path, bank: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        task(tmp_path, bank).measure(features(IMAGES, LABELS))
    assert "\n" not in str(caught.value)


def test_problems_are_known_before_anything_is_encoded(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "tiles", 6, labels=True)
    names = (Path(data) / "classnames.txt").read_text().split("\n")[:-1]
    bank = {name: [f"{name} tile"] for name in names}
    assert set(task(tmp_path, bank, data=data).sources()) == {"images"}
    with pytest.raises(ValueError, match="no class is called 'extra'"):
        task(tmp_path, {**bank, "extra": ["x"]}, data=data).sources()
    words = tmp_path / "words.json"
    words.write_text("{}")
    with pytest.raises(ValueError, match="must hold a list of words"):
        task(tmp_path, bank, data=data, words=words).sources()


def test_a_suite_can_name_it(tmp_path: Path) -> None:
    given = {"task": "descriptions", "data": "x", "descriptions": "d.json", "train": "y", "words": "w.json"}
    settings = make_entry("one", given).settings
    assert settings == Descriptions(data="x", descriptions=Path("d.json"), train="y", words=Path("w.json"))


# Selection. Class by class: what all of its images show, and what was written for it.
TRAIN = ["striped red", "striped blue", "spotted red", "spotted blue"]
TRAIN_LABELS = [1, 1, 0, 0]  # in the names of the training data, which has the classes in another order
HALF = {"cat": ["striped", "blue"], "dog": ["big"]}
SELECTED_IMAGES = ["striped red", "striped blue", "spotted red", "spotted blue"]


def selection(tmp_path: Path, **settings: Any) -> Measurement:
    given = features(SELECTED_IMAGES, [0, 0, 1, 1], TRAIN, TRAIN_LABELS)
    return task(tmp_path, HALF, train="there", **settings).measure(given)


def test_selection_by_hand(tmp_path: Path) -> None:
    # "striped" fits cats alone; "blue" and "big" fit cats and dogs alike. With one kept, a cat is "striped"
    # and a dog "blue", the first of the two. A spotted red image is as far from both: the first class wins.
    found = selection(tmp_path, num_kept=1)
    name = "not_zeroshot_selected_acc1"
    assert found.outcomes[name].tolist() == [1.0, 1.0, 0.0, 1.0]
    # As assigned: striped red 0.35 against 0, striped blue 0.71, spotted red 0, spotted blue 0.35 against 0.
    assert found.outcomes["not_zeroshot_assigned_acc1"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert found.outcomes["not_zeroshot_assigned_likely_acc1"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert found.metrics["not_zeroshot_difference_to_assigned"] == 0.25
    assert found.outcomes["not_zeroshot_named_selected_acc1"].tolist() == [1.0, 1.0, 0.0, 1.0]


def test_figures_of_the_selection_are_apart(tmp_path: Path) -> None:
    found = selection(tmp_path)
    of_selection = [name for name in found.metrics if "selected" in name or "assigned" in name]
    assert of_selection
    assert all(name.startswith("not_zeroshot_") for name in of_selection)
    controls, compared, sweep = found.tables
    assert "not zero-shot" in compared.title
    assert "not zero-shot" in sweep.title
    assert not any("selected" in row[0] for row in controls.rows)
    assert {"selected", "random characters, selected"} <= {row[0] for row in compared.rows}
    assert found.notes[-1].startswith("Selected descriptions")
    assert "(not zero-shot)" in found.notes[-1]


def test_nothing_of_the_test_images_decides(tmp_path: Path) -> None:
    bench, pool = random_bench()
    swept = bench.unnamed(bench.candidates(pool), selected)
    turned = replace(bench, test=replace(bench.test, labels=bench.test.labels.flip(0)))
    other = turned.unnamed(turned.candidates(pool), selected)
    assert swept.weight == other.weight == max(swept.on_train, key=lambda w: swept.on_train[w])
    assert swept.on_test != other.on_test
    assert float(swept.right.mean()) == swept.on_test[swept.weight] <= max(swept.on_test.values())


NAMES = tuple("abcdefg")


def random_bench(**options: int) -> tuple[Bench, DescriptionPool]:
    """Seven classes of random images, one of them without descriptions."""
    bank = DescriptionBank.of({name: [f"{name}{n}" for n in range(ord(name) - ord("a"))] for name in NAMES})
    centres = random_texts([f"centre {name}" for name in NAMES])

    def images(count: int, seed: int) -> Labelled:
        labels = torch.arange(count) % len(NAMES)
        noise = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed)) * 0.3
        return Labelled(features=normalize(centres[labels] + noise, dim=-1), labels=labels)

    chosen = SelectionOptions(**{"seeds": 2, **options})
    bench = Bench.of(images(70, 0), images(56, 1), bank, FORMAT, random_texts, chosen)
    return bench, DescriptionPool.of(bank.descriptors)


def test_all_assigned_descriptions_everywhere_equal_the_slow_way() -> None:
    bench, pool = random_bench()
    swept = bench.unnamed_everywhere(bench.candidates(pool))
    captions = random_texts(NAMES)
    for weight in (0.0, 1.5, 8.0):
        num_right = 0
        for image, label in zip(bench.test.features, bench.test.labels.tolist(), strict=True):
            scores = []
            for name, places in zip(range(len(NAMES)), pool.assigned, strict=True):
                caption = float(image @ captions[name])
                own = [float(image @ random_texts([pool.descriptions[place]])[0]) for place in places]
                scores.append(weight * caption + (sum(own) / len(own) if own else caption))
            num_right += scores.index(max(scores)) == label
        assert swept.on_test[weight] == num_right / len(bench.test.labels)


def test_no_choice_keeps_all_that_was_written() -> None:
    bench, pool = random_bench(num_neighbours=7)
    likely = bench.unnamed(bench.candidates(pool), as_assigned)
    everywhere = bench.unnamed_everywhere(bench.candidates(pool))
    # Among all classes the two are the same.
    assert likely.on_test == pytest.approx(everywhere.on_test)
    assert torch.equal(likely.right, everywhere.right)
    bench, pool = random_bench(num_neighbours=2)
    chosen = as_assigned(bench.candidates(pool), bench.test, bench.options)
    assert torch.equal(chosen.neighbours, bench.test.captions.topk(2, dim=1).indices)
    for near, rows in zip(chosen.neighbours.tolist(), chosen.descriptions.tolist(), strict=True):
        for name, row in zip(near, rows, strict=True):
            assert tuple(place for place in row if place >= 0) == pool.assigned[name]


def test_prompts_with_names_equal_the_slow_way() -> None:
    bench, pool = random_bench(num_neighbours=3, num_kept=2)
    candidates = bench.candidates(pool)
    right = bench.named(candidates, selected)
    chosen = selected(candidates, bench.test, bench.options)
    for row, label in enumerate(bench.test.labels.tolist()):
        means, best = [], []
        for name, places in zip(
            chosen.neighbours[row].tolist(), chosen.descriptions[row].tolist(), strict=True
        ):
            kept = [pool.descriptions[place] for place in places if place >= 0]
            prompts = [f"{NAMES[name]}, {text}" for text in kept] or [NAMES[name]]
            cosines = [float(bench.test.features[row] @ one) for one in random_texts(prompts)]
            means.append((sum(cosines) / len(cosines), name))
            best.append((max(cosines), name))
        assert bool(right["named"][row]) == (max(means)[1] == label)
        assert bool(right["named_max"][row]) == (max(best)[1] == label)


def test_random_characters_are_as_many_as_the_descriptions_and_differ_by_seed() -> None:
    bench, pool = random_bench()
    first, second = (random_pool(pool, bench.bank, seed) for seed in (0, 1))
    assert len(first.descriptions) == len(set(first.descriptions)) == len(pool.descriptions) == 21
    assert first.assigned == pool.assigned
    assert len({first.descriptions, second.descriptions, pool.descriptions}) == 3


def test_random_characters_are_selected_with_each_seed() -> None:
    bench, pool = random_bench()
    test = Labelled(features=bench.test.features, labels=bench.test.labels)
    train = Labelled(features=bench.train.features, labels=bench.train.labels)
    found = compare_selection(train, test, bench.bank, FORMAT, random_texts, bench.options)
    noise = [bench.candidates(random_pool(pool, bench.bank, seed)) for seed in (0, 1)]
    right = torch.stack([bench.unnamed(one, selected).right for one in noise])
    assert torch.equal(found.outcomes["not_zeroshot_random_acc1"], right.mean(dim=0))
    assert not torch.equal(right[0], right[1])
    right = torch.stack([bench.named(one, selected)["named"] for one in noise])
    assert torch.equal(found.outcomes["not_zeroshot_named_random_acc1"], right.mean(dim=0))


def test_training_images_are_few_and_balanced() -> None:
    bench, _ = random_bench(num_train=4)
    assert torch.bincount(bench.train.labels).tolist() == [4] * 7
    assert torch.equal(bench.train.captions, bench.train.features @ random_texts(NAMES).T)


def test_whole_sentences_are_not_put_behind_names() -> None:
    bench, _ = random_bench()
    test = Labelled(features=bench.test.features, labels=bench.test.labels)
    train = Labelled(features=bench.train.features, labels=bench.train.labels)
    for template, with_names in (("{c}, {d}", True), ("{d}", False)):
        found = compare_selection(
            train, test, bench.bank, PromptFormat(template), random_texts, bench.options
        )
        assert any("named" in name for name in found.metrics) == with_names
        assert found.chance["not_zeroshot_random_acc1"] == 1 / 7
        shown = dict(zip(found.tables[1].header, found.tables[1].rows[-1], strict=False))
        assert shown["weight of the name"] == "best on the test images"


def test_training_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    given = features(IMAGES, LABELS, ["cat", "cat"], [1, 1])
    with pytest.raises(ValueError, match="train: the selection needs an image of each class, 'dog' has none"):
        task(tmp_path, BANK, train="there").measure(given)
    other = replace(given.images["train"], classnames=("cow", "dog"))
    with pytest.raises(ValueError, match="'cow' only there"):
        task(tmp_path, BANK, train="there").measure(replace(given, images={**given.images, "train": other}))


def test_verdicts() -> None:
    better, even, worse = (
        Difference(0.1, 0.05, 0.15),
        Difference(0.1, -0.1, 0.3),
        Difference(-0.2, -0.3, -0.1),
    )
    assert verdict("Yes", "No", {"a": better}) == "Yes: they beat a by 10.0 points [5.0, 15.0]."
    assert verdict("Yes", "No", {"a": better, "b": even}) == (
        "No: they beat a by 10.0 points [5.0, 15.0]; the difference to b is 10.0 points [-10.0, 30.0], which "
        "includes 0."
    )
    assert verdict("Yes", "No", {"c": worse}) == "No: the difference to c is -20.0 points [-30.0, -10.0]."
    # An interval that ends at 0 shows no difference.
    assert verdict("Yes", "No", {"a": Difference(0.1, 0.0, 0.2)}).startswith("No: the difference")


def test_joined_has_everything_of_both() -> None:
    methods = {"one": Method(shown="one", right=torch.ones(1, 2).double())}
    first = Comparison(methods=methods, pairs={}).measurement(chance=0.5, tables=[], notes=["a"])
    second = Comparison(methods={"two": methods["one"]}, pairs={}).measurement(
        chance=0.25, tables=[Comparison(methods=methods, pairs={}).table("t", ("h",), "n")], notes=["b"]
    )
    both = joined(first, second)
    assert both.metrics == {"one": 1.0, "two": 1.0}
    assert both.chance == {"one": 0.5, "two": 0.25}
    assert [table.title for table in both.tables] == ["t"]
    assert both.notes == ("a", "b")


def _found_by_queries(
    *images: tuple[str, Sequence[str]], lacking: Mapping[str, str] | None = None
) -> RegionSet:
    """Images whose image query and region queries have the features of these texts."""
    return RegionSet(
        images=tuple(
            ImageRegions(
                kept=torch.empty(0, dtype=torch.int64),
                boxes=torch.empty(0, 4),
                queries=FoundByQueries(
                    boxes=torch.zeros(len(regions), 4),
                    features=texts(regions),
                    image_feature=texts([whole])[0],
                ),
            )
            for whole, regions in images
        ),
        index=torch.arange(len(images)),
        lacking=lacking or {},
        head="query-decoder",
    )


def test_regions_of_queries_by_hand() -> None:
    bank = DescriptionBank.of({"cat": ["striped", "big"], "dog": ["spotted"]})
    form = PromptFormat("{d}", rule=NO_PHRASE)
    found = _found_by_queries(
        ("striped", ["spotted", "spotted"]),  # by the image query a cat, by its regions a dog
        ("spotted", ["striped", "big"]),  # the other way round: each region has a descriptor of its own
        ("spotted", ["spotted", "red"]),
    )
    measured = compare_regions(
        found, torch.tensor([0, 0, 1]), bank, form, texts, 0.4, ControlOptions(seeds=2)
    )
    assert measured.outcomes["image_query_acc1"].tolist() == [1, 0, 1]
    assert measured.outcomes["regions_alone_acc1"].tolist() == [0, 1, 1]
    # 0.4 of the query: 0.4 * 1/2 for the cat, 0.6 for the dog; then 0.6 and 0.4; then 0.4 + 0.3 for the dog.
    assert measured.outcomes["regions_mixed_acc1"].tolist() == [0, 1, 1]
    assert next(iter(measured.metrics)) == "regions_mixed_acc1"
    assert measured.metrics["regions_mixed_difference_to_image_query"] == pytest.approx(0)
    assert {"noise_regions_mixed_acc1", "regions_mixed_difference_to_noise_regions_mixed"} <= set(
        measured.metrics
    )
    assert [row[0] for row in measured.tables[0].rows] == [
        "image query and regions mixed",
        "image query alone",
        "regions alone",
        "noise, mixed",
    ]
    assert "0.4 of the first and 0.6" in measured.tables[0].note
    with pytest.raises(ValueError, match=r"no region head: train a query decoder"):
        compare_regions(
            replace(found, lacking={"queries": "the model has no region head"}),
            torch.tensor([0, 0, 1]),
            bank,
            form,
            texts,
            0.4,
            ControlOptions(seeds=2),
        )


def test_the_mix_with_regions_end_to_end(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "tiles", 8, labels=True)
    (tmp_path / "bank.json").write_text(
        json.dumps({"red": ["blood"], "green": ["grass"], "blue": ["sky", "sea"], "yellow": []})
    )
    settings = {"task": "descriptions", "data": data, "descriptions": str(tmp_path / "bank.json"), "seeds": 1}
    random_model("query-decoder").save(tmp_path / "model")
    options = RunOptions(output=tmp_path / "results", quiet=True)
    entries = [make_entry("tiles", {**settings, "image_weight": 0.5}), make_entry("plain", settings)]
    mixed, plain = run_model(str(tmp_path / "model"), entries, open_sources(entries), options)
    assert plain.metrics.items() <= mixed.metrics.items()
    assert "regions_mixed_acc1" in mixed.metrics
    with pytest.raises(ValueError, match="image_weight must be from 0 to 1, got 2"):
        make_entry("tiles", {**settings, "image_weight": 2})
