"""Shards with captions to shards with regions, through the command."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import region_finder
from broken_shards import encode, write_tar
from PIL import Image
from rank_pool import RankPool

from clipkit.cli import main
from clipkit.data.problems import MISSING_CAPTION, MISSING_IMAGE, TRUNCATED_TAR, UNREADABLE_JSON
from clipkit.data.samples import SampleKeys
from clipkit.data.sources import open_source
from clipkit.images import CORRUPT_IMAGE
from clipkit.regions import boxes
from clipkit.regions.labelling.phrases import GENERIC
from clipkit.regions.labelling.settings import (
    ALMOST_SAME_BOX,
    LOW_SCORE,
    NO_PHRASE,
    NOTHING_FOUND,
    SAME_BOX,
    LabelReport,
    total,
)

pytest.importorskip("textblob", reason="textblob is not installed: pip install 'clipkit[regions]'")

PLACES = {"red": (10, 5, 30, 15), "blue": (2, 2, 8, 18)}
"""Pixels of the rectangles in a picture of 40 x 20."""


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(region_finder, "calls", [])
    monkeypatch.setattr(region_finder, "fail_at", None)


def picture(*colours: str) -> bytes:
    image = Image.new("RGB", (40, 20), "white")
    for colour in colours:
        image.paste(region_finder.COLOURS[colour], PLACES[colour])
    return encode(image, "PNG")


def sample(key: str, *colours: str, caption: str = "a red box and a blue door") -> dict[str, bytes]:
    return {f"{key}.png": picture(*colours), f"{key}.txt": caption.encode()}


def write_shards(folder: Path) -> Path:
    """Three tars of two samples."""
    folder.mkdir()
    for shard in range(3):
        members = {**sample(f"{shard}0", "red", "blue"), **sample(f"{shard}1", "blue")}
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def label(shards: Path, out: Path, *arguments: str, detector: str = "by_colour") -> int:
    given = [str(shards), "--out", str(out), "--detector", f"region_finder:{detector}", "--quiet", *arguments]
    return main(["regions", "label", *given])


def run(
    capsys: pytest.CaptureFixture[str], shards: Path, out: Path, *arguments: str, detector: str = "by_colour"
) -> dict[str, Any]:
    assert label(shards, out, *arguments, "--json", detector=detector) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def samples(shards: Path) -> list[Any]:
    source = open_source("shards", shards, SampleKeys(require=(), fields=True))
    return [source.read(index) for index in range(len(source))]


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_phrases_of_captions_are_found_in_the_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    report = run(capsys, shards, out)
    assert (report["num_images"], report["num_images_with_regions"]) == (6, 6)
    assert (report["num_phrases"], report["num_regions"]) == (12, 9)
    assert (report["regions_per_image"], report["words_per_phrase"]) == (1.5, 3.0)
    assert region_finder.calls == [["a red box", "a blue door"]] * 6
    first, second, *_ = samples(out)
    assert [(region["box"], region["phrase"]) for region in first.fields["regions"]] == [
        ([0.25, 0.25, 0.75, 0.75], "a red box"),
        ([0.05, 0.1, 0.2, 0.9], "a blue door"),
    ]
    assert first.fields["regions"][0]["score"] == pytest.approx(200 / 800 + 0.009, abs=1e-4)
    assert [region["phrase"] for region in second.fields["regions"]] == ["a blue door"]
    assert (first.key, first.captions) == ("00", ("a red box and a blue door",))
    assert first.image == picture("red", "blue")
    assert json.loads((out / "sizes.json").read_text()) == dict.fromkeys(
        ["00000.tar", "00001.tar", "00002.tar"], 2
    )
    assert json.loads((out / "report.json").read_text()) == report


def test_every_member_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards").mkdir()
    fields = {"url": "http://a", "regions": [{"box": [0, 0, 1, 1], "phrase": "old"}]}
    content = {**sample("a.b/c", "red"), "a.b/c.json": json.dumps(fields).encode(), "a.b/c.cls": b"7"}
    write_tar(tmp_path / "shards" / "0.tar", {**content, **sample("d", caption="only")})
    run(capsys, tmp_path / "shards", tmp_path / "out")
    found = members(tmp_path / "out" / "0.tar")
    assert found.keys() == {*content, "d.png", "d.txt", "d.json"}
    for name, data in content.items():
        assert found[name] == data or name.endswith(".json")
    labelled = json.loads(found["a.b/c.json"])
    assert labelled["url"] == "http://a"
    assert [region["phrase"] for region in labelled["regions"]] == ["a red box"]
    assert json.loads(found["d.json"]) == {"regions": []}


def test_a_run_that_was_stopped_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    whole = run(capsys, shards, tmp_path / "whole")
    region_finder.calls.clear()
    monkeypatch.setattr(region_finder, "fail_at", 3)
    assert label(shards, out) == 130
    assert [path.name for path in sorted(out.glob("*.tar"))] == ["00000.tar"]
    assert not (out / "sizes.json").exists()
    (out / "00001_stats.json").write_text("{}")  # written last, so without its tar it means nothing
    before = (out / "00000.tar").stat().st_mtime_ns
    monkeypatch.setattr(region_finder, "fail_at", None)
    region_finder.calls.clear()
    capsys.readouterr()
    assert run(capsys, shards, out) == whole
    assert len(region_finder.calls) == 4
    assert (out / "00000.tar").stat().st_mtime_ns == before
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    for path in (tmp_path / "whole").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_ranks_share_the_shards_and_write_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ranks: RankPool
) -> None:
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    whole = run(capsys, shards, tmp_path / "whole")
    first, second = ranks.run(2, region_finder.label_here, str(shards), str(out))
    assert first == (6, 3, 4)
    assert second == (2, 3, 2)
    assert json.loads((out / "report.json").read_text()) == whole
    for path in (tmp_path / "whole").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_complete_folder_is_left_alone_until_a_shard_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    assert label(shards, out) == 0
    counts = "6 images (6 with regions), 9 regions, 1.5 an image, 3.0 words a phrase"
    assert capsys.readouterr().out == f"{out}: {counts}; see {out}/report.html\n"
    region_finder.calls.clear()
    assert label(shards, out) == 0
    assert "; complete already, no shard was labelled\n" in capsys.readouterr().out
    assert region_finder.calls == []
    write_tar(shards / "00001.tar", {**sample("x", "red"), **sample("y"), **sample("z")})
    assert run(capsys, shards, out)["num_images"] == 7
    assert len(region_finder.calls) == 3


def test_other_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    run(capsys, shards, out)
    assert label(shards, out, "--confidence", "0.3") == 2
    assert "was begun with confidence 0.1, not 0.3" in capsys.readouterr().err
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar", "00001.tar", "00002.tar"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").touch()
    assert label(shards, tmp_path / "other") == 1
    assert "already holds something else" in capsys.readouterr().err
    assert label(shards, shards) == 2
    assert "holds the shards that are read" in capsys.readouterr().err
    assert sorted(path.name for path in shards.iterdir()) == ["00000.tar", "00001.tar", "00002.tar"]


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards").mkdir()
    content = {
        **sample("a", "red", "blue"),
        **sample("b", "red", caption="running"),
        **sample("c", "red", caption="a photo of a green tree"),
        "d.png": picture("red"),
        "e.txt": b"a red box",
        **sample("f", "red", caption="a red box"),
        "f.json": b"{",
        "g.png": picture("red")[:-30],
        "g.txt": b"a red box",
        **sample("h", "red", caption="a red box, the red boxes"),
    }
    write_tar(tmp_path / "shards" / "0.tar", content)
    report = run(capsys, tmp_path / "shards", tmp_path / "out", "--confidence", "0.2")
    assert report["num_images"] == 8
    assert report["num_images_with_regions"] == 2
    assert report["images_without_regions"] == {
        NO_PHRASE: 1,
        NOTHING_FOUND: 1,
        MISSING_CAPTION: 1,
        MISSING_IMAGE: 1,
        UNREADABLE_JSON: 1,
        CORRUPT_IMAGE: 1,
    }
    assert report["phrases_left_out"] == {GENERIC: 1}
    assert report["boxes_left_out"] == {LOW_SCORE: 1, SAME_BOX: 1}
    found = members(tmp_path / "out" / "0.tar")
    assert found["f.json"] == b"{"  # whoever reads it reports it
    assert "g.json" not in found
    regions = json.loads(found["h.json"])["regions"]
    assert [region["phrase"] for region in regions] == ["the red boxes"]  # of the longer phrase it is surer


def test_the_last_line_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards").mkdir()
    content = {**sample("a", "red", "blue"), "b.png": picture("red"), "c.png": picture("red")}
    content |= {**sample("d", "red", caption="a photo of a red box"), "d.json": b"{", "e.txt": b"cut off"}
    path = tmp_path / "shards" / "0.tar"
    write_tar(path, content)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"cut off")])
    assert label(tmp_path / "shards", tmp_path / "out", "--confidence", "0.2") == 0
    assert capsys.readouterr().out == (
        f"{tmp_path}/out: 4 images (1 with regions), 1 regions, 0.2 an image, 3.0 words a phrase; "
        "images without regions: 2 missing caption, 1 unreadable json; "
        f"boxes left out: 1 box_below_the_confidence; problems of shards: 1 truncated tar; "
        f"see {tmp_path}/out/report.html\n"
    )
    assert json.loads((tmp_path / "out" / "report.json").read_text())["shard_problems"] == {TRUNCATED_TAR: 1}


@pytest.mark.parametrize(
    ("caption", "arguments", "reason"),
    [
        ("a red box", ["--confidence", "2"], "boxes left out: 1 box_below_the_confidence: .*--confidence$"),
        ("a photo", [], "1 no phrase in the captions; phrases left out: 1 phrase_about_the_picture$"),
        ("", ["--caption-keys", "text"], "1 missing caption: name another folder and --caption-keys"),
        ("a green door", [], "in 1 images; images without regions: 1 no box found$"),
    ],
)
def test_a_run_that_finds_nothing_says_why(
    caption: str, arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar", sample("a", "red", caption=caption))
    for _ in range(2):  # also when all shards are done already
        assert label(tmp_path / "shards", tmp_path / "out", *arguments) == 2
        error = capsys.readouterr().err
        assert "no region was found in 1 images" in error
        assert re.search(reason, error.strip())
        assert error.count("\n") == 1
    assert (tmp_path / "out" / "report.html").is_file()


def test_reasons_are_summed_over_shards() -> None:
    reports = [LabelReport(shard_problems={TRUNCATED_TAR: 1}, boxes_left_out={LOW_SCORE: 2})] * 2
    found = total(reports)
    assert (found.shard_problems, found.boxes_left_out) == ({TRUNCATED_TAR: 2}, {LOW_SCORE: 4})


def test_unusable_boxes_are_counted() -> None:
    import torch

    from clipkit.regions.labelling.detectors import Detections
    from clipkit.regions.labelling.samples import keep

    nan = float("nan")
    rows = torch.tensor(
        [
            [0.1, 0.2, 0.3, 0.4],
            [0.5, 0.5, 0.5, 0.9],
            [0.6, 0.5, 0.5, 0.9],
            [0.9, 0.1, 1.5, 0.3],
            [nan, 0.0, 1.0, 1.0],
            [0.8, 0.1, 1.1, 0.3],
            [0.1, 0.2, 0.3, 0.4],
            [0.0, 0.0, 1.0, 1.0],
            [0.0, 0.0, 1.0, 1.0],
        ]
    )
    scores = torch.tensor([0.5, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7, nan, 0.1])
    left_out: dict[str, int] = {}
    found = keep(Detections(rows, scores, torch.tensor([0, 1, 1, 1, 1, 2, 1, 0, 0])), "abc", 0.1, left_out)
    assert found == [
        {"box": pytest.approx([0.8, 0.1, 1.0, 0.3]), "phrase": "c", "score": 0.8},
        {"box": pytest.approx([0.1, 0.2, 0.3, 0.4]), "phrase": "b", "score": 0.7},
    ]
    assert left_out == {
        LOW_SCORE: 2,
        SAME_BOX: 1,
        boxes.NO_AREA: 1,
        boxes.WRONG_ORDER: 1,
        boxes.OUTSIDE: 1,
        boxes.NOT_NUMBERS: 1,
    }


def test_boxes_of_a_phrase_that_are_almost_the_same_are_merged() -> None:
    import torch

    from clipkit.regions.labelling.detectors import Detections
    from clipkit.regions.labelling.samples import keep

    # IoU with the first: 0.950002, 0.944, 0.961, 0.942; of the last two with each other: 0.98.
    rows = torch.tensor(
        [
            [0.25, 0.25, 0.75, 0.75],
            [0.25, 0.25, 0.725001, 0.75],
            [0.25, 0.25, 0.722, 0.75],
            [0.26, 0.25, 0.76, 0.75],
            [0.265, 0.25, 0.765, 0.75],
        ]
    )
    scores, index = torch.tensor([0.9, 0.95, 0.5, 0.8, 0.7]), torch.tensor([0, 0, 0, 1, 1])
    left_out: dict[str, int] = {}
    found = keep(Detections(rows[:3], scores[:3], index[:3]), "ab", 0.1, left_out)
    assert [region["score"] for region in found] == [0.95]  # the third is within 0.95 of the second
    some = [0, 2, 3]
    found = keep(Detections(rows[some], scores[some], index[some]), "ab", 0.1, left_out)
    assert [region["score"] for region in found] == [0.9, 0.8, 0.5]  # the second is of another phrase
    found = keep(Detections(rows, scores, index), "ab", 0.1, left_out)
    assert [(region["phrase"], region["score"]) for region in found] == [("a", 0.95), ("b", 0.8)]
    assert left_out == {ALMOST_SAME_BOX: 2 + 3}


def test_captions_of_a_json_field_and_a_limit_of_phrases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards").mkdir()
    fields = json.dumps({"texts": ["a red box", "a blue door and a green tree"]}).encode()
    write_tar(tmp_path / "shards" / "0.tar", {"a.png": picture("red"), "a.json": fields})
    arguments = ("--caption-keys", "json.texts", "--max-phrases", "2")
    report = run(capsys, tmp_path / "shards", tmp_path / "out", *arguments)
    assert region_finder.calls == [["a red box", "a blue door"]]
    assert report["phrases_left_out"] == {"phrase_over_the_limit": 1}


def test_the_report_shows_pictures_with_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    write_tar(shards / "00003.tar", sample("q", "red", caption="<b>a red box</b>"))
    run(capsys, shards, out)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 7
    assert "00000.tar: 00: a red box and a blue door (2 regions)" in page
    assert "&lt;b&gt;a red box" in page
    assert "regions an image (CLOC: 11.6)" in page


def test_a_detector_that_breaks_its_interface_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_shards(tmp_path / "shards")
    assert label(shards, tmp_path / "out", detector="in_pixels") == 2
    error = capsys.readouterr().err
    assert "00000.tar, sample 00: region_finder:in_pixels must return xyxy fractions of the picture" in error
    assert len(error.splitlines()) == 1


def test_a_detector_that_fails_is_named_and_another_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    assert label(shards, out, detector="fails") == 1
    error = capsys.readouterr().err
    assert "--detector region_finder:fails failed at 00000.tar, sample 00: KeyError: 'boom" in error
    assert error.count("\n") == 1
    assert [path.name for path in out.iterdir()] == ["label.json"]
    run(capsys, shards, out)
    assert json.loads((out / "label.json").read_text())["detector"] == "region_finder:by_colour"


def test_a_folder_with_other_shards_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    run(capsys, shards, out)
    for name in ("00001.tar", "00002.tar"):
        (shards / name).unlink()
    assert label(shards, out) == 2
    error = capsys.readouterr().err
    assert "holds 00001.tar and 1 more, not among the shards to label: remove it there, label it too" in error
    for name in ("00001.tar", "00002.tar"):
        (out / name).unlink()
    assert run(capsys, shards, out)["num_images"] == 2
    assert sorted(path.name for path in out.iterdir()) == [
        "00000.tar",
        "00000_stats.json",
        "label.json",
        "report.html",
        "report.json",
        "sizes.json",
    ]
    # Without its last shard it is no run of other settings.
    (out / "00000.tar").unlink()
    assert run(capsys, shards, out, "--max-phrases", "3")["num_images"] == 2


def test_a_detector_that_has_changed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "my_changing_finder.py"
    module.write_text("def find(image, phrases):\n    return [[0, 0, 0.5, 1]], [0.5], [0]\n")
    command = ["regions", "label", str(shards), "--out", str(out), "--detector", "my_changing_finder:find"]
    assert main(command) == 0
    assert main(command) == 0
    module.write_text(module.read_text().replace("0.5, 1", "0.9, 1"))
    (out / "00002_stats.json").unlink()
    capsys.readouterr()
    assert main(command) == 2
    assert "my_changing_finder:find has changed since" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-phrases", "0"], "--max-phrases must be at least 1, got 0"),
        (["--confidence", "nan"], "--confidence must be a number"),
        (["--detector-size", "0"], "--detector-size must be at least 1 pixel"),
        (["--detector-size", "448"], "--detector-size is for OWLv2 and OWL-ViT"),
    ],
)
def test_mistakes_in_the_request(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_shards(tmp_path / "shards")
    assert label(shards, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shards_that_cannot_be_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_shards(tmp_path / "a"), write_shards(tmp_path / "b")
    assert label(Path(f"{first}::{second}"), tmp_path / "out") == 2
    assert "two shards have the name 00000.tar" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    assert label(tmp_path / "folder", tmp_path / "out") == 2
    assert "expected tar shards, got a folder" in capsys.readouterr().err
