"""Explanation cards, and `clipkit classify --cards`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from clipkit.zeroshot import cards
from clipkit.zeroshot.answers import Answer, Prediction
from clipkit.zeroshot.cards import MAX_BARS, WIDTH, card_name, draw_card, write_card
from clipkit.zeroshot.scoring import ClassExplanation
from PIL import Image, ImageFont
from small_models import small_model

from clipkit.cli import main

BLUE, ORANGE = (0x1F, 0x6F, 0xEB), (0xC2, 0x41, 0x0C)
RIGHT_HALF = WIDTH // 2
"""Where the bars are."""


def _answer(*classes: tuple[str, float, dict[str, float]], path: str = "a.png") -> Answer:
    return Answer(
        path=path,
        predictions=tuple(
            Prediction(class_name=name, score=score, probability=0.5) for name, score, _ in classes
        ),
        explanations=tuple(
            ClassExplanation(class_name=name, score=score, descriptors=tuple(own.items()))
            for name, score, own in classes
        ),
    )


def _bars(card: Image.Image, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Left and right end of each bar of a colour, from the top, by its longest row of pixels."""
    is_bar = (np.asarray(card) == colour).all(axis=2)
    is_bar[:, :RIGHT_HALF] = False
    rows = np.flatnonzero(is_bar.sum(axis=1) > 8)
    groups = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    found = []
    for group in groups:
        columns = np.flatnonzero(is_bar[group].any(axis=0))
        # Names of classes have the colour too, but do not fill what they stand on.
        if columns.size and is_bar[group][:, columns[0] : columns[-1] + 1].mean() > 0.9:
            found.append((int(columns[0]), int(columns[-1])))
    return found


