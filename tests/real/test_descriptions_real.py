"""The published description files of DCLIP and CuPL, and the words of WaffleCLIP, as they are."""

import json

import pytest
from clipkit.zeroshot.controls import WaffleNoise, alphabet_of, matched_count, read_words, shuffled
from clipkit.zeroshot.descriptions import DescriptionBank, PromptFormat
from shared_data import shared_data

DCLIP = {
    "cub": (200, 1312),
    "dtd": (47, 193),
    "eurosat": (10, 25),
    "food101": (101, 499),
    "imagenet": (1000, 5800),
    "pets": (37, 246),
    "places365": (365, 2105),  # three of its 2,108 are there twice
}
CUPL = {"cifar10": (10, 269), "pet": (37, 1079), "res45": (45, 1327), "texture": (47, 1375)}
EMPTY = {
    "food101": ("donuts", "french fries", "fried calamari", "mussels", "oysters"),
    "places365": ("corn field",),
}


def test_every_file_is_in_a_test():
    names = {path.name for path in shared_data("text/dclip").glob("*.json")}
    assert names == {f"descriptors_{name}.json" for name in DCLIP}
    names = {path.name for path in shared_data("text/cupl").glob("*.json")}
    assert names == {f"{name}_prompts_base.json" for name in CUPL}


@pytest.mark.parametrize("name", DCLIP)
def test_dclip_files(name):
    path = shared_data("text/dclip") / f"descriptors_{name}.json"
    bank = DescriptionBank.read(path)
    num_classes, num_descriptors = DCLIP[name]
    assert len(bank.names) == num_classes
    assert sum(len(row) for row in bank.descriptors) == num_descriptors
    assert bank.empty == EMPTY.get(name, ())
    keys = list(json.loads(path.read_text()))[::-1]
    prompts, class_of_prompt = PromptFormat().prompts(keys, bank)
    assert len(prompts) == num_descriptors + len(bank.empty)
    assert class_of_prompt.unique().tolist() == list(range(num_classes))
    assert all(f"{empty}." in "\n".join(prompts).replace("_", " ") for empty in bank.empty)
    assert [len(row) for row in shuffled(bank, 0).descriptors] == [len(row) for row in bank.descriptors]


@pytest.mark.parametrize("name", CUPL)
def test_cupl_files(name):
    bank = DescriptionBank.read(shared_data("text/cupl") / f"{name}_prompts_base.json")
    num_classes, num_descriptors = CUPL[name]
    assert len(bank.names) == num_classes
    prompts, class_of_prompt = PromptFormat("{d}").prompts(bank.names, bank)
    assert len(prompts) == len(class_of_prompt) == num_descriptors
    assert prompts[0] == bank.descriptors[0][0]
    assert bank.empty == ()


def test_waffle_words():
    words = read_words(shared_data("text/waffle_words.json"))
    assert len(words) == 4329  # and a blank one
    bank = DescriptionBank.read(shared_data("text/dclip") / "descriptors_imagenet.json")
    assert matched_count(bank) == 3
    noise = WaffleNoise(15, 0, words, alphabet_of(bank)).bank(bank.names)
    assert len(set(noise.descriptors)) == 1
    assert len(noise.descriptors[0]) == 30
