"""Linear probes on features made by hand."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from clipkit.zeroshot.suite import make_entry
from clipkit.zeroshot.tasks import linear_probe
from clipkit.zeroshot.tasks.base import ImageSet, Measurement
from clipkit.zeroshot.tasks.linear_probe import LinearProbe, ProbeData
from hand_features import at, labelled, made_features, random_rows
from pair_shards import write_pairs
from sklearn.linear_model import LogisticRegression as ScikitLearn
from sklearn.metrics import balanced_accuracy_score

NUM_CLASSES = 6
NAMES = tuple(f"class {number}" for number in range(NUM_CLASSES))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of many small steps: several threads would wait for each other wherever other work runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(num_rows: int, seed: int, name: str, classnames: Sequence[str] = NAMES) -> ImageSet:
    """Images around class means, a fair number of them nearer to another class."""
    labels = torch.arange(num_rows) % NUM_CLASSES
    rows = F.normalize(
        random_rows(NUM_CLASSES, 12, seed=99)[labels] + random_rows(num_rows, 12, seed), dim=-1
    )
    return labelled(rows, labels.tolist(), name=name, classnames=classnames)


TRAIN, TEST = images(180, 1, "train"), images(150, 2, "test")


def measured(train: ImageSet = TRAIN, test: ImageSet = TEST, **settings: object) -> Measurement:
    task = LinearProbe(train="a", test="b", **settings)  # type: ignore[arg-type]
    return task.measure(made_features(train, test))


def test_all_images_with_a_given_strength_are_fitted_as_scikit_learn_does() -> None:
    found = measured(weight_decays=(1e-3,))
    reference = ScikitLearn(C=1 / (180 * 1e-3), tol=1e-9, max_iter=10_000)
    reference.fit(TRAIN.features.double().numpy(), TRAIN.labels.numpy())
    predictions = reference.predict(TEST.features.double().numpy())
    right = torch.from_numpy(predictions == TEST.labels.numpy())
    assert torch.equal(found.outcomes["lp_acc1"], right.double())
    expected = balanced_accuracy_score(TEST.labels.numpy(), predictions)
    assert found.metrics["lp_mean_per_class_recall"] == pytest.approx(expected, abs=1e-6)
    ranked = torch.from_numpy(reference.decision_function(TEST.features.double().numpy())).topk(5).indices
    in_five = (ranked == TEST.labels[:, None]).any(dim=1)
    assert found.metrics["lp_acc5"] == pytest.approx(float(in_five.double().mean()), abs=1e-6)
    assert list(found.metrics) == ["lp_acc1", "lp_acc5", "lp_mean_per_class_recall"]
    assert 1.5 / NUM_CLASSES < found.metrics["lp_acc1"] < 1
    assert found.chance == {
        "lp_acc1": pytest.approx(1 / 6),
        "lp_acc5": pytest.approx(5 / 6),
        "lp_mean_per_class_recall": pytest.approx(1 / 6),
    }
    (row,) = found.tables[0].rows
    assert row[:2] == ("all", "1")
    assert row[-1] == "0.001"
    assert found.notes == ()


def test_shots_over_seeds() -> None:
    found = measured(shots=(2, 8), seeds=4, weight_decays=(1e-3, 1e-1))
    assert {name for name in found.metrics if name.startswith("lp_acc1")} == {"lp_acc1", "lp_acc1_2shot"}
    assert next(iter(found.metrics)) == "lp_acc1"
    assert found.metrics["lp_acc1"] > found.metrics["lp_acc1_2shot"] > 1 / NUM_CLASSES
    # An image that some of the four draws get right counts by their share.
    values = found.outcomes["lp_acc1_2shot"]
    assert set((4 * values).tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert float(((values > 0) & (values < 1)).double().mean()) > 0
    for name, outcome in found.outcomes.items():
        assert float(outcome.mean()) == pytest.approx(found.metrics[name])
    for suffix in ("", "_2shot"):
        low, high = found.intervals[f"lp_mean_per_class_recall{suffix}"]
        assert low < found.metrics[f"lp_mean_per_class_recall{suffix}"] < high
    first, second = found.tables[0].rows
    assert first[:2] == ("2", "4")
    assert second[:2] == ("8", "4")
    assert first[2].startswith(f"{100 * found.metrics['lp_acc1_2shot']:.1f} % ± ")
    assert "see up to 4 more images" in found.notes[0]
    assert found.metrics == measured(shots=(2, 8), seeds=4, weight_decays=(1e-3, 1e-1)).metrics


def test_the_spread_is_that_of_the_seeds() -> None:
    task = LinearProbe(train="a", test="b", shots=(2,), seeds=3, weight_decays=(1e-2,))
    probe = task._probe(ProbeData.of(TRAIN, TEST), 2)
    accuracies = [float((ranks == 0).double().mean()) for ranks in probe.ranks]
    assert len(set(accuracies)) > 1
    cell = linear_probe._table([probe]).rows[0][2]
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    assert cell == f"{100 * mean:.1f} % ± {100 * deviation:.1f} %"


def test_images_of_all_go_before_those_of_shots() -> None:
    found = measured(shots=(4, 0), seeds=1, weight_decays=(1e-2,))
    everything = measured(weight_decays=(1e-2,))
    assert found.metrics["lp_acc1"] == everything.metrics["lp_acc1"]
    assert "lp_acc1_4shot" in found.metrics


def test_baselines_by_hand() -> None:
    # Class means at 10 and 100 degrees. A test image at 50 is nearer to the first mean; its nearest images by
    # angle are those at 80 (twice, class 1) before that at 20.
    train = labelled(at(0, 20, 120, 80, 80, 120), [0, 0, 1, 1, 1, 1], name="train", classnames=NAMES[:2])
    test = labelled(at(53, 10, 110), [1, 0, 1], name="test", classnames=NAMES[:2])
    data = ProbeData.of(train, test)
    means, neighbours = linear_probe._baselines(data, torch.arange(6), 3)
    assert means == pytest.approx(2 / 3)
    assert neighbours == pytest.approx(1.0)


def test_the_strength_is_chosen_on_held_out_images() -> None:
    found = measured()
    best = float(found.tables[0].rows[0][-1])
    assert 1e-6 <= best <= 1e2
    given = measured(weight_decays=(best,))
    assert found.metrics["lp_acc1"] == pytest.approx(given.metrics["lp_acc1"], abs=0.02)


def test_classes_are_matched_by_name() -> None:
    renamed = images(150, 2, "test", [name.replace(" ", "_").title() for name in NAMES])
    assert measured(test=renamed, weight_decays=(1e-2,)).metrics == measured(weight_decays=(1e-2,)).metrics
    turned = labelled(
        TEST.features, (NUM_CLASSES - 1 - TEST.labels).tolist(), name="test", classnames=NAMES[::-1]
    )
    assert measured(test=turned, weight_decays=(1e-2,)).metrics == measured(weight_decays=(1e-2,)).metrics
    with pytest.raises(ValueError, match="the classes of test must be those of the other data"):
        measured(test=images(150, 2, "test", ("a", *NAMES[1:])))


def test_labels_without_names_may_have_gaps() -> None:
    gaps = torch.tensor([3, 5, 9, 11, 20, 21])
    train, test = (labelled(one.features, gaps[one.labels].tolist(), name=one.name) for one in (TRAIN, TEST))
    assert measured(train, test, weight_decays=(1e-2,)).metrics == measured(weight_decays=(1e-2,)).metrics


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (labelled(at(0, 10), [0, 0], name="train"), TEST, "train has those of one"),
        (
            labelled(at(0, 10, 20), [0, 0, 1], name="train", classnames=NAMES[:3]),
            labelled(at(0), [2], name="test", classnames=NAMES[:3]),
            "test has images of class 'class 2', of which train has none",
        ),
        (
            labelled(at(0, 10), [0, 1], name="train"),
            labelled(at(0), [7], name="test"),
            "of class 7, of which",
        ),
    ],
)
def test_sets_that_do_not_fit_are_one_line(train: ImageSet, test: ImageSet, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured(train, test)


def test_more_shots_than_there_are_images_are_told() -> None:
    with pytest.raises(ValueError, match="30 shots need 31 training images of each class"):
        measured(shots=(30,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": (-1,)}, "shots must be different numbers of at least 0"),
        ({"shots": (4, 4)}, "shots must be different numbers of at least 0"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"weight_decays": (0.0,)}, "weight_decays must be above 0"),
        ({"test": "a"}, "test must be other images than train, got a twice"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearProbe(**{"train": "a", "test": "b", **settings})  # type: ignore[arg-type]


def test_both_sets_are_opened(tmp_path: Path) -> None:
    train, test = (write_pairs(tmp_path / name, size, labels=True) for name, size in (("a", 12), ("b", 8)))
    settings = {"task": "linear_probe", "train": train, "test": test, "shots": 2, "weight_decays": [0.01, 1]}
    sources = make_entry("tiles", settings).settings.sources()
    assert {name: len(source) for name, source in sources.items()} == {"train": 12, "test": 8}
