"""`clipkit regions show`: boxes, scores and maps of phrases in pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from region_shards import draw, made_regions, random_model

import clipkit
from clipkit.cli import main
from clipkit.regions.dense import dense_map
from clipkit.regions.look import PhraseInPicture, draw_heat, hottest, look_for
from clipkit.regions.show import LookedAt, check_out, write_shown
from clipkit.windows import Window, eval_window

PHRASES = ["red", "blue star"]


def _wide() -> Image.Image:
    return draw(made_regions(1)[0], (128, 64))


def test_boxes_come_back_as_fractions_of_the_whole_picture() -> None:
    model, picture = random_model("prompter"), _wide()
    found = look_for(model, picture, PHRASES, with_heat=True)
    image = model.preprocess()(picture)[None]
    shown = model.ground(image, PHRASES)
    with torch.no_grad():
        seen = model.tokens(image)
        features = model.encode_regions(seen, shown, torch.tensor([0, 0]))
        texts = model.encode_text(model.tokenizer(PHRASES), normalize=True)
    maps = dense_map(model, image, PHRASES)[0]
    for row, one in enumerate(found):
        assert one.phrase == PHRASES[row]
        # The centre crop shows the middle half of the width.
        x0, y0, x1, y1 = shown[row].tolist()
        assert one.box == pytest.approx((0.25 + x0 / 2, y0, 0.25 + x1 / 2, y1), abs=1e-5)
        assert one.score == pytest.approx(float(features[row] @ texts[row]), abs=1e-5)
        assert one.heat is not None
        torch.testing.assert_close(one.heat, maps[row], rtol=0, atol=1e-5)


def test_heat_lies_where_the_tower_saw_it() -> None:
    heat = torch.zeros(4, 4)
    heat[:, 3] = 1  # the right quarter of what is shown
    picture = Image.new("RGB", (80, 40), (10, 200, 30))
    pixels = np.asarray(draw_heat(picture, heat, Window(0.25, 0, 0.75, 1))).astype(int)
    redness = pixels[..., 0] - pixels[..., 1]
    assert (redness[:, :20] == 0).all()  # left of the window
    assert (redness[:, 60:] == 0).all()  # right of it
    assert (redness[:, 20:35] == 0).all()  # the coldest places
    assert (redness[:, 56:60] > 60).all()
    # A window with borders around the picture: what lies in the borders is not drawn.
    bordered = np.asarray(draw_heat(picture, heat.T.contiguous(), Window(0, -0.5, 1, 1.5))).astype(int)
    assert (bordered[:20, :, 0] == bordered[:20, :, 2]).all()
    assert (bordered[..., 0] - bordered[..., 2]).max() < 100  # the warm quarter lies below the picture
    flat = np.asarray(draw_heat(picture, torch.ones(4, 4), Window(0, 0, 1, 1))).astype(int)
    assert (flat[..., 0] == flat[..., 1]).all()


def test_the_hottest_point_is_the_centre_of_a_token_in_the_picture() -> None:
    heat = torch.zeros(2, 4)
    heat[1, 3] = 0.5
    point, value = hottest(heat, Window(0.25, 0, 0.75, 1))
    assert point == pytest.approx((0.25 + 0.5 * 7 / 8, 0.75))
    assert value == 0.5
    tall = torch.zeros(4, 1)
    tall[3] = 0.5
    assert hottest(tall, Window(0, -0.5, 1, 1.5))[0] == (0.5, 1.0)  # its centre is below the picture, at 1.25


def test_a_sheet_has_a_row_for_each_picture(tmp_path: Path) -> None:
    picture, window = Image.new("RGB", (64, 32), "gray"), Window(0, 0, 1, 1)
    found = (
        PhraseInPicture(phrase="sky", box=(0.5, 0.0, 1.0, 0.5), score=0.25, heat=torch.eye(4)),
        PhraseInPicture(phrase="sea", box=(0.0, 0.5, 0.5, 1.0), score=0.5, heat=torch.eye(4)),
    )
    both = [LookedAt(path="a", picture=picture, window=window, found=found)] * 2
    write_shown(tmp_path / "out.png", both)
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.size == (3 * 640 + 2 * 12, 2 * 320 + 12)
        # The frame of the first box, in its colour: its left edge is the middle of the first picture.
        assert sheet.getpixel((320, 150)) == (0xE6, 0x19, 0x4B)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png"]


def _save(tmp_path: Path, kind: str | None) -> clipkit.DualEncoder:
    model = random_model(kind)
    model.save(tmp_path / "model")
    _wide().save(tmp_path / "wide.png")
    return model


def test_lines_json_and_page_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _save(tmp_path, "query-decoder")
    (tmp_path / "broken.png").write_bytes(b"no")
    path = str(tmp_path / "wide.png")
    how = ["--model", str(tmp_path / "model"), "--phrases", "red, blue star"]
    page = tmp_path / "page.html"
    arguments = ["regions", "show", str(tmp_path), *how, "--out", str(page), "--heat"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert f"not read: {tmp_path}/broken.png: not an image" in printed.err
    expected = look_for(model, _wide(), PHRASES)
    assert main([*arguments[:2], path, *how, "--out", str(page), "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, record, one in zip(printed.out.splitlines(), records, expected, strict=True):
        assert one.box is not None
        assert record == {
            "path": path,
            "phrase": one.phrase,
            "box": pytest.approx(list(one.box), abs=1e-5),
            "score": pytest.approx(one.score, abs=1e-5),
        }
        assert line.startswith(f"{path}  [{record['box'][0] * 128:.0f}, {record['box'][1] * 64:.0f}, ")
        assert line.endswith(f"  {one.score:.3f}  {one.phrase}")
    text = page.read_text()
    assert "<td>blue star</td>" in text
    assert text.count("<img") == 1


@pytest.mark.parametrize("kind", [None, "roi-align"])
def test_heat_alone_needs_no_head_that_grounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str | None
) -> None:
    _save(tmp_path, kind)
    how = ["regions", "show", str(tmp_path / "wide.png"), "--model", str(tmp_path / "model")]
    how += ["--phrases", "red", "--out", str(tmp_path / "out.png")]
    assert main(how) == 2
    error = capsys.readouterr().err
    assert "no region head" in error or "cannot ground" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
    assert main([*how, "--heat"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert main([*how, "--heat", "--json"]) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (record["box"], record["score"]) == (None, None)
    one = look_for(
        clipkit.load(tmp_path / "model").eval(), _wide(), ["red"], with_boxes=False, with_heat=True
    )[0]
    assert one.heat is not None
    assert record["point_score"] == pytest.approx(float(one.heat.max()), abs=1e-5)
    row, column = (one.heat == one.heat.max()).nonzero()[0].tolist()
    rows, columns = one.heat.shape
    # The centre crop shows the middle half of the width.
    expected = [0.25 + (column + 0.5) / columns / 2, (row + 0.5) / rows]
    assert record["point"] == pytest.approx(expected, abs=1e-6)
    in_pixels = f"({128 * expected[0]:.0f}, {64 * expected[1]:.0f})"
    assert line == f"{tmp_path / 'wide.png'}  {in_pixels}  {record['point_score']:.3f}  red"
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.size == (2 * 640 + 12, 320)


@pytest.mark.parametrize(
    ("phrases", "out", "message"),
    [
        (" , ", "a.png", "--phrases must name a phrase"),
        ("red", "a.jpg", "--out must end with .png or .html"),
        ("red", "folder.png", "--out must be a file, folder.png is a folder"),
        ("red", "no/a.png", "--out no/a.png is in a folder that is not there: make no first"),
    ],
)
def test_bad_requests_are_refused_before_the_model_is_loaded(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    phrases: str,
    out: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert main(["regions", "show", "x.png", "--model", "x", "--phrases", phrases, "--out", out]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize(("name", "start"), [("OUT.PNG", b"\x89PNG"), ("out.Html", b"<!doctype html>")])
def test_suffixes_count_in_any_case(name: str, start: bytes, tmp_path: Path) -> None:
    found = (PhraseInPicture(phrase="sky", box=(0.5, 0.0, 1.0, 0.5), score=0.25, heat=None),)
    check_out(tmp_path / name)
    looked_at = LookedAt(path="a", picture=_wide(), window=Window(0, 0, 1, 1), found=found)
    write_shown(tmp_path / name, [looked_at])
    assert (tmp_path / name).read_bytes().startswith(start)


def test_a_sheet_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_is_full(source: Path, target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.replace", disk_is_full)
    looked_at = LookedAt(path="a", picture=_wide(), window=Window(0, 0, 1, 1), found=())
    with pytest.raises(OSError, match="no space"):
        write_shown(tmp_path / "out.png", [looked_at])
    assert not list(tmp_path.iterdir())


def test_what_is_shown_of_a_picture_is_the_window_of_the_transform() -> None:
    model = random_model(None)
    window = eval_window(model.preprocess_config, (64, 128))
    assert (window.left, window.right) == (0.25, 0.75)
