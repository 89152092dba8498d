"""Each published format, read from files in its form."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import region_files
from region_files import write_json

from clipkit.regions.formats.base import (
    CROWD,
    NO_BOX,
    UNKNOWN_CATEGORY,
    UNKNOWN_IMAGE,
    UNREADABLE_IMAGE,
    AnnotatedRegion,
)
from clipkit.regions.formats.coco import read_coco
from clipkit.regions.formats.flickr30k_entities import WITHOUT_BOX, read_flickr30k_entities
from clipkit.regions.formats.lvis import read_lvis
from clipkit.regions.formats.refcoco import UNKNOWN_BOX, load_references, read_refcoco
from clipkit.regions.formats.visual_genome import read_visual_genome


def test_coco(tmp_path: Path) -> None:
    source = write_json(tmp_path / "instances_train2017.json", region_files.coco_instances())
    captions = write_json(tmp_path / "captions_train2017.json", region_files.coco_captions())
    found = read_coco(source, captions=captions)
    assert found.box_format == "xywh"
    first, second = found.images
    assert first.paths == ("000000000009.jpg", "train2017/000000000009.jpg")
    assert (first.width, first.height) == (40, 20)
    assert first.captions == ("A dog beside a bowl.", "The dog waits.")
    assert [(list(region.box), region.phrase) for region in first.regions] == [
        ([10.0, 5.0, 20.0, 10.0], "bowl"),
        ([0.0, 0.0, 40.0, 20.0], "dog"),
    ]
    assert second.regions == ()
    assert second.captions == ("Nothing to see.",)
    assert found.left_out.counts == {CROWD: 1}


def test_coco_counts_boxes_without_an_image_or_a_category(tmp_path: Path) -> None:
    content = region_files.coco_instances()
    content["annotations"][0]["image_id"] = 1000
    content["annotations"][1]["category_id"] = 1000
    found = read_coco(write_json(tmp_path / "instances.json", content))
    assert found.left_out.counts == {CROWD: 1, UNKNOWN_IMAGE: 1, UNKNOWN_CATEGORY: 1}
    assert found.left_out.examples[UNKNOWN_IMAGE] == ["annotation 1"]
    assert all(image.regions == () and image.captions == () for image in found.images)


def _spoil(content: dict[str, Any]) -> None:
    """Break the images and boxes of COCO, but for the boxes 1 and 2 of image 9, in every way."""
    image, box = content["images"][0], content["annotations"][0]
    content["images"] += [
        {**image, "id": 101, "file_name": None, "coco_url": None},
        {**image, "id": 102, "file_name": 7},
        {**image, "id": 103, "width": None},
        {**image, "id": 104, "height": float("inf")},
        {"file_name": "a.jpg", "width": 40, "height": 20},
        "a.jpg",
    ]
    content["annotations"] += [
        {name: value for name, value in box.items() if name not in ("bbox", "id")},
        None,
        {**box, "id": 5, "category_id": [51]},
        {**box, "id": 6, "image_id": {}},
        {"id": 7, "bbox": [1, 1, 2, 2], "category_id": 1},
        {"id": 8, "bbox": [1, 1, 2, 2], "image_id": 9},
    ]


def test_coco_counts_broken_entries_by_name(tmp_path: Path) -> None:
    content = region_files.coco_instances()
    _spoil(content)
    found = read_coco(write_json(tmp_path / "instances.json", content))
    assert [len(image.regions) for image in found.images] == [2, 0]
    assert found.left_out.counts == {CROWD: 1, NO_BOX: 2, UNKNOWN_CATEGORY: 2, UNKNOWN_IMAGE: 2}
    assert found.left_out.examples[NO_BOX] == ["annotations[3]", "annotations[4]"]
    assert found.left_out.examples[UNKNOWN_CATEGORY] == ["annotation 5", "annotation 8"]
    assert found.images_left_out.counts == {UNREADABLE_IMAGE: 6}
    assert found.images_left_out.examples[UNREADABLE_IMAGE] == [
        "images[2]: it lacks 'file_name'",
        "images[3]: file_name and coco_url must be texts",
        "images[4]: int() argument must be a string, a bytes-like object or a real number, not 'NoneType'",
    ]


def test_a_name_of_null_leaves_the_address(tmp_path: Path) -> None:
    content = region_files.coco_instances()
    content["images"][0]["file_name"] = None
    found = read_coco(write_json(tmp_path / "instances.json", content))
    assert found.images[0].paths == ("train2017/000000000009.jpg", "000000000009.jpg")


def test_refcoco_counts_broken_entries_of_instances(tmp_path: Path) -> None:
    source = region_files.write_refcoco(tmp_path)
    content = region_files.coco_instances()
    _spoil(content)
    del content["annotations"][0]["bbox"]
    write_json(tmp_path / "instances.json", content)
    found = read_refcoco(source)
    assert found.left_out.counts == {NO_BOX: 3}
    assert [region.phrase for region in found.images[0].regions] == ["big dog"]
    del content["images"][0]["width"]
    write_json(tmp_path / "instances.json", content)
    assert read_refcoco(source).images_left_out.examples == {UNREADABLE_IMAGE: ["image 9: it lacks 'width'"]}
    del content["images"][0]
    write_json(tmp_path / "instances.json", content)
    assert read_refcoco(source).left_out.counts == {UNKNOWN_IMAGE: 4}


def test_visual_genome_counts_broken_entries(tmp_path: Path) -> None:
    source = region_files.write_visual_genome(tmp_path)
    described = json.loads(source.read_text())
    del described[0]["regions"][0]["width"], described[0]["regions"][1]["phrase"]
    write_json(source, [*described, {"id": 3, "regions": [{}]}])
    listed = json.loads((tmp_path / "image_data.json").read_text())
    write_json(tmp_path / "image_data.json", [*listed, {"image_id": 4, "width": 1, "height": 1}])
    found = read_visual_genome(source)
    assert found.images[0].regions == (
        AnnotatedRegion((4, 2, None, 4), "the clock is green"),
        AnnotatedRegion((0, 0, 40, 20), ""),
    )
    assert found.left_out.counts == {UNKNOWN_IMAGE: 1}
    assert found.images_left_out.examples == {UNREADABLE_IMAGE: ["image_data.json, entry 2: it lacks 'url'"]}
    write_json(source, [*described, {"id": 3}])
    with pytest.raises(ValueError, match=r"no region descriptions: entry 2: it lacks 'regions'"):
        read_visual_genome(source)


def test_lvis(tmp_path: Path) -> None:
    found = read_lvis(write_json(tmp_path / "lvis_v1_train.json", region_files.lvis()))
    (image,) = found.images
    assert image.paths == ("train2017/000000391895.jpg", "000000391895.jpg")
    assert image.regions == (
        AnnotatedRegion([4.0, 2.0, 8.0, 4.0], "bow weapon"),
        AnnotatedRegion([20.0, 10.0, 10.0, 5.0], "aerosol can"),
    )


def test_visual_genome(tmp_path: Path) -> None:
    source = region_files.write_visual_genome(tmp_path)
    captions = write_json(tmp_path / "captions.json", region_files.coco_captions())
    found = read_visual_genome(source, captions=captions)
    first, second = found.images
    assert found.box_format == "xywh"
    assert first.paths == ("VG_100K_2/1.jpg", "1.jpg")
    assert first.captions == ()
    assert first.regions == (
        AnnotatedRegion((4, 2, 8, 4), "the clock is green"),
        AnnotatedRegion((0, 0, 40, 20), "a street at night"),
    )
    assert second.captions == ("Nothing to see.",)
    assert second.regions == ()
    assert read_visual_genome(tmp_path, captions=captions) == found


def test_flickr30k_entities(tmp_path: Path) -> None:
    source = region_files.write_flickr30k(tmp_path / "entities")
    found = read_flickr30k_entities(source, split="train")
    (image,) = found.images
    assert found.box_format == "xyxy"
    assert (image.paths[0], image.width, image.height) == ("36979.jpg", 40, 20)
    assert image.captions == (
        "A group of men , one of them tall , paint a wall .",
        "Men work in the sun .",
    )
    both = (4.0, 2.0, 28.0, 14.0)  # from 1: what encloses 5, 3, 9, 11 and 21, 5, 29, 15
    assert image.regions == (
        AnnotatedRegion(both, "A group of men"),
        AnnotatedRegion((20.0, 4.0, 28.0, 14.0), "one of them"),
        AnnotatedRegion(both, "Men"),
    )
    assert found.left_out.counts == {WITHOUT_BOX: 2}
    assert read_flickr30k_entities(source) == found
    assert read_flickr30k_entities(source, split="val").images == []
    with pytest.raises(ValueError, match=r"split 'dev' needs the list of its images .*dev\.txt"):
        read_flickr30k_entities(source, split="dev")


def test_refcoco(tmp_path: Path) -> None:
    source = region_files.write_refcoco(tmp_path)
    captions = write_json(tmp_path / "captions.json", region_files.coco_captions())
    found = read_refcoco(source, captions=captions)
    (image,) = found.images
    assert image.paths[:2] == (
        "COCO_train2014_000000000009.jpg",
        "train2014/COCO_train2014_000000000009.jpg",
    )
    assert len(image.captions) == 2
    bowl, dog = [10.0, 5.0, 20.0, 10.0], [0.0, 0.0, 40.0, 20.0]
    expected = [(bowl, "the bowl"), (bowl, "left"), (dog, "big dog")]
    assert [(region.box, region.phrase) for region in image.regions] == expected
    (train,) = read_refcoco(source, split="train").images
    assert [(region.box, region.phrase) for region in train.regions] == expected[:2]
    with pytest.raises(ValueError, match="no reference in the split 'testB'"):
        read_refcoco(source, split="testB")


def test_refcoco_as_json_counts_boxes_that_are_crowds_or_missing(tmp_path: Path) -> None:
    region_files.write_refcoco(tmp_path)
    references = region_files.references()
    references[0]["ann_id"], references[1]["ann_id"] = 3, 1000
    found = read_refcoco(write_json(tmp_path / "refs.json", references))
    assert found.images[0].regions == ()
    assert found.left_out.counts == {CROWD: 3, UNKNOWN_BOX: 1}
    assert found.left_out.examples == {CROWD: ["ref_id 0"], UNKNOWN_BOX: ["ref_id 1"]}


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """As the published files are: protocol 0, byte strings, some of them not UTF-8."""
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9 \\xc3\\xa9'\np3\nsS'n'\nI7\nsa.")
    assert load_references(path) == [{"sent": "caf\ufffd \u00e9", "n": 7}]


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch %s'\ntR.",
        b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94)R.",
        pickle.dumps([Path("a")]),
        pickle.dumps([{"a": 1}])[:-4],
        b"",
    ],
)
def test_a_pickle_of_anything_else_is_refused_and_runs_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    made = tmp_path / "made"
    path.write_bytes(content.replace(b"%s", str(made).encode()))
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p is no pickle of plain data"):
        load_references(path)
    assert not made.exists()


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    no_name = region_files.coco_instances()
    del no_name["categories"][1]["name"]
    with pytest.raises(ValueError, match=r"a\.json is no instances file: categories\[1\]: it lacks 'name'"):
        read_coco(write_json(tmp_path / "a.json", no_name))
    for content, message in (
        ({"images": [], "annotations": []}, "it lacks 'categories'"),
        ({"images": {}, "annotations": [], "categories": []}, "images must be a list, got dict"),
        ({"images": [], "annotations": None, "categories": []}, "annotations must be a list, got NoneType"),
    ):
        with pytest.raises(ValueError, match=f"a.json is no instances file: {message}"):
            read_coco(write_json(tmp_path / "a.json", content))
    with pytest.raises(ValueError, match=r"b\.json must hold an object, got a JSON list"):
        read_coco(write_json(tmp_path / "b.json", []))
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match=r"c\.json does not parse as JSON"):
        read_coco(tmp_path / "c.json")
    good = write_json(tmp_path / "d.json", region_files.coco_instances())
    captions = write_json(tmp_path / "e.json", {"annotations": [{"image_id": 9}]})
    with pytest.raises(ValueError, match=r"no captions file: annotations\[0\]: it lacks 'caption'"):
        read_coco(good, captions=captions)
    references = region_files.references()
    del references[1]["sentences"][0]["sent"]
    region_files.write_refcoco(tmp_path)
    with pytest.raises(ValueError, match=r"f\.json is no list of references: entry 1: it lacks 'sent'"):
        read_refcoco(write_json(tmp_path / "f.json", references))
    source = region_files.write_flickr30k(tmp_path / "entities")
    (source / "Annotations" / "36979.xml").write_text(
        "<annotation><size><width>3</width></size></annotation>"
    )
    with pytest.raises(ValueError, match=r"36979\.xml is no annotation .*: it has no size/height"):
        read_flickr30k_entities(source)
    (source / "Annotations" / "36979.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"36979\.xml is no annotation .*: it does not parse as XML"):
        read_flickr30k_entities(source)
    with pytest.raises(FileNotFoundError, match="it has no folder Annotations"):
        read_flickr30k_entities(tmp_path)
