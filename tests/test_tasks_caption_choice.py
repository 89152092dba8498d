from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from clipkit.zeroshot.tasks.caption_choice import CaptionChoice
from clipkit.zeroshot.tasks.choice_files import FORMATS
from made_features import features_of, random_unit
from PIL import Image

from clipkit.images import decode_image

E1, E2, E3 = torch.eye(3)
TEXTS = {"yes": E1, "no": E2, "maybe": torch.tensor([0.6, 0.8, 0])}

SUGARCREPE = {"0": {"filename": "a.jpg", "caption": "yes", "negative_caption": "no"}}
BOX = {"bbox_x": 1, "bbox_y": 2, "bbox_w": 3, "bbox_h": 4}
ARO = [{"image_path": "a.jpg", **BOX, "true_caption": "yes", "false_caption": "no", "relation_name": "on"}]
ORDER = [{"image": "a.jpg", "caption_options": ["yes", "no", "maybe"]}]
VL_CHECKLIST = [["a.jpg", {"POS": ["yes", "other"], "NEG": ["no", "yes"]}]]
OWN = {"image": "a.jpg", "caption": "yes", "negatives": ["no", "maybe"], "kind": "swap"}


def write(path: Path, content: Any, *, image: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in content) if lines else json.dumps(content))
    if image:
        Image.new("RGB", (8, 8), "red").save(path.parent / "a.jpg")
    return path


@pytest.mark.parametrize(
    ("name", "content", "kind", "chance"),
    [
        ("sugarcrepe", SUGARCREPE, "file", 1 / 2),
        ("aro", ARO, "on", 1 / 2),
        ("aro_order", ORDER, "file", 1 / 3),
        ("vl_checklist", VL_CHECKLIST, "file", 1 / 2),
        ("jsonl", [OWN], "swap", 1 / 3),
    ],
)
def test_every_format_is_recognised_and_read(
    tmp_path: Path, name: str, content: Any, kind: str, chance: float
) -> None:
    path = write(tmp_path / f"file.{'jsonl' if name == 'jsonl' else 'json'}", content)
    for choice in ("auto", name):
        task = CaptionChoice(data=str(path), format=choice)
        (sample,) = [task.sources()["images"].read(i) for i in range(len(task.sources()["images"]))]
        right = task.measure(features_of({sample.key: E1}, TEXTS))
        assert right.metrics == {"acc": 1.0, "mean_per_kind": 1.0}
        assert right.chance == pytest.approx({"acc": chance, "mean_per_kind": chance})
        assert right.tables[0].rows[0][:3] == (kind, "1", "100.0 %")
        assert task.measure(features_of({sample.key: E2}, TEXTS)).metrics["acc"] == 0.0
        tie = {"yes": E1, "no": E1, "maybe": E3}
        assert task.measure(features_of({sample.key: E1}, tie)).metrics["acc"] == 0.0
    for other in set(FORMATS) - {name, "jsonl"} if name != "jsonl" else ():
        with pytest.raises(ValueError, match=f"is of the format {name}, .* of {other}"):
            CaptionChoice(data=str(path), format=other).sources()


def test_every_negative_counts(tmp_path: Path) -> None:
    task = CaptionChoice(data=str(write(tmp_path / "file.jsonl", [OWN])))
    key = str(tmp_path / "a.jpg")
    between = torch.tensor([0.9, 0.5, 0])  # 0.9 with "yes", 0.5 with "no", 0.94 with "maybe"
    assert task.measure(features_of({key: between}, TEXTS)).metrics["acc"] == 0.0


def test_aro_cuts_the_box_out(tmp_path: Path) -> None:
    path = write(tmp_path / "visual_genome_relation.json", ARO, image=False)
    image = Image.new("RGB", (8, 8), "red")
    image.paste("blue", (1, 2, 4, 6))
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "a.jpg", quality=100, subsampling=0)
    sample = CaptionChoice(data=str(path)).sources()["images"].read(0)
    cut = decode_image(sample.image)
    assert cut.size == (3, 4)
    assert cut.tobytes() == Image.open(tmp_path / "images" / "a.jpg").crop((1, 2, 4, 6)).tobytes()
    assert sample.key.endswith("a.jpg#1,2,3,4")


