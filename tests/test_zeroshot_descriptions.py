from __future__ import annotations

import json
from pathlib import Path

import pytest
from clipkit.zeroshot.descriptions import (
    DCLIP_RULE,
    NO_PHRASE,
    DescriptionBank,
    PhraseRule,
    PromptFormat,
    normalized_name,
)
from hypothesis import given
from hypothesis import strategies as st

HENS = {"hen": ["two legs", "a red comb", "often brown"], "Black-footed_Albatross": ["a seabird"], "egg": []}


@pytest.fixture
def bank() -> DescriptionBank:
    return DescriptionBank.of(HENS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Black-footed Albatross", "black footed albatross"),
        ("corn_field", "corn field"),
        ("  Great \t White__shark ", "great white shark"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
    ],
)
def test_normalized_names_by_hand(name: str, expected: str) -> None:
    assert normalized_name(name) == expected


@given(st.text())
def test_normalizing_twice_changes_nothing(name: str) -> None:
    assert normalized_name(normalized_name(name)) == normalized_name(name)


def test_a_bank_from_a_file(tmp_path: Path, bank: DescriptionBank) -> None:
    path = tmp_path / "bank.json"
    path.write_text(json.dumps(HENS), encoding="utf-8-sig")
    assert DescriptionBank.read(path) == bank
    assert bank.names == ("hen", "Black-footed Albatross", "egg")
    assert bank.empty == ("egg",)


def test_descriptors_are_stripped_and_kept_once() -> None:
    bank = DescriptionBank.of({"hen": [" two legs", "a comb", "two legs\n"], "cow": ["two legs"]})
    assert bank.descriptors == (("two legs", "a comb"), ("two legs",))


def test_classes_match_by_name_in_any_order(bank: DescriptionBank) -> None:
    rows = bank.match(["EGG", "black footed albatross", "hen"])
    assert rows == ((), ("a seabird",), ("two legs", "a red comb", "often brown"))


@given(st.permutations(list(HENS)))
def test_the_order_of_the_file_says_nothing(names: list[str]) -> None:
    turned = DescriptionBank.of({name: HENS[name] for name in names})
    assert turned.match(list(HENS)) == DescriptionBank.of(HENS).match(list(HENS))


def test_missing_and_unknown_classes_are_named(bank: DescriptionBank) -> None:
    with pytest.raises(ValueError, match=r"no class is called 'hen'; no descriptions of 'hem' .*mean 'hen'"):
        bank.match(["hem", "egg", "black-footed albatross"])
    with pytest.raises(ValueError, match=r"no descriptions of 'cow', 'dog' \(give an empty list for none\)$"):
        bank.match([*HENS, "cow", "dog"])
    with pytest.raises(
        ValueError, match=r"of the 1 classes: no class is called 'Black-footed Albatross', 'egg'$"
    ):
        bank.match(["hen"])


def test_long_lists_of_names_are_cut(bank: DescriptionBank) -> None:
    with pytest.raises(ValueError, match="'c0', 'c1', 'c2', 'c3', 'c4' and 3 more"):
        bank.match([*HENS, *(f"c{index}" for index in range(8))])


def test_extra_classes_may_be_allowed_and_missing_ones_not(bank: DescriptionBank) -> None:
    assert bank.match(["hen"], allow_extra=True) == (("two legs", "a red comb", "often brown"),)
    with pytest.raises(ValueError, match="no descriptions of 'cow'") as raised:
        bank.match(["cow"], allow_extra=True)
    assert "no class is called" not in str(raised.value)


def test_a_class_listed_twice_is_refused(bank: DescriptionBank, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'hen' is listed twice, as 'hen' and 'HEN'"):
        bank.match(["hen", "egg", "HEN"])
    with pytest.raises(ValueError, match="'hen' is listed twice; name every class once"):
        bank.match(["hen", "egg", "hen"])
    with pytest.raises(ValueError, match="as 'corn_field' and 'Corn-Field'"):
        DescriptionBank.of({"corn_field": [], "Corn-Field": []})
    path = tmp_path / "twice.json"
    path.write_text('{"hen": ["two legs"], "hen": ["a comb"]}')
    with pytest.raises(ValueError, match=r"twice\.json: class 'hen' is listed twice"):
        DescriptionBank.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not parse as JSON"),
        ("[]", "expected descriptions as .*got a list"),
        ("{}", "got no class"),
        ('{"hen": "two legs"}', "descriptors of 'hen' must be a list of texts, got 'two legs'"),
        ('{"hen": ["two legs", 2]}', "must be a list of texts"),
        ('{"hen": ["two legs", " "]}', "class 'hen' has a blank descriptor"),
    ],
)
def test_bad_files_give_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        DescriptionBank.read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("descriptor", "expected"),
    [
        ("a seabird", "which is a seabird"),
        ("an egg", "which is an egg"),
        ("A seabird", "which is A seabird"),
        ("antennae", "which has antennae"),
        ("all-black wings", "which has all-black wings"),
        ("a-frame roof", "which has a-frame roof"),
        ("has wings", "which has wings"),
        ("often brown", "which often brown"),
        ("typically small", "which typically small"),
        ("may, at night, glow", "which may, at night, glow"),
        ("can fly", "which can fly"),
        ("canines", "which has canines"),
        ("hashed lines", "which has hashed lines"),
        ("used for cutting", "which is used for cutting"),
        ("two legs", "which has two legs"),
    ],
)
def test_the_phrase_rule_of_dclip(descriptor: str, expected: str) -> None:
    assert DCLIP_RULE.phrase(descriptor) == expected


