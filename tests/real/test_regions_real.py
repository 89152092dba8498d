import json
import re
import tarfile
from collections import Counter

import pytest
import torch
from clipkit.training.data.regions import check_regions
from clipkit.zeroshot.box_files import read_boxes
from clipkit.zeroshot.runner import RunOptions, open_sources, run_model
from clipkit.zeroshot.suite import make_entry
from region_files import write_json
from region_shards import random_model
from shared_data import shared_data

from clipkit.data.samples import RawSample, SampleKeys, Source
from clipkit.data.sources import open_source
from clipkit.regions import boxes
from clipkit.regions.boxes import described
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


CONVENTIONS = ("xywh", "xyxy", "cxcywh")


def as_given(records, box_format, *, in_pixels, num_bad=0):
    """Of each record the boxes in a convention with their names; the first `num_bad` of all are bad."""
    found, number = [], 0
    for record in records:
        own = [box for box in record["boxes"] if not box["crowd"]]
        size = (record["height"], record["width"])
        rows = boxes.to_fractions(torch.tensor([box["xywh"] for box in own]).reshape(-1, 4), "xywh", size)
        for row in range(min(len(rows), max(0, num_bad - number))):
            bad = [[0.9, 0.9, 1.4, 1.3], [0.6, 0.5, 0.2, 0.1], [0.3, 0.3, 0.3, 0.9], [-0.4, -0.2, 0.1, 0.1]]
            rows[row] = torch.tensor(bad[(number + row) % 4])
        number += len(rows)
        given = boxes.from_fractions(rows, box_format, size if in_pixels else None).double()
        found.append([(box["name"], row) for box, row in zip(own, given.tolist(), strict=True)])
    return found


def write_instances(folder, records, given):
    """In COCO's form and, beside it, references in RefCOCO's."""
    names = sorted({name for own in given for name, _ in own})
    rows = [(number, name, box) for number, own in enumerate(given) for name, box in own]
    images = [
        {"id": number, "file_name": record["image"], "width": record["width"], "height": record["height"]}
        for number, record in enumerate(records)
    ]
    annotations = [
        {"id": index, "image_id": number, "category_id": names.index(name), "bbox": box}
        for index, (number, name, box) in enumerate(rows)
    ]
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    references = [
        {"ref_id": index, "ann_id": index, "image_id": number, "sentences": [{"sent": name}]}
        for index, (number, name, _) in enumerate(rows)
    ]
    write_json(folder / "refs.json", references)
    return write_json(folder / "instances.json", content)


def write_genome(folder, records, given):
    described = []
    for number, own in enumerate(given):
        fields = ("x", "y", "width", "height")
        regions = [{**dict(zip(fields, box, strict=True)), "phrase": name} for name, box in own]
        described.append({"id": number, "regions": regions})
    images = [
        {
            "image_id": number,
            "width": record["width"],
            "height": record["height"],
            "url": f"http://a/b/{record['image']}",
        }
        for number, record in enumerate(records)
    ]
    write_json(folder / "image_data.json", images)
    return write_json(folder / "region_descriptions.json", described)


def write_entities(folder, records, given):
    for name in ("Annotations", "Sentences"):
        (folder / name).mkdir(parents=True)
    edges = ("xmin", "ymin", "xmax", "ymax")
    for record, own in zip(records, given, strict=True):
        stem = record["image"].removesuffix(".jpg")
        objects = "".join(
            f"<object><name>{number}</name><bndbox>"
            + "".join(f"<{edge}>{value + 1}</{edge}>" for edge, value in zip(edges, box, strict=True))
            + "</bndbox></object>"
            for number, (_, box) in enumerate(own)
        )
        size = f"<size><width>{record['width']}</width><height>{record['height']}</height></size>"
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        text = "\n".join(f"[/EN#{number}/other {name}]" for number, (name, _) in enumerate(own))
        (folder / "Sentences" / f"{stem}.txt").write_text(text)
    return folder


READERS = {
    "coco": ("xywh", write_instances),
    "lvis": ("xywh", write_instances),
    "refcoco": ("xywh", lambda *given: write_instances(*given).with_name("refs.json")),
    "visual-genome": ("xywh", write_genome),
    "flickr30k-entities": ("xyxy", write_entities),
}