def _picture(colour: str = "red", size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_bars_are_as_long_as_cosines_on_one_scale() -> None:
    best = {"two legs": 0.30, "feathers": 0.15, "a comb": 0.075}
    second = {"spurs": 0.225, "not a tail": -0.075}
    card = draw_card(_answer(("hen", 0.175, best), ("rooster", 0.075, second)), _picture())
    blue, orange = _bars(card, BLUE), _bars(card, ORANGE)
    assert len(blue) == 3
    assert len(orange) == 2
    zero = blue[0][0]
    unit = (blue[0][1] - zero) / 0.30
    for (left, right), cosine in zip(blue + orange, [*best.values(), *second.values()], strict=True):
        assert abs((right if cosine > 0 else left) - (zero + cosine * unit)) <= 1.5
        assert abs((left if cosine > 0 else right) - zero) <= 1.5


def test_the_score_is_a_line_through_the_bars() -> None:
    card = np.asarray(draw_card(_answer(("hen", 0.2, {"legs": 0.4, "comb": 0.1})), _picture()))
    (left, right), _ = _bars(Image.fromarray(card), BLUE)
    is_ink = (card == (0x1C, 0x27, 0x33)).all(axis=2)
    is_ink[:, : left + 4] = is_ink[:, right + 20 :] = False
    (column, *_) = np.flatnonzero(is_ink.sum(axis=0) > 40)
    assert abs(column - (left + (right - left) * 0.2 / 0.4)) <= 2


def test_the_picture_is_at_the_left_in_its_shape() -> None:
    for size, shape in (((60, 40), (380, 253)), ((1000, 2000), (190, 380)), ((9000, 1), (380, 1))):
        card = np.asarray(draw_card(_answer(("hen", 0.2, {"legs": 0.2})), _picture("lime", size)))
        rows, columns = np.nonzero((card == (0, 255, 0)).all(axis=2))
        assert (int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1) == shape
        assert columns.max() < RIGHT_HALF


def test_of_many_descriptors_the_best_are_shown() -> None:
    many = {f"descriptor {number}": 0.5 - number / 1000 for number in range(80)}
    card = draw_card(_answer(("hen", 0.45, many), ("cat", 0.4, many)), _picture())
    assert len(_bars(card, BLUE)) == len(_bars(card, ORANGE)) == MAX_BARS
    fewer = dict(list(many.items())[: MAX_BARS + 1])
    assert draw_card(_answer(("hen", 0.45, fewer), ("cat", 0.4, fewer)), _picture()).size == card.size


def test_no_text_is_too_long_or_too_odd() -> None:
    odd = [
        "",
        "  \n\t ",
        "鶏冠 鸡 🐔 кура όρνιθα دجاجة עוף",
        "\ud800 \udcff \x00\x1b[2J",
        "word " * 500,
        "Donaudampfschiff" * 50,
        "a\u0301\u0302" * 40,
    ]
    plain = {f"{number}": 0.3 for number in range(len(odd))}
    expected = draw_card(_answer(("hen", 0.3, plain)), _picture())
    for name in ("hen", *odd):
        answer = _answer((name, 0.3, dict.fromkeys(odd, 0.3)), path=f"folder/{'x' * 300}\udcff é.png")
        card = draw_card(answer, _picture())
        assert _bars(card, BLUE) == _bars(expected, BLUE)
        border = np.asarray(card)[:, WIDTH - 20 :]
        assert (border == 255).all()  # nothing runs over the edge


def test_texts_are_wrapped_and_then_cut() -> None:
    font = ImageFont.load_default(18)
    lines = cards._wrapped("one two three four five six", 18, 100, max_lines=9)
    assert len(lines) > 1
    assert " ".join(lines) == "one two three four five six"
    assert all(font.getlength(line) <= 100 for line in lines)
    cut = cards._wrapped("one two three four five six", 18, 100, max_lines=2)
    assert cut[0] == lines[0]
    assert cut[1].endswith("…")
    assert font.getlength(cut[1]) <= 100
    assert cards._wrapped("short", 18, 100, max_lines=1) == ("short",)
    assert cards._wrapped("a\x00b \ud800\n\x1bc", 18, 100, max_lines=1) == ("a b c",)
    assert cards._wrapped("i" * 200, 18, 100, max_lines=2)[0].count("i") > 10


def test_card_names_are_stable_and_differ() -> None:
    assert card_name("photos/17.jpg") == "17-734bf9fc754f.png"
    paths = ["a/x.jpg", "b/x.jpg", "a/x.png", "x.jpg", "./x.jpg", "a\udcff.jpg", "Ä" * 250, "-.jpg", ".jpg"]
    names = {card_name(path) for path in paths}
    assert len(names) == len(paths)
    assert all(len(os.fsencode(name)) < 200 and "/" not in name for name in names)


def test_cards_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "a.png"
    _picture().save(picture)
    answer = _answer(("hen", 0.2, {"legs": 0.2}), path=str(picture))
    folder = tmp_path / "cards"
    folder.mkdir()
    path = write_card(folder, answer)
    assert path == folder / card_name(str(picture))
    with Image.open(path) as card:
        assert card.width == WIDTH
    before = path.read_bytes()
    assert write_card(folder, answer).read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        other = _answer(("hen", 0.1, {"legs": 0.1}), path=str(picture))
        with pytest.raises(OSError, match="killed"):
            write_card(folder, other)
    assert path.read_bytes() == before
    picture.write_bytes(b"gone")
    with pytest.raises(OSError, match=r"no card for .*a\.png: not an image"):
        write_card(folder, answer)
    picture.unlink()
    with pytest.raises(OSError, match=r"no card for .*a\.png: missing file"):
        write_card(folder, answer)


def test_nothing_to_explain_is_no_card() -> None:
    with pytest.raises(ValueError, match=r"the answer to a\.png has no explanation to draw"):
        draw_card(_answer(), _picture())


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small_model().save(tmp_path / "model")
    for folder, colours in (("photos", ("red", "green")), ("photos/more", ("blue",))):
        Path(folder).mkdir()
        for number, colour in enumerate(colours):
            _picture(colour).save(f"{folder}/{number}.png")
    Path("photos/broken.png").write_bytes(b"no picture")
    return tmp_path


def _classify(bank: dict[str, list[str]], *arguments: str) -> int:
    Path("bank.json").write_text(json.dumps(bank))
    fixed = ["photos", "--model", "model", "--descriptions", "bank.json"]
    return main(["classify", *fixed, *arguments])


def test_classify_writes_a_card_for_each_picture(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = {"hen": ["two legs", "a comb"], "cat": ["whiskers"], "dog": ["often barks"]}
    assert _classify(bank, "--cards", "new/cards", "--json") == 1  # one is broken
    printed = capsys.readouterr()
    records = [json.loads(line) for line in printed.out.splitlines()]
    assert [record["card"] for record in records] == [
        f"new/cards/{card_name(path)}" for path in ("photos/0.png", "photos/1.png", "photos/more/0.png")
    ]
    assert all(record["explanations"] == [] for record in records)
    assert "3 cards in new/cards\n" in printed.err
    assert sorted(os.listdir("new/cards")) == sorted(Path(record["card"]).name for record in records)
    assert _classify(bank, "--cards", "new/cards", "--explain") == 1
    assert "often barks" in capsys.readouterr().out
    assert len(os.listdir("new/cards")) == 3


def test_an_edited_description_changes_the_card_at_no_forward_pass(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = {"hen": ["two legs", "a comb"], "cat": ["whiskers"]}
    card = Path("cards") / card_name("photos/0.png")

    def explained(bank: dict[str, list[str]]) -> tuple[dict[str, dict[str, float]], bytes, str]:
        assert _classify(bank, "--cards", "cards", "--explain", "--json") == 1
        printed = capsys.readouterr()
        found = {
            reason["class_name"]: dict(reason["descriptors"])
            for reason in json.loads(printed.out.splitlines()[0])["explanations"]
        }
        return found, card.read_bytes(), printed.err

    first, first_card, _ = explained(bank)
    again, same_card, log = explained(bank)
    assert (again, same_card) == (first, first_card)
    assert "features of 3 were known" in log
    second, second_card, log = explained({**bank, "hen": ["two legs", "a red comb", "wings"]})
    assert "features of 3 were known" in log
    assert second_card != first_card
    assert set(second["hen"]) == {"two legs", "a red comb", "wings"}
    assert second["hen"]["two legs"] == pytest.approx(first["hen"]["two legs"], abs=1e-6)
    assert second["cat"] == pytest.approx(first["cat"], abs=1e-6)


def test_cards_need_a_folder(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert _classify({"hen": [], "cat": []}, "--cards", "file") == 2
    assert capsys.readouterr().err == "clipkit: --cards must name a folder, file is something else\n"
