"""Averages of protocols by hand, and the published tables recomputed from their own rows."""

from __future__ import annotations

import json
import math
from statistics import fmean

import pytest
import torch
from clipkit.zeroshot.protocols.averages import harmonic_mean, over_datasets, over_seeds, spread
from clipkit.zeroshot.protocols.base_to_new import base_and_new_accuracy
from clipkit.zeroshot.protocols.chosen_heads import (
    by_seed,
    check_base_head,
    fewest_images,
    heads_of_data,
    heads_that_begin,
)
from clipkit.zeroshot.protocols.few_shot_table import measurement as few_shot_measurement
from clipkit.zeroshot.protocols.published import (
    AVERAGE,
    _table,
    is_all_published,
    is_transductive,
    published_rows,
    published_source,
)
from clipkit.zeroshot.protocols.table import measurement, over_all, pairs_of, with_fewest_images
from clipkit.zeroshot.protocols.transfer_table import measurement as transfer_measurement
from PIL import Image
from small_models import small_model

import clipkit
from clipkit.cli import main
from clipkit.data.class_splits import open_class_splits
from clipkit.heads.files import write_head
from clipkit.heads.methods import build_head

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


def one_hot(features, names):
    """Scores; each class is the axis that its name says."""
    return features @ torch.stack([torch.eye(5)[int(name)] for name in names]).T


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
    found = base_and_new_accuracy(one_hot, features, torch.arange(5), list("01234"))
    assert found == (pytest.approx(2 / 3), 0.5)
    with pytest.raises(ValueError, match="no image of 2 classes"):
        base_and_new_accuracy(one_hot, features[:3], torch.arange(3), list("01234"))


def test_base_and_new_accuracy_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(700, 5, generator=generator), torch.arange(700) % 5
    right = {True: [], False: []}
    for row, label in zip(features.tolist(), labels.tolist(), strict=True):
        choices = range(3) if label < 3 else range(3, 5)
        right[label < 3].append(max(choices, key=row.__getitem__) == label)
    found = base_and_new_accuracy(one_hot, features, labels, list("01234"))
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


def test_recipes_of_one_method_are_rows_of_their_own():
    tip = {"method": "tip-adapter", "shots": 16, "seed": 1}
    heads = {
        "plain": tip,
        "trained": tip | {"recipe": "tip-adapter-f"},
        "mine": tip | {"recipe": "recipes/mine.yaml"},
        "teacher": {"method": "promptkd", "shots": 0, "seed": 1, "recipe": "kd.yaml"},
    }
    groups = by_seed(heads)
    assert groups == {
        ("tip-adapter", 16): {1: "plain"},
        ("tip-adapter-f", 16): {1: "trained"},
        ("tip-adapter (mine)", 16): {1: "mine"},
        ("promptkd (kd)", 0): {1: "teacher"},
    }
    rows = {row: {1: (0.5, 0.25)} for row in groups}
    found = measurement(rows, "mine", ["mine"])
    assert pairs_of(found.metrics) == rows
    assert [row[0] for row in found.tables[0].rows] == [
        "tip-adapter, 16 shots",
        "tip-adapter-f, 16 shots",
        "tip-adapter (mine), 16 shots",
        "promptkd (kd), all images (transductive)",
    ]
    with pytest.raises(ValueError, match="both of tip-adapter-f, 16 shots and seed 1"):
        by_seed({"x": heads["trained"], "y": heads["trained"]})


def test_fewer_images_than_shots_are_told():
    def head(recipe, shots, fewest):
        facts = {"method": "coop", "recipe": recipe, "shots": shots}
        return facts if fewest is None else facts | {"training": {"fewest_images_of_a_class": fewest}}

    facts = [head("coop", 16, 9), head("coop", 16, 8), head("coop", 4, 4), head("coop", 0, 3)]
    fewest = fewest_images([*facts, head("coop-old", 16, None)])
    assert fewest == {("coop", 16): 8}
    measured = measurement({("coop", 16): {1: (0.5, 0.25)}}, "mine", ["mine"])
    told = with_fewest_images(measured, fewest)
    assert told.metrics == measured.metrics
    assert told.tables[0].note == (
        measured.tables[0].note
        + " Classes with fewer training images than shots were trained with all of them "
        "(coop, 16 shots: at least 8 of a class)."
    )
    assert with_fewest_images(measured, {}) == measured