@pytest.mark.parametrize("form", READERS)
def test_boxes_of_coco_in_every_convention_through_every_reader(form, tmp_path):
    """Right ones are converted, be a tenth of them bad; wrong ones are refused before anything is written."""
    records = json.loads(shared_data("coco_mini/annotations.json").read_text())
    expected, write = READERS[form]
    with tarfile.open(shared_data("coco_mini/images_320.tar")) as tar:
        tar.extractall(tmp_path / "images", filter="data")
    settings = ConvertSettings(format=form, images=tmp_path / "images")
    for box_format in CONVENTIONS:
        for in_pixels in (True, False):
            name = f"{box_format}-{in_pixels}"
            source = write(tmp_path / name, records, as_given(records, box_format, in_pixels=in_pixels))
            if box_format == expected and in_pixels:
                continue
            unit = described(box_format, in_pixels=True) if in_pixels else "fractions of the image"
            message = (
                f"boxes must be {described(expected, in_pixels=True)}, .* they look like {unit}.*; convert"
            )
            with pytest.raises(ValueError, match=message):
                convert(source, tmp_path / f"{name}-shards", settings, show=False)
            assert not (tmp_path / f"{name}-shards").exists()
    for num_bad in (0, 135):
        given = as_given(records, expected, in_pixels=True, num_bad=num_bad)
        source = write(tmp_path / f"{num_bad}", records, given)
        found, _ = convert(source, tmp_path / f"{num_bad}-shards", settings, show=False)
        # An image most of whose boxes are bad may lose its good ones too.
        assert found.num_regions == pytest.approx(1350 - num_bad, abs=35 if num_bad else 0)
        assert sum(found.boxes_left_out.values()) == 1350 - found.num_regions


class Samples(Source):
    """Samples that have regions alone."""

    def __init__(self, regions):
        super().__init__("photos")
        self.sizes_per_shard = (len(regions),)
        self._regions = regions

    def read(self, index):
        return RawSample(str(index), b"", (), fields={"regions": self._regions[index]})

    def where(self, index):
        return str(index)


def samples_of(given, per_image):
    rows = [{"box": box, "phrase": name} for own in given for name, box in own]
    return Samples([rows[start : start + per_image] for start in range(0, len(rows), per_image)])


@pytest.mark.parametrize("per_image", [1, 2, 9])
def test_training_refuses_boxes_of_coco_in_other_conventions(per_image):
    records = json.loads(shared_data("coco_mini/annotations.json").read_text())
    for box_format in CONVENTIONS:
        for in_pixels in (True, False):
            source = samples_of(as_given(records, box_format, in_pixels=in_pixels), per_image)
            if box_format == "xyxy" and not in_pixels:
                check_regions([source])
                continue
            unit = "pixels" if in_pixels else described(box_format, in_pixels=False)
            with pytest.raises(ValueError, match=f"source 'photos': .* they look like {unit}"):
                check_regions([source])
    check_regions([samples_of(as_given(records, "xyxy", in_pixels=False, num_bad=135), per_image)])


def test_classify_refuses_boxes_of_coco_in_other_conventions(tmp_path):
    records = json.loads(shared_data("coco_mini/annotations.json").read_text())
    with tarfile.open(shared_data("coco_mini/images_320.tar")) as tar:
        tar.extractall(tmp_path, filter="data")
    for box_format in CONVENTIONS:
        for in_pixels in (True, False):
            given = as_given(records, box_format, in_pixels=in_pixels)
            plain = {
                record["image"]: [box for _, box in own] for record, own in zip(records, given, strict=True)
            }
            for path, expected in (
                (write_instances(tmp_path, records, given), ("xywh", True)),
                (write_json(tmp_path / "boxes.json", plain), ("xyxy", in_pixels)),
            ):
                if (box_format, in_pixels) == expected:
                    found = read_boxes(path)
                    assert sum(map(len, found.regions.values())) == 1350
                    assert (found.in_pixels, dict(found.problems)) == (in_pixels, {})
                else:
                    with pytest.raises(
                        ValueError, match=f"{path.name}: boxes must be .* look like .*; convert"
                    ):
                        read_boxes(path)
    for box_format, in_pixels in (("xyxy", True), ("xyxy", False), ("xywh", True)):
        given = as_given(records, box_format, in_pixels=in_pixels, num_bad=135)
        plain = {record["image"]: [box for _, box in own] for record, own in zip(records, given, strict=True)}
        is_coco = box_format == "xywh"
        path = (
            write_instances(tmp_path, records, given) if is_coco else write_json(tmp_path / "b.json", plain)
        )
        assert sum(map(len, read_boxes(path).regions.values())) > 1_200


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
