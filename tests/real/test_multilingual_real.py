"""The published labels of Babel-ImageNet, as they are."""

import torch
from clipkit.zeroshot.tasks.language_files import level_of_size, read_labels
from clipkit.zeroshot.tasks.multilingual import Multilingual
from made_features import features_of, random_unit
from shared_data import shared_data

SIZES = {"EN": 1000, "FI": 973, "TH": 896, "ZH": 885, "ES": 845, "FR": 799, "OM": 18}


def test_labels_of_all_languages():
    labels = read_labels(shared_data("text/babel_imagenet-298.json"))
    assert len(labels) == 298
    assert {language: len(labels[language].classes) for language in SIZES} == SIZES
    assert min(len(own.classes) for own in labels.values()) == 10
    levels = [level_of_size(len(own.classes)) for own in labels.values()]
    assert {level: levels.count(level) for level in set(levels)} == {"high": 57, "mid": 61, "low": 180}
    assert sorted(labels["EN"].repeated) == ["crane", "gong"]
    assert sum(len(own.repeated) for own in labels.values()) == 207


def test_every_language_keeps_to_its_classes():
    """An image of each class that equals the vector of its label: all is right but labels that are shared."""
    path = shared_data("text/babel_imagenet-298.json")
    labels = read_labels(path)
    english = random_unit(1000, 128)
    images = {str(number): vector for number, vector in enumerate(english)}
    for language in ("EN", "DE", "ZH", "OM"):
        texts = {}
        for number, label in zip(labels[language].classes, labels[language].labels, strict=True):
            texts.setdefault(label, english[number])
        task = Multilingual(data="unused", labels=path, languages=(language,))
        found = task.measure(features_of(images, texts, labels=range(1000)))
        (row,) = found.tables[1].rows
        own = labels[language]
        extra = sum(own.repeated.values()) - len(own.repeated)
        assert row[2] == row[3] == f"{len(own.classes):,}"
        assert row[4] == row[6] == f"{100 * (1 - extra / len(own.classes)):.1f} %"
        assert row[5] == f"{100 / len(own.classes):.2f} %"
        values = next(iter(found.outcomes.values()))
        assert torch.isclose(values.sum(), torch.tensor(float(len(own.classes) - extra), dtype=torch.float64))