def test_kinds_of_a_folder_and_their_mean(tmp_path: Path) -> None:
    entries = {str(n): {**SUGARCREPE["0"], "caption": f"c{n}"} for n in range(4)}
    write(tmp_path / "swap_att.json", entries)
    write(tmp_path / "sub" / "add_obj.json", SUGARCREPE, image=False)
    key = str(tmp_path / "a.jpg")
    texts = {**TEXTS, "c0": E1, "c1": E1, "c2": E1, "c3": E3}
    task = CaptionChoice(data=str(tmp_path), images=tmp_path)
    assert len(task.sources()["images"]) == 1
    found = task.measure(features_of({key: E1}, texts))
    assert found.outcomes["acc"].tolist() == [1, 1, 1, 1, 0]  # sub/add_obj comes first
    assert found.metrics == pytest.approx({"acc": 0.8, "mean_per_kind": (1 + 0.75) / 2})
    assert float(found.outcomes["mean_per_kind"].mean()) == pytest.approx(0.875)
    assert found.tables[0].rows == (
        ("sub/add_obj", "1", "100.0 %", "20.7 to 100.0 %"),
        ("swap_att", "4", "75.0 %", "30.1 to 95.4 %"),
    )
    assert found.notes == ("5 items are about 1 images; intervals take items for independent.",)
    few = CaptionChoice(data=str(tmp_path), images=tmp_path, min_items_per_kind=2)
    fewer = few.measure(features_of({key: E1}, texts))
    assert fewer.metrics == pytest.approx({"acc": 0.8, "mean_per_kind": 0.75})
    assert "1 kinds with fewer than 2 items are left out of mean_per_kind." in fewer.notes
    none = CaptionChoice(data=str(tmp_path), images=tmp_path, min_items_per_kind=9)
    assert none.measure(features_of({key: E1}, texts)).metrics == pytest.approx({"acc": 0.8})


def test_both_files_of_aro_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "visual_genome_relation.json", ARO)
    attribution = {name: value for name, value in ARO[0].items() if name != "relation_name"}
    write(tmp_path / "visual_genome_attribution.json", [{**attribution, "attributes": ["old", "red"]}])
    task = CaptionChoice(data=str(tmp_path))
    sample = task.sources()["images"].read(0)
    found = task.measure(features_of({sample.key: E1}, TEXTS))
    kinds = [row[0] for row in found.tables[0].rows]
    assert kinds == ["visual_genome_attribution/old_red", "visual_genome_relation/on"]


def test_vl_checklist_looks_into_the_folders_of_its_collections(tmp_path: Path) -> None:
    write(tmp_path / "hake_action.json", VL_CHECKLIST, image=False)
    (tmp_path / "images" / "hake").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "hake" / "a.jpg")
    source = CaptionChoice(data=str(tmp_path / "hake_action.json")).sources()["images"]
    assert source.read(0).key == str(tmp_path / "images" / "hake" / "a.jpg")


def test_a_negative_that_equals_its_caption_is_reported(tmp_path: Path) -> None:
    entries = {"0": SUGARCREPE["0"], "1": {**SUGARCREPE["0"], "negative_caption": "yes"}}
    path = write(tmp_path / "file.json", entries)
    found = CaptionChoice(data=str(path)).measure(features_of({str(tmp_path / "a.jpg"): E1}, TEXTS))
    assert found.metrics["acc"] == 0.5
    assert found.notes[0] == (
        "1 items have a negative that equals their caption; they are wrong, and acc cannot exceed 0.5000."
    )


