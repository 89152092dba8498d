"""Noun phrases of captions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from clipkit.regions.labelling.phrases import (
    GENERIC,
    OVER_LIMIT,
    STOP_WORDS_ONLY,
    TAGGERS,
    NounPhrases,
)

pytest.importorskip("textblob", reason="textblob is not installed: pip install 'clipkit[regions]'")


@pytest.fixture(scope="module")
def noun_phrases() -> NounPhrases:
    return NounPhrases()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "A young white female kid standing in front of a closed door.",
            ["a young white female kid", "door"],
        ),
        ("two dogs playing with a red ball on the green grass", ["dogs", "a red ball", "the green grass"]),
        ("a family is sitting down at a table to have cake", ["a family", "a table", "cake"]),
        ("A coffee cup. An old wooden Boat", ["a coffee cup", "an old wooden boat"]),
        ("running quickly", []),
        ("", []),
        (" ...  !", []),
    ],
)
def test_phrases_by_hand(caption: str, expected: list[str], noun_phrases: NounPhrases) -> None:
    assert list(noun_phrases([caption]).phrases) == expected


def test_phrases_about_the_picture_and_of_stop_words_are_left_out(noun_phrases: NounPhrases) -> None:
    found = noun_phrases(["A black photo of a red car on the left side", "a picture frame in the background"])
    assert found.phrases == ("a red car", "a picture frame")
    assert found.left_out == {GENERIC: 3}
    assert noun_phrases(["the front view of a mountain view", "the image. A nice picture"]).phrases == (
        "a mountain view",
    )
    assert noun_phrases(["a car in a parking area, a bus in the city center"]).phrases == (
        "a car",
        "a parking area",
        "a bus",
        "the city center",
    )
    found = noun_phrases(["dogs and the others"])
    assert found.phrases == ("dogs",)
    assert found.left_out == {STOP_WORDS_ONLY: 1}


def test_the_first_phrases_of_all_captions_each_once(noun_phrases: NounPhrases) -> None:
    captions = ["a red car and a dog", "A dog near a tree", "a red car, a house, a boat"]
    assert noun_phrases(captions).phrases == ("a red car", "a dog", "a tree", "a house", "a boat")
    few = noun_phrases(captions, limit=3)
    assert few.phrases == ("a red car", "a dog", "a tree")
    assert few.left_out == {OVER_LIMIT: 2}


def test_odd_texts_do_no_harm(noun_phrases: NounPhrases) -> None:
    for text in ["a/b/c / d", "{<DT>} <NN> a (red) car", "\u00e9\u00e8 \U0001f600 caf\u00e9", "cat " * 3000]:
        for phrase in noun_phrases([text]).phrases:
            assert phrase == " ".join(phrase.lower().split())
    assert noun_phrases(["a (red) car"]).phrases == ("car",)


def test_nltk_s_tagger_is_used_where_its_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tagger of NLTK that was taught other words, at the place where NLTK downloads its own to."""
    import nltk.data
    from nltk.tag.perceptron import PerceptronTagger

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(OSError, match=r"python -m nltk\.downloader averaged_perceptron_tagger_eng"):
        NounPhrases("nltk")
    tagger = PerceptronTagger(load=False)
    sentence = [("the", "DT"), ("glorp", "JJ"), ("zib", "NN"), ("runs", "VBZ")]
    tagger.train([sentence] * 20, nr_iter=3)
    folder = tmp_path / "taggers" / "averaged_perceptron_tagger_eng"
    folder.mkdir(parents=True)
    for content, name in zip(tagger.encode_json_obj(), tagger.param_files("eng"), strict=True):
        (folder / name).write_text(json.dumps(content))
    assert NounPhrases("nltk")(["the glorp zib runs"]).phrases == ("the glorp zib",)


@pytest.mark.parametrize(
    ("tagger", "module"), [("textblob", "textblob.en.taggers"), ("nltk", "nltk.tag.perceptron")]
)
def test_a_missing_package_is_named(tagger: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OSError, match=r"phrases of captions need .*: pip install 'clipkit\[regions\]'"):
        TAGGERS[tagger]()
