import importlib.metadata
import json

import pytest
import torch
from broken_shards import (
    BROKEN_AT_INDEX,
    BROKEN_AT_READ,
    NUM_INDEXED,
    sample,
    write_broken,
    write_good,
    write_tar,
)
from region_train_jobs import BAD_COUNTS, write_regions

from clipkit.cli import main
from clipkit.commands import inspect_installation
from clipkit.data.preflight import examine, token_lengths
from clipkit.data.sources import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


def words(texts, context_length):
    """One token for each word, and one at each end."""
    rows = torch.zeros(len(texts), context_length, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        tokens = [1, *(2 for _ in text.split()), 3][:context_length]
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


def test_token_lengths():
    assert token_lengths(["one", "one two three", "w " * 300], words) == [3, 5, 302]


def test_token_lengths_of_the_real_tokenizer():
    from open_clip.tokenizer import SimpleTokenizer

    assert token_lengths(["a dog", "x " * 200], SimpleTokenizer()) == [4, 202]


def test_preflight_counts(tmp_path):
    source = open_source("broken", write_broken(tmp_path / "broken"))
    found = examine(source, tokenizer=words, context_length=4, num_samples=0)
    assert found.num_read == found.num_samples == NUM_INDEXED
    assert found.num_unusable == sum(BROKEN_AT_READ.values())
    assert found.problems.counts == {**BROKEN_AT_INDEX, **BROKEN_AT_READ}
    assert found.image_width == {"min": 24, "median": 24, "p95": 24, "max": 24}
    assert found.image_height["max"] == 20
    assert found.captions_per_image == {1: 32}
    assert found.num_captions == 32
    assert found.num_captions_cut == 22  # `caption of X` has 5 tokens, `a caption` 4
    assert sum(count for _, _, count in found.histogram) == 32
    assert found.histogram[-1][2] == 22
    assert found.num_duplicate_captions == 9  # ten times `a caption`
    assert found.num_duplicate_images == 3  # kind-rgb, cut0 and cut1 repeat good01, good00 and good01
    assert found.decode_images_per_second > 0


def test_a_sample_is_spread_over_the_data(tmp_path):
    source = open_source("good", write_good(tmp_path / "good", num_shards=2, num_samples=10))
    read = []
    source_read, source.read = source.read, lambda index: read.append(index) or source_read(index)
    assert examine(source, tokenizer=words, context_length=77, num_samples=3).num_read == 3
    assert read == [0, 9, 19]


def test_command_on_broken_shards(tmp_path, capsys):
    folder = str(write_broken(tmp_path / "broken"))
    assert main(["inspect", folder, "--sample", "0", "--ranks", "4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["problems"] == {**BROKEN_AT_INDEX, **BROKEN_AT_READ}
    assert facts["examples"]["empty file"] == ["00001.tar: zero-bytes"]
    assert facts["context_length"] == 77
    assert facts["fewer_shards_than_workers"] is True
    assert main(["inspect", folder, "--sample", "0"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "decompression bomb",
        "00001.tar: bomb-png",
        "captions over 77 tokens",
        "images/s a process",
    ):
        assert text in printed


def test_command_with_a_model_and_json_captions(tmp_path, capsys):
    members = {"a.jpg": sample("a")["a.jpg"], "a.json": b'{"alt": ["one", "two three"]}'}
    path = str(write_tar(tmp_path / "a.tar", members))
    options = ["--caption-keys", "json.alt", "--model", "tiny-vit", "--context-length", "3", "--json"]
    assert main(["inspect", path, *options]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["num_captions"], facts["num_captions_cut"]) == (2, 1)


def test_nothing_usable_fails_and_bad_usage_is_one_line(tmp_path, capsys):
    path = str(write_tar(tmp_path / "a.tar", {"a.txt": b"1"}))
    assert main(["inspect", path]) == 1
    assert "nothing usable" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "b.tar")]) == 1
    assert capsys.readouterr().err == (
        f"clipkit: nothing at '{tmp_path}/b.tar'; the nearest existing thing is '{path}'\n"
    )
    assert main(["inspect", path, "--sample", "-1"]) == 2
    assert "--sample must be at least 0, got -1" in capsys.readouterr().err


def test_installation(capsys):
    assert main(["inspect", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["torch"] == importlib.metadata.version("torch")
    assert main(["inspect"]) == 0
    assert "open_clip_torch" in capsys.readouterr().out


def test_two_faiss_wheels_are_named_as_broken(monkeypatch):
    monkeypatch.setattr(inspect_installation, "_version", lambda name: "1.0")
    (problem,) = inspect_installation.facts()["problems"]
    assert problem.startswith("faiss-cpu and faiss-gpu are both installed")
    monkeypatch.setattr(inspect_installation, "_version", lambda name: None if "gpu" in name else "1.0")
    assert inspect_installation.facts()["problems"] == []


def test_model_directory(tmp_path, capsys):
    import clipkit

    model = clipkit.create("tiny-vit")
    model.save(tmp_path / "model")
    assert main(["inspect", str(tmp_path / "model"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model_id"] == model.model_id
    assert facts["verified"] is True
    assert sum(facts["parameters"].values()) == sum(p.numel() for p in model.parameters())
    assert facts["parameters"]["image"] == sum(p.numel() for p in model.model.visual.parameters())
    assert main(["inspect", str(tmp_path / "model")]) == 0
    assert model.model_id[:40] in capsys.readouterr().out


def test_regions_are_examined_where_asked(tmp_path, capsys):
    path = str(write_regions(tmp_path / "shapes"))
    assert main(["inspect", path, "--regions", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_images_with_regions"] == 6
    assert found["regions_per_image"] == {"min": 1, "median": 1, "p95": 4.75, "max": 6}
    assert found["problems"] == {name: n for name, n in BAD_COUNTS.items() if name != "region_not_drawn"}
    assert "they look like pixels" in found["examples"]["box_in_wrong_convention"][0]
    assert main(["inspect", path, "--regions"]) == 0
    assert "1 to 6 each, median 1" in capsys.readouterr().out
    assert main(["inspect", path]) == 0
    assert "images with regions" not in capsys.readouterr().out


def _with_regions(path, boxes, caption):
    """A sample for each box."""
    members = {}
    for number, box in enumerate(boxes):
        members |= {f"{number}.jpg": sample("a")["a.jpg"]} | ({f"{number}.txt": b"x"} if caption else {})
        members[f"{number}.json"] = json.dumps({"regions": [{"box": box, "phrase": "x"}]}).encode()
    return str(write_tar(path, members))


def test_regions_of_images_without_captions_are_counted(tmp_path, capsys):
    path = _with_regions(tmp_path / "a.tar", [[0, 0, 1, 1]] * 3, caption=False)
    assert main(["inspect", path, "--regions", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_images_with_regions"], found["num_samples"], found["num_unusable"]) == (3, 3, 0)
    assert found["problems"] == {"missing caption": 3}
    assert main(["inspect", path]) == 1
    assert "missing caption" in capsys.readouterr().out


def test_regions_in_another_convention_are_named(tmp_path, capsys):
    corners = [[0.1 * x, 0.1 * y, 0.1 * x + 0.2, 0.1 * y + 0.3] for x in range(4) for y in range(4)]
    sides = [[x, y, 0.2, 0.3] for x, y, _, _ in corners]
    for boxes, message in ((corners, None), (sides, "they look like x, y, width, height in fractions")):
        path = _with_regions(tmp_path / f"{message is None}.tar", boxes, caption=True)
        assert main(["inspect", path, "--regions", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["wrong_convention"]
        assert found is None if message is None else message in found