def test_missing_images(tmp_path: Path) -> None:
    entries = {"0": SUGARCREPE["0"], "1": {**SUGARCREPE["0"], "filename": "b.jpg"}}
    path = write(tmp_path / "file.json", entries)
    task = CaptionChoice(data=str(path))
    assert len(task.sources()["images"]) == 2
    found = task.measure(features_of({str(tmp_path / "a.jpg"): E1}, TEXTS))
    assert found.outcomes["acc"].tolist() == [1]
    assert found.notes == ("1 of 2 items are left out: an image of theirs cannot be read.",)
    with pytest.raises(ValueError, match="none of the 2 items has images that can be read"):
        task.measure(features_of({"c.jpg": E1}, TEXTS))
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of the 2 images is in .*, such as .*a\.jpg"):
        CaptionChoice(data=str(path)).sources()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.json", {"0": {**SUGARCREPE["0"], "caption": 1}}, "entry '0' needs a text 'caption', got 1"),
        ("f.json", {**SUGARCREPE, "1": []}, "entry '1' must be a JSON object"),
        ("f.json", [{**ARO[0], "bbox_w": "3"}], "entry 1 needs the numbers bbox_x"),
        ("f.json", [{**ORDER[0], "caption_options": ["yes"]}], "needs a true caption and false ones"),
        ("f.json", [*VL_CHECKLIST, ["a.jpg"]], r"entry 2 must be \[path"),
        ("f.json", [["a.jpg", {"POS": ["yes"], "NEG": []}]], "needs a list of texts 'NEG'"),
        ("f.jsonl", [{**OWN, "negatives": "no"}], "line 1 needs a list of texts 'negatives', got 'no'"),
        ("f.jsonl", [{**OWN, "kind": ""}], "line 1 needs a text 'kind'"),
        ("f.json", [{"image": "a.jpg", "caption": ["yes"]}], "lists captions without negatives"),
        ("f.json", {}, "is in none of the formats sugarcrepe, aro"),
        ("f.json", [1], "its first entry is 1"),
        ("f.json", "text", "is in none of the formats"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionChoice(data=str(write(tmp_path / name, content))).sources()


def test_places_without_items(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        CaptionChoice(data=str(tmp_path / "nothing.json")).sources()
    with pytest.raises(ValueError, match=r"has no \.json or \.jsonl file"):
        CaptionChoice(data=str(tmp_path)).sources()
    (tmp_path / "f.json").write_text("{")
    with pytest.raises(ValueError, match="does not parse as JSON"):
        CaptionChoice(data=str(tmp_path)).sources()
    write(tmp_path / "f.json", SUGARCREPE)
    write(tmp_path / "g.json", ORDER)
    with pytest.raises(ValueError, match="keep them in two folders"):
        CaptionChoice(data=str(tmp_path)).sources()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"format must be one of auto, sugarcrepe, .*, scenes, got 'csv'"):
        CaptionChoice(data="x", format="csv")
    with pytest.raises(ValueError, match="min_items_per_kind must be >= 1, got 0"):
        CaptionChoice(data="x", min_items_per_kind=0)


FOILS = [
    {
        "foils": [
            {"kind": "size", "caption": "yes", "foil": "no"},
            {"kind": "binding", "caption": "no", "foil": "yes"},
        ]
    },
    {},
    {"foils": [{"kind": "size", "caption": "maybe", "foil": "no"}]},
]


def test_foils_of_shards() -> None:
    task = CaptionChoice(data="scenes")
    features = features_of({"x": E1, "y": E1, "z": E2}, TEXTS, fields=FOILS)
    found = task.measure(features)
    assert found.outcomes["acc"].tolist() == [1, 0, 0]
    assert found.metrics["mean_per_kind"] == pytest.approx(0.25)
    assert [row[:3] for row in found.tables[0].rows] == [("binding", "1", "0.0 %"), ("size", "2", "50.0 %")]
    with pytest.raises(ValueError, match="no sample of made has foils"):
        task.measure(features_of({"x": E1}, TEXTS))
    with pytest.raises(ValueError, match="x, foil 0 needs a text 'foil'"):
        task.measure(features_of({"x": E1}, TEXTS, fields=[{"foils": [{"kind": "a", "caption": "b"}]}]))


def test_the_built_in_scenes(tmp_path: Path) -> None:
    from clipkit.scenes import SceneShards, write_shards

    folder = write_shards(
        tmp_path / "scenes", SceneShards(num_train=1, num_train_objects=1, num_val=12, num_objects=64)
    )
    task = CaptionChoice(data=str(folder / "val"))
    source = task.sources()["images"]
    samples = [source.read(index) for index in range(len(source))]
    foils = [foil for sample in samples for foil in sample.fields["foils"]]
    words = dict.fromkeys(foil[name] for foil in foils for name in ("caption", "foil"))
    vectors = dict(zip(words, random_unit(len(words), 64), strict=True))
    images = {sample.key: random_unit(1, 64, seed=n)[0] for n, sample in enumerate(samples)}
    found = task.measure(features_of(images, vectors, fields=[sample.fields for sample in samples]))
    owners = [sample.key for sample in samples for _ in sample.fields["foils"]]
    expected = [
        float(images[key] @ vectors[foil["caption"]] > images[key] @ vectors[foil["foil"]])
        for key, foil in zip(owners, foils, strict=True)
    ]
    assert len(expected) > 20
    assert 0 < sum(expected) < len(expected)
    assert found.outcomes["acc"].tolist() == expected
    assert found.chance["acc"] == 0.5