def test_heads_belong_to_the_data_they_were_trained_on():
    classes = {"photo": ["a", "b", "c"], "sketch": ["a", "b", "c"], "pets": ["x", "y"]}
    places = {"photo": "p/photo", "sketch": "p/sketch", "pets": "p/pets"}
    photo, pets = {"class_names": ["a", "b"], "data": "p/photo"}, {"class_names": ["x"]}
    moved = photo | {"data": "elsewhere"}
    found = heads_of_data({"h": photo, "m": moved, "k": pets}, classes, places)
    assert {data: list(heads) for data, heads in found.items()} == {
        "photo": ["h", "m"],
        "sketch": ["m"],
        "pets": ["k"],
    }
    with pytest.raises(ValueError, match="base classes of none of photo, sketch, pets"):
        heads_of_data({"h": {"class_names": ["a", "c"]}}, classes, places)
    with pytest.raises(ValueError, match="none of the heads was trained on the base classes of sketch"):
        heads_of_data({"h": photo, "k": pets}, classes, places)
    with pytest.raises(ValueError, match="trained on 1 new classes"):
        heads_of_data({"h": {"class_names": ["x", "y"]}}, {"pets": ["x", "y"]}, places)


def test_metrics_give_back_the_seeds_that_they_are_of():
    rows = {("maple", 16): {1: (0.8, 0.4), 2: (0.6, 0.6)}, ("zero-shot", None): {0: (0.5, 0.3)}}
    found = measurement(rows, "dtd", ["dtd"])
    assert pairs_of(found.metrics) == rows
    assert next(iter(found.metrics.items())) == ("maple_16_shots_harmonic_mean", pytest.approx(0.7 / 1.2))
    assert found.tables[0].rows[0] == (
        "maple, 16 shots",
        "70.00 ± 14.14 (2 seeds)",
        "50.00 ± 14.14 (2 seeds)",
        "58.33",
    )
    assert found.tables[0].rows[1] == ("zero-shot", "50.00", "30.00", "37.50")
    assert ("MaPLe (published)", "80.36", "59.18", "68.16") in found.tables[0].rows
    assert len(measurement(rows, AVERAGE, ["dtd", "mine"]).tables[0].rows) == 2
    both = over_all({"a": rows, "b": {("maple", 16): {2: (0.2, 0.2), 1: (0.4, 0.4)}}})
    assert both == {
        ("maple", 16): {1: (pytest.approx(0.6), 0.4), 2: (pytest.approx(0.4), pytest.approx(0.4))}
    }
    with pytest.raises(ValueError, match="same seeds"):
        over_all({"a": rows, "b": {("maple", 16): {3: (0.2, 0.2), 1: (0.4, 0.4)}}})
    assert is_all_published("base-to-new", set(_table("base-to-new")["methods"]["CLIP"]) - {AVERAGE})
    assert not is_all_published("base-to-new", ["dtd"])


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two data sets of four classes, whose pictures are noise around a colour of the class."""
    folder = tmp_path_factory.mktemp("protocol")
    generator = torch.Generator().manual_seed(0)
    for data, names in (("dtd", ("ash", "blot", "coil", "dune")), ("mine", ("elk", "fox", "gnu", "hare"))):
        for number, name in enumerate(names):
            own = folder / data / name
            own.mkdir(parents=True)
            for picture in range(5):
                colour = 60 * number + torch.randint(0, 60, (3,), generator=generator)
                Image.new("RGB", (32, 32), tuple(colour.tolist())).save(own / f"{picture}.png")
    return folder


@pytest.fixture(scope="module")
def model_dir(places):
    folder = places / "model"
    model = small_model().requires_grad_(False).eval()
    identity = model.save(folder)
    for data in ("dtd", "mine"):
        names = open_class_splits(str(places / data)).names[:2]
        for method, settings in (("maple", {"depth": 1}), ("coop", {"num_prompts": 2})):
            for seed in (1, 2):
                torch.manual_seed(seed)
                head = build_head(method, model, settings)
                for parameter in head.parameters():
                    torch.nn.init.normal_(parameter, std=0.3)
                facts = {"class_names": list(names), "seed": seed, "shots": 2, "split": "base"}
                write_head(folder, f"{method}-{data}-{seed}", head, facts, model_id=identity)
    names = open_class_splits(str(places / "mine")).names
    for shots in (1, 3):
        for seed in (1, 2):
            torch.manual_seed(10 * shots + seed)
            head = build_head("vpt", model, {"depth": 1})
            for parameter in head.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            facts = {"class_names": list(names), "seed": seed, "shots": shots, "split": "all"}
            write_head(folder, f"all-{shots}-{seed}", head, facts, model_id=identity)
    return folder


def accuracy(model, source, names, logits):
    """Among some names, image by image."""
    right = []
    for number in range(len(source)):
        path, label = source.where(number), int(source.labels[number])
        name = source.classnames[label]
        if name in names:
            image = model.preprocess()(Image.open(path))[None]
            right.append(names[int(logits(image, names).argmax())] == name)
    return fmean(right)


def test_base_to_new_of_a_model_directory(model_dir, places, tmp_path, capsys):
    described = {
        name: [f"like {name}"]
        for data in ("dtd", "mine")
        for name in open_class_splits(str(places / data)).names
    }
    (tmp_path / "texts.json").write_text(json.dumps(described))
    command = ["evaluate", str(model_dir), "--protocol", "base-to-new", "--head", "maple,coop", "--quiet"]
    command += ["--data", f"dtd={places / 'dtd'}", "--data", f"mine={places / 'mine'}"]
    command += ["--descriptions", str(tmp_path / "texts.json"), "--output", str(tmp_path / "results")]
    assert main([*command, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["dataset"] for line in lines] == ["dtd", "mine", AVERAGE]
    model = clipkit.load(model_dir).requires_grad_(False)

    def zero_shot(image, names):
        texts = model.encode_text(model.tokenizer([f"a photo of a {name}." for name in names]))
        return model.encode_image(image) @ torch.nn.functional.normalize(texts, dim=-1).T

    for line in lines[:2]:
        splits, metrics = open_class_splits(str(places / line["dataset"])), line["metrics"]
        for part, names in (("base", splits.names[:2]), ("new", splits.names[2:])):
            assert metrics[f"zero-shot_{part}"] == accuracy(model, splits.test, names, zero_shot)
            assert 0 <= metrics[f"descriptions_{part}"] <= 1
            for method in ("maple", "coop"):
                own = []
                for seed in (1, 2):
                    adapted = model.with_head(f"{method}-{line['dataset']}-{seed}")
                    own.append(accuracy(model, splits.test, names, adapted.logits))
                    assert metrics[f"{method}_2_shots_seed_{seed}_{part}"] == own[-1]
                assert metrics[f"{method}_2_shots_{part}"] == pytest.approx(fmean(own))
    for name in ("coop_2_shots_base", "zero-shot_new"):
        assert lines[2]["metrics"][name] == pytest.approx(fmean(line["metrics"][name] for line in lines[:2]))
    # Taken over from the files; without --json as tables beside published rows.
    assert main(command) == 0
    text = capsys.readouterr().out
    for part in ("MaPLe (published)", "PromptKD repository", "(2 seeds)"):
        assert part in text
    assert "MaPLe (published)" in (tmp_path / "results" / "report.md").read_text()


def test_few_shot_of_a_model_directory(model_dir, places, tmp_path, capsys):
    command = ["evaluate", str(model_dir), "--protocol", "few-shot", "--head", "all", "--quiet"]
    command += ["--data", f"mine={places / 'mine'}", "--output", str(tmp_path / "results")]
    assert main([*command, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    model = clipkit.load(model_dir).requires_grad_(False)
    splits = open_class_splits(str(places / "mine"))
    for shots in (1, 3):
        own = []
        for seed in (1, 2):
            own.append(
                accuracy(model, splits.test, splits.names, model.with_head(f"all-{shots}-{seed}").logits)
            )
            assert metrics[f"vpt_{shots}_shots_seed_{seed}_acc1"] == own[-1]
        assert metrics[f"vpt_{shots}_shots_acc1"] == pytest.approx(fmean(own))
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["method", "1", "shots", "3", "shots"]
    assert [line.split()[0] for line in lines[2:4]] == ["vpt", "zero-shot"]
    assert main([*command[:5], "coop-mine", *command[6:]]) != 0
    assert "2 classes that are all classes of none of mine" in capsys.readouterr().err


def test_transfer_of_a_model_directory(model_dir, places, tmp_path, capsys):
    command = [
        "evaluate",
        str(model_dir),
        "--head",
        "all-3",
        "--quiet",
        "--output",
        str(tmp_path / "results"),
    ]
    command += ["--data", f"dtd={places / 'dtd'}", "--data", f"mine={places / 'mine'}", "--protocol"]
    assert main([*command, "cross-dataset", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["dataset"] for line in lines] == ["dtd", "mine", AVERAGE]
    model = clipkit.load(model_dir).requires_grad_(False)
    for line in lines[:2]:
        splits = open_class_splits(str(places / line["dataset"]))
        for seed in (1, 2):
            own = accuracy(model, splits.test, splits.names, model.with_head(f"all-3-{seed}").logits)
            assert line["metrics"][f"vpt_3_shots_seed_{seed}_acc1"] == own
    assert main([*command, "domain"]) != 0
    assert "dtd has the class 'ash'" in capsys.readouterr().err
    assert main(["evaluate", str(model_dir), "--head", "all,coop", *command[4:], "cross-dataset"]) != 0
    assert "needs one source" in capsys.readouterr().err


def test_transfer_table_by_hand():
    vpt, plain = ("vpt", 16), ("zero-shot", None)
    found = {
        "imagenet": {vpt: {1: (0.7,), 2: (0.8,)}, plain: {0: (0.6,)}},
        "dtd": {vpt: {1: (0.4,), 2: (0.5,)}, plain: {0: (0.3,)}},
        "mine": {vpt: {1: (0.6,), 2: (0.5,)}, plain: {0: (0.1,)}},
    }
    own = transfer_measurement("cross-dataset", found, ["imagenet"])
    assert own.metrics["vpt_16_shots_acc1"] == pytest.approx(0.5)
    assert own.metrics["zero-shot_acc1"] == pytest.approx(0.2)
    (table,) = own.tables
    assert table.header == ("method", "imagenet (source)", "dtd", "mine", AVERAGE)
    assert table.rows[0][1:] == tuple(
        f"{text} (2 seeds)" for text in ("75.00 ± 7.07", "45.00 ± 7.07", "55.00 ± 7.07", "50.00 ± 0.00")
    )
    assert table.rows[1] == ("zero-shot", "60.00", "30.00", "10.00", "20.00")
    assert ("MaPLe (published)", "70.72", "46.49", "", "") in table.rows


def test_few_shot_table_by_hand():
    rows = {("coop", 4): {1: (0.5,), 2: (0.7,)}, ("vpt", 0): {1: (0.9,)}, ("zero-shot", None): {0: (0.25,)}}
    found = few_shot_measurement(rows, "mine")
    assert pairs_of(found.metrics) == rows
    assert found.metrics["coop_4_shots_acc1"] == pytest.approx(0.6)
    assert found.tables[0].header == ("method", "", "4 shots", "all images")
    assert found.tables[0].rows == (
        ("coop", "", "60.00 ± 14.14 (2 seeds)", ""),
        ("vpt", "", "", "90.00"),
        ("zero-shot", "25.00", "", ""),
    )
    assert over_all({"a": rows, "b": {("coop", 4): {1: (0.1,), 2: (0.1,)}}}) == {
        ("coop", 4): {1: pytest.approx((0.3,)), 2: pytest.approx((0.4,))}
    }


PROTOCOL = ["--protocol", "base-to-new"]
DTD = [*PROTOCOL, "--data", "dtd={places}/dtd", "--head"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (PROTOCOL, "--protocol needs --data"),
        (
            ["--protocol", "base-to-new", "--data", "x", "--head", "h", "--name", "n"],
            "--name and --set belong",
        ),
        (["--task", "linear_probe", "--head", "h"], "belong to --protocol"),
        (["--task", "linear_probe", "--data", "a", "--data", "b"], "a task takes one --data"),
        (["--task", "linear_probe", "--protocol", "base-to-new"], "or --protocol NAME with"),
        (
            ["--protocol", "base-to-new", "--data", "a=x", "--data", "a=y", "--head", "h"],
            "names of their own",
        ),
        (
            ["--protocol", "base-to-new", "--data", "dtd={places}/dtd", "--head", "vpt"],
            "no head begins with 'vpt'",
        ),
        (
            ["--protocol", "base-to-new", "--data", "dtd={places}/dtd", "--head", "coop"],
            "not the 2 base classes",
        ),
    ],
)
def test_what_does_not_go_together_is_told_in_a_line(flags, message, model_dir, places, tmp_path, capsys):
    flags = [flag.format(places=places) for flag in flags]
    assert main(["evaluate", str(model_dir), *flags, "--output", str(tmp_path / "results")]) != 0
    assert message in " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
