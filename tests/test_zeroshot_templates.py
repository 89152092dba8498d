from __future__ import annotations

import json
from pathlib import Path

import pytest
from clipkit.zeroshot.classnames import parse_class_names, read_class_names

from clipkit.templates import load_templates


def test_named_sets_are_open_clip_s() -> None:
    assert load_templates(None) == ("a photo of a {c}.",)
    assert len(load_templates("openai")) == 80
    assert load_templates("openai")[0] == "a bad photo of a {c}."
    assert len(load_templates("openai-simple")) == 7
    assert set(load_templates("openai-simple")) <= set(load_templates("openai"))


def test_files(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a {c}\n\n a drawing of {} \n")
    assert load_templates(str(tmp_path / "lines.txt")) == ("a {c}", "a drawing of {c}")
    (tmp_path / "list.json").write_text(json.dumps(["a {c}"]))
    assert load_templates(str(tmp_path / "list.json")) == ("a {c}",)
    (tmp_path / "sets.json").write_text(json.dumps({"pets": ["a {c}, a pet"], "cars": ["a {c} car"]}))
    assert load_templates(f"{tmp_path}/sets.json:cars") == ("a {c} car",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a photo\n", r"need \{c\} where the class name goes, got 'a photo'"),
        ("a.txt", "\n", "got no line"),
        ("a.json", "{", "a.json is no JSON"),
        ("a.json", '{"pets": ["a {c}"]}', "holds several sets; name one as"),
        ("a.json:pet", '{"pets": ["a {c}"]}', "has no 'pet'; did you mean 'pets'"),
        ("a.json", '"a {c}"', "must hold a list of templates, got str"),
    ],
)
def test_files_that_hold_no_templates(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name.split(":")[0]).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_templates(f"{tmp_path}/{name}")


def test_an_unknown_set() -> None:
    with pytest.raises(
        FileNotFoundError, match="neither a file nor one of openai, openai-simple; did you mean"
    ):
        load_templates("opena")


def test_class_names(tmp_path: Path) -> None:
    assert parse_class_names("red fox, dog,") == ("red fox", "dog")
    (tmp_path / "c.txt").write_text("dog\n\n cat \n")
    assert read_class_names(tmp_path / "c.txt") == ("dog", "cat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least two classes, got none"),
        ("dog", "at least two classes, got dog"),
        ("dog,cat,Dog", "lists 'dog' more than once"),
    ],
)
def test_class_names_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_class_names(text)
