from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from clipkit.zeroshot.controls import (
    WAFFLE_FORMAT,
    NoiseLengths,
    WaffleNoise,
    alphabet_of,
    matched_count,
    read_words,
    scrambled,
    shuffled,
    swapped,
)
from clipkit.zeroshot.descriptions import DescriptionBank
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("hen", "great white shark", "corn_field")
WORDS = ("feathers", "of", "leg", "wingspan", "abc", "red", "metal", "horn", "tail")
BANK = DescriptionBank.of(
    {
        "hen": ["two legs", "a red comb", "brown feathers"],
        "cow": ["four legs", "two horns", "a long tail", "brown"],
        "egg": [],
        "dog": ["four legs", "a wet nose"],
    }
)


def every_word(bank: DescriptionBank) -> list[Counter[str]]:
    return [Counter(" ".join(row).split()) for row in bank.descriptors]


def test_lengths_by_hand() -> None:
    # Words a name: 1, 3, 2. Mean lengths of a word: 3, 5, 4.5. Longest words: 3, 5, 5.
    lengths = NoiseLengths.of(NAMES)
    assert lengths == NoiseLengths(num_words=2, word_length=4, num_chunks=2, chunk_length=5 // 2 + 1)
    assert NoiseLengths.of(["hen"]) == NoiseLengths(num_words=1, word_length=3, num_chunks=1, chunk_length=4)
    with pytest.raises(ValueError, match="got none"):
        NoiseLengths.of([])


@pytest.mark.parametrize("count", [1, 15])
@pytest.mark.parametrize("words", [(), WORDS])
def test_noise_has_twice_the_count_and_is_the_same_for_every_class(
    count: int, words: tuple[str, ...]
) -> None:
    bank = WaffleNoise(count, seed=0, words=words).bank(NAMES)
    assert bank.names == ("hen", "great white shark", "corn field")
    assert len(bank.descriptors[0]) == len(set(bank.descriptors[0])) == 2 * count
    assert set(bank.descriptors) == {bank.descriptors[0]}


def test_noise_is_reproducible_per_seed() -> None:
    assert WaffleNoise(15, 0, WORDS).bank(NAMES) == WaffleNoise(15, 0, WORDS).bank(NAMES)
    banks = {WaffleNoise(15, seed, WORDS).bank(NAMES) for seed in range(7)}
    assert len(banks) == 7


def test_noise_has_the_shape_of_the_class_names() -> None:
    drawn = WaffleNoise(10, 3, WORDS, alphabet="xyz").descriptors(NAMES)
    cut = {word[:4] for word in WORDS}
    for text in drawn[:10]:
        assert len(text.split()) == 2
        assert set(text.split()) <= cut
    for text in drawn[10:]:
        assert [len(chunk) for chunk in text.split(", ")] == [3, 3]
        assert set(text) <= set("xyz, ")
    for text in WaffleNoise(10, 3, alphabet="xyz").descriptors(NAMES):
        assert set(text) <= set("xyz, ")


def test_noise_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="1 words are too few for a noise count of 2"):
        WaffleNoise(2, 0, words=("hen",)).descriptors(NAMES)
    with pytest.raises(ValueError, match="1 characters are too few"):
        WaffleNoise(2, 0, alphabet="x").descriptors(NAMES)
    with pytest.raises(ValueError, match="count of at least 1"):
        WaffleNoise(0, 0)
    with pytest.raises(ValueError, match="an alphabet"):
        WaffleNoise(1, 0, alphabet="")
    with pytest.raises(ValueError, match="'hen' is listed twice"):
        WaffleNoise(1, 0).bank(["hen", "hen"])


def test_the_prompt_of_waffleclip() -> None:
    assert WAFFLE_FORMAT.prompt("hen", "a xyz") == "A photo of a hen, which has a xyz."


def test_words_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps(["", "10-12", " abdomen", "abdomen"]))
    assert read_words(path) == ("10-12", "abdomen")
    for content, message in (
        ("{}", "must hold a list"),
        ("[1]", "must hold"),
        ('[""]', "empty"),
        ("[", "JSON"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_words(path)


def test_alphabet_and_matched_count_by_hand() -> None:
    bank = DescriptionBank.of({"a": ["Cab, 2.", "b-c"], "b": ["x", "y", "z"], "c": []})
    assert alphabet_of(bank) == "-2Cabcxyz"
    assert matched_count(bank) == 1  # 5 / 3 descriptors a class
    assert matched_count(BANK) == 2  # 9 / 4
    assert matched_count(DescriptionBank.of({"a": []})) == 1


@given(st.integers(0, 50))
def test_shuffled_keeps_the_counts_and_all_descriptors(seed: int) -> None:
    dealt = shuffled(BANK, seed)
    assert dealt.names == BANK.names
    assert [len(set(row)) for row in dealt.descriptors] == [3, 4, 0, 2]
    flat = Counter(text for row in dealt.descriptors for text in row)
    assert flat == Counter(text for row in BANK.descriptors for text in row)
    assert shuffled(BANK, seed) == dealt


def test_shuffled_reaches_every_assignment_evenly() -> None:
    bank = DescriptionBank.of({"a": ["1"], "b": ["2"], "c": ["3"]})
    seen = Counter(shuffled(bank, seed).descriptors for seed in range(600))
    assert len(seen) == 6
    assert min(seen.values()) > 60


@given(st.integers(0, 50))
def test_swapped_gives_every_class_the_list_of_another(seed: int) -> None:
    turned = swapped(BANK, seed)
    assert Counter(turned.descriptors) == Counter(BANK.descriptors)
    assert turned.empty == ("egg",)
    for own, other in zip(BANK.descriptors, turned.descriptors, strict=True):
        assert not own or own != other
    assert swapped(BANK, seed) == turned


def test_swapped_differs_by_seed_and_needs_two_classes() -> None:
    assert len({swapped(BANK, seed) for seed in range(20)}) == 2  # both cycles of three
    with pytest.raises(ValueError, match="two classes with descriptors, got 1"):
        swapped(DescriptionBank.of({"a": ["1"], "b": []}), 0)


@given(st.integers(0, 50))
def test_scrambled_keeps_the_words_of_each_class_and_their_numbers(seed: int) -> None:
    mixed = scrambled(BANK, seed)
    assert every_word(mixed) == every_word(BANK)
    lengths = [[len(text.split()) for text in row] for row in mixed.descriptors]
    assert lengths == [[2, 3, 2], [2, 2, 3, 1], [], [2, 3]]
    assert scrambled(BANK, seed) == mixed


def test_scrambled_changes_the_descriptors() -> None:
    assert len({scrambled(BANK, seed) for seed in range(20)}) == 20
    assert BANK not in {scrambled(BANK, seed) for seed in range(20)}
