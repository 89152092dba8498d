import json
import re
import tarfile
from collections import Counter

import pytest
from clipkit.zeroshot.runner import RunOptions, open_sources, run_model
from clipkit.zeroshot.suite import make_entry
from region_files import write_json
from region_shards import random_model
from shared_data import shared_data

from clipkit.data.samples import SampleKeys
from clipkit.data.sources import open_source
from clipkit.regions.convert import convert
from clipkit.regions.convert_settings import ConvertSettings
from clipkit.regions.formats.base import CROWD
from clipkit.regions.formats.lvis import read_lvis


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_coco(folder, records):
    """The photos, and their annotations in COCO's form."""
    with tarfile.open(shared_data("coco_mini/images_320.tar")) as tar:
        tar.extractall(folder / "images", filter="data")
    names = sorted({box["name"] for record in records for box in record["boxes"]})
    boxes = [(number, box) for number, record in enumerate(records) for box in record["boxes"]]
    captions = [(number, text) for number, record in enumerate(records) for text in record["captions"]]
    instances = {
        "images": [
            {"id": number, "file_name": record["image"], "width": record["width"], "height": record["height"]}
            for number, record in enumerate(records)
        ],
        "annotations": [
            {
                "id": index,
                "image_id": number,
                "category_id": names.index(box["name"]) + 1,
                "bbox": box["xywh"],
                "iscrowd": box["crowd"],
            }
            for index, (number, box) in enumerate(boxes)
        ],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, start=1)],
    }
    write_json(folder / "instances.json", instances)
    annotations = [{"image_id": number, "caption": caption} for number, caption in captions]
    write_json(folder / "captions.json", {"annotations": annotations})


def test_the_classes_of_lvis_stay_distinct(tmp_path):
    names = json.loads(shared_data("clip_vitb32_real/text_a_cname.json").read_text())["lvis"]
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    annotations = [{"image_id": 1, "category_id": index, "bbox": [0, 0, 1, 1]} for index in range(len(names))]
    image = {"id": 1, "width": 2, "height": 2, "coco_url": "http://images.cocodataset.org/val2017/1.jpg"}
    content = {"images": [image], "annotations": annotations, "categories": categories}
    (read,) = read_lvis(write_json(tmp_path / "lvis.json", content)).images
    phrases = [region.phrase for region in read.regions]
    assert len(set(phrases)) == len(names) == 1203
    assert not any(set(phrase) & set("_()") for phrase in phrases)
    assert sum("(" in name for name in names) > 50


def test_real_photos_become_shards_with_regions(tmp_path):
    records = json.loads(shared_data("coco_mini/annotations.json").read_text())
    write_coco(tmp_path, records)
    settings = ConvertSettings(
        format="coco", images=tmp_path / "images", captions=tmp_path / "captions.json", shard_size=100
    )
    found, is_new = convert(tmp_path / "instances.json", tmp_path / "shards", settings, show=False)
    assert is_new
    num_crowds = sum(box["crowd"] for record in records for box in record["boxes"])
    assert (found.num_shards, found.num_images, found.num_regions) == (2, 159, 1363 - num_crowds)
    assert found.images_left_out == {}
    assert found.boxes_left_out == {CROWD: num_crowds} == {CROWD: 13}

    source = open_source("coco", tmp_path / "shards", SampleKeys(fields=True))
    phrases = Counter()
    for index, record in enumerate(records):
        sample = source.read(index)
        assert sample.fields["image"] == record["image"]
        assert sample.image == (tmp_path / "images" / record["image"]).read_bytes()
        assert list(sample.captions) == [" ".join(caption.split()) for caption in record["captions"]]
        singles = [box for box in record["boxes"] if not box["crowd"]]
        for region, box in zip(sample.fields["regions"], singles, strict=True):
            x, y, width, height = box["xywh"]
            right, bottom = min(x + width, record["width"]), min(y + height, record["height"])
            sides = [record["width"], record["height"]] * 2
            pixels = [edge * side for edge, side in zip(region["box"], sides, strict=True)]
            assert pixels == pytest.approx([x, y, right, bottom], abs=1e-3)
            phrases[region["phrase"]] += 1
    assert len(phrases) == 80
    assert phrases == Counter(
        box["name"] for record in records for box in record["boxes"] if not box["crowd"]
    )


def test_photos_of_coco_are_evaluated(tmp_path):
    records = json.loads(shared_data("coco_mini/annotations.json").read_text())
    write_coco(tmp_path, records)
    settings = ConvertSettings(format="coco", images=tmp_path / "images")
    convert(tmp_path / "instances.json", tmp_path / "shards", settings, show=False)
    random_model("roi-align").save(tmp_path / "model")
    entries = [
        make_entry(
            task,
            {"task": task, "data": str(tmp_path / "shards"), "controls": ["tokens"], **more},
        )
        for task, more in (("region_recognition", {"class_names": "coco"}), ("region_retrieval", {}))
    ]
    options = RunOptions(output=tmp_path / "results", quiet=True)
    found = list(run_model(str(tmp_path / "model"), entries, open_sources(entries), options))
    for result in found:
        assert result.num_images == 159
        (lost,) = (note for note in result.notes if note.startswith("Of "))
        # The centre crop cuts some off, and no box is bad.
        assert re.fullmatch(r"Of 1,350 regions \d+ are left out: \d+ box_cut_off_by_the_crop\.", lost)
        for name, value in result.metrics.items():
            low, high = result.intervals[name]
            assert 0 <= low <= value <= high < 1
    recognised, retrieved = found
    assert "of 80 classes" in recognised.notes[0]
    assert recognised.chance["accuracy"] == 1 / 80
    assert recognised.metrics["accuracy"] < 0.3
    assert "157 images with 80 distinct phrases" in retrieved.notes[0]
    assert retrieved.metrics["r2t_recall@1"] == pytest.approx(recognised.metrics["accuracy"], abs=0.05)