def test_phrase_rules_are_data() -> None:
    rule = PhraseRule(cases=((("with",), "seen"), (("with", "(top)"), "never")), default="having")
    assert rule.phrase("with legs") == "seen with legs"
    assert rule.phrase("(top) view") == "never (top) view"
    assert rule.phrase("legs") == "having legs"
    assert NO_PHRASE.phrase("a seabird") == "a seabird"


@pytest.mark.parametrize(
    ("template", "with_descriptor", "alone"),
    [
        ("{c}, {d}.", "hen, which has two legs.", "hen."),
        ("A photo of a {c}, {d}", "A photo of a hen, which has two legs", "A photo of a hen"),
        ("a {c} ({d}).", "a hen (which has two legs).", "a hen."),
        ("a {c}.", "a hen.", "a hen."),
        ("{d}: {c}!", "which has two legs: hen!", ": hen!"),
        ("{d}", "two legs", "hen"),
        ("Seen: {d}.", "Seen: two legs.", "hen"),
    ],
)
def test_prompts_by_hand(template: str, with_descriptor: str, alone: str) -> None:
    prompt_format = PromptFormat(template)
    assert prompt_format.prompt("hen", "two legs") == with_descriptor
    assert prompt_format.prompt("hen") == alone


def test_a_template_for_names_alone() -> None:
    assert PromptFormat("{c} with {d}", NO_PHRASE, "a {c}").prompt("hen") == "a hen"


def test_braces_in_names_and_descriptors_stay() -> None:
    assert PromptFormat("{c}, {d}.", NO_PHRASE).prompt("{d}", "{c} and {x}") == "{d}, {c} and {x}."


@pytest.mark.parametrize("template", ["a photo", "", "{c}, {desc}.", "{}"])
def test_templates_without_a_place_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"template .*got"):
        PromptFormat(template)


@pytest.mark.parametrize("template", ["a hen", "{c} {d}", "{c} {x}"])
def test_templates_for_names_need_the_name_alone(template: str) -> None:
    with pytest.raises(ValueError, match=r"template .*got"):
        PromptFormat(name_template=template)


def test_prompts_of_all_classes(bank: DescriptionBank) -> None:
    names = ["egg", "black footed albatross", "hen"]
    prompts, class_of_prompt = PromptFormat().prompts(names, bank)
    assert prompts == [
        "egg.",
        "black footed albatross, which is a seabird.",
        "hen, which has two legs.",
        "hen, which is a red comb.",
        "hen, which often brown.",
    ]
    assert class_of_prompt.tolist() == [0, 1, 2, 2, 2]
    descriptors = PromptFormat().descriptors(names, bank)
    assert descriptors == ["", "a seabird", "two legs", "a red comb", "often brown"]


def test_a_template_without_descriptors_has_one_prompt_a_class(bank: DescriptionBank) -> None:
    prompts, class_of_prompt = PromptFormat("a {c}").prompts(["hen", "egg"], bank, allow_extra=True)
    assert prompts == ["a hen", "a egg"]
    assert class_of_prompt.tolist() == [0, 1]
    assert PromptFormat("a {c}").descriptors(["hen", "egg"], bank, allow_extra=True) == ["", ""]


def test_prompts_refuse_classes_that_do_not_fit(bank: DescriptionBank) -> None:
    with pytest.raises(ValueError, match="no class is called"):
        PromptFormat().prompts(["hen"], bank)


def test_one_of_several_banks_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "banks.json"
    path.write_text(json.dumps({"pets": {"cat": ["whiskers"]}, "food": {"cake": []}}))
    assert DescriptionBank.read(f"{path}:pets").descriptors == (("whiskers",),)
    with pytest.raises(ValueError, match=r"no bank called ''; name one as FILE.json:NAME, of 'pets', 'food'"):
        DescriptionBank.read(path)
    path.write_text(json.dumps({"cat": ["whiskers"]}))
    with pytest.raises(ValueError, match="there is no bank called 'pets'"):
        DescriptionBank.read(f"{path}:pets")
