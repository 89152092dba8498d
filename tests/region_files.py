"""Small annotation files in the published form of each format, and the images they are about."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from broken_shards import encode, photo

SIZES = {"a": (40, 20), "b": (30, 30)}
"""Width and height in pixels."""


def write_images(folder: Path, names: dict[str, str]) -> Path:
    """Write the pictures a and b under the given paths below a folder."""
    for seed, (picture, name) in enumerate(names.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(photo(seed, SIZES[picture])))
    return folder


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def coco_instances() -> dict[str, Any]:
    """Image 9 has two boxes and a crowd, image 25 has none."""
    boxes = [
        {"id": 1, "image_id": 9, "category_id": 51, "bbox": [10.0, 5.0, 20.0, 10.0], "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 18, "bbox": [0.0, 0.0, 40.0, 20.0], "iscrowd": 0},
        {"id": 3, "image_id": 9, "category_id": 1, "bbox": [1, 1, 8, 8], "iscrowd": 1},
    ]
    for box in boxes:
        box["area"] = box["bbox"][2] * box["bbox"][3]
        box["segmentation"] = [] if not box["iscrowd"] else {"size": [20, 40], "counts": [800]}
    return {
        "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
        "licenses": [{"id": 3, "name": "Attribution-NonCommercial-NoDerivs License"}],
        "images": [
            {
                "license": 3,
                "file_name": "000000000009.jpg",
                "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg",
                "height": 20,
                "width": 40,
                "date_captured": "2013-11-19 20:40:11",
                "flickr_url": "http://farm5.staticflickr.com/4026/9.jpg",
                "id": 9,
            },
            {
                "license": 3,
                "file_name": "000000000025.jpg",
                "coco_url": "http://images.cocodataset.org/train2017/000000000025.jpg",
                "height": 30,
                "width": 30,
                "date_captured": "2013-11-19 20:40:11",
                "flickr_url": "http://farm5.staticflickr.com/4026/25.jpg",
                "id": 25,
            },
        ],
        "annotations": boxes,
        "categories": [
            {"supercategory": "person", "id": 1, "name": "person"},
            {"supercategory": "animal", "id": 18, "name": "dog"},
            {"supercategory": "kitchen", "id": 51, "name": "bowl"},
        ],
    }


def coco_captions() -> dict[str, Any]:
    return {
        "info": {},
        "images": [],
        "licenses": [],
        "annotations": [
            {"image_id": 9, "id": 48, "caption": "A dog beside\n a bowl. "},
            {"image_id": 9, "id": 51, "caption": "The dog waits."},
            {"image_id": 25, "id": 52, "caption": "Nothing to see."},
        ],
    }


def lvis() -> dict[str, Any]:
    category = {"def": "a weapon", "image_count": 3, "instance_count": 4, "frequency": "r"}
    return {
        "images": [
            {
                "id": 391895,
                "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg",
                "flickr_url": "http://farm9.staticflickr.com/391895.jpg",
                "width": 40,
                "height": 20,
                "license": 3,
                "neg_category_ids": [5],
                "not_exhaustive_category_ids": [],
            }
        ],
        "annotations": [
            {"id": 1, "image_id": 391895, "category_id": 160, "bbox": [4.0, 2.0, 8.0, 4.0], "area": 32.0},
            {"id": 2, "image_id": 391895, "category_id": 1, "bbox": [20.0, 10.0, 10.0, 5.0], "area": 50.0},
        ],
        "categories": [
            {
                "id": 1,
                "name": "aerosol_can",
                "synset": "aerosol.n.02",
                "synonyms": ["aerosol_can"],
                **category,
            },
            {"id": 160, "name": "bow_(weapon)", "synset": "bow.n.04", "synonyms": ["bow"], **category},
        ],
    }


def write_visual_genome(folder: Path) -> Path:
    """`region_descriptions.json` with `image_data.json` beside it; image 2 has no region."""
    region = {"region_id": 1382, "image_id": 1, "x": 4, "y": 2, "width": 8, "height": 4}
    second = {"region_id": 1383, "image_id": 1, "x": 0, "y": 0, "width": 40, "height": 20}
    images = [
        {"image_id": 1, "width": 40, "height": 20, "coco_id": None, "flickr_id": None},
        {"image_id": 2, "width": 30, "height": 30, "coco_id": 25, "flickr_id": 7},
    ]
    for image, part in zip(images, ("VG_100K_2", "VG_100K"), strict=True):
        image["url"] = f"https://cs.stanford.edu/people/rak248/{part}/{image['image_id']}.jpg"
    write_json(folder / "image_data.json", images)
    return write_json(
        folder / "region_descriptions.json",
        [
            {
                "id": 1,
                "regions": [
                    {**region, "phrase": "the clock is green"},
                    {**second, "phrase": "a street\nat night"},
                ],
            },
            {"id": 2, "regions": []},
        ],
    )


def write_flickr30k(folder: Path) -> Path:
    """Image 36979 with an entity of two boxes and one of one box, two captions."""
    objects = [
        f"<object><name>7</name>{_bndbox(5, 3, 9, 11)}</object>",
        f"<object><name>7</name><name>12</name>{_bndbox(21, 5, 29, 15)}</object>",
        "<object><name>9</name><scene>1</scene><nobndbox>0</nobndbox></object>",
    ]
    size = "<size><width>40</width><height>20</height><depth>3</depth></size>"
    for name in ("Annotations", "Sentences"):
        (folder / name).mkdir(parents=True)
    (folder / "Annotations" / "36979.xml").write_text(
        f"<annotation>\n<filename>36979.jpg</filename>\n{size}\n{''.join(objects)}</annotation>\n"
    )
    (folder / "Sentences" / "36979.txt").write_text(
        "[/EN#7/people A group of men] , [/EN#12/people/other one of them] tall ,"
        " paint [/EN#9/scene a wall] .\n"
        "[/EN#7/people Men] work in [/EN#0/notvisual the sun] .\n"
    )
    (folder / "train.txt").write_text("36979\n")
    (folder / "val.txt").write_text("")
    return folder


def _bndbox(x0: int, y0: int, x1: int, y1: int) -> str:
    return f"<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"


def references() -> list[dict[str, Any]]:
    """A reference of each of two splits; the first has an expression twice."""
    bowl = [
        {"tokens": ["the", "bowl"], "raw": "The bowl!", "sent_id": 0, "sent": "the bowl"},
        {"tokens": ["left"], "raw": "left", "sent_id": 1, "sent": "left"},
        {"tokens": ["the", "bowl"], "raw": "the bowl", "sent_id": 2, "sent": "the bowl"},
    ]
    dog = [{"tokens": ["big", "dog"], "raw": "big dog", "sent_id": 3, "sent": "big dog"}]
    common = {"image_id": 9, "file_name": "COCO_train2014_000000000009_1.jpg"}
    return [
        {
            **common,
            "ref_id": 0,
            "ann_id": 1,
            "category_id": 51,
            "split": "train",
            "sent_ids": [0, 1, 2],
            "sentences": bowl,
        },
        {
            **common,
            "ref_id": 1,
            "ann_id": 2,
            "category_id": 18,
            "split": "testA",
            "sent_ids": [3],
            "sentences": dog,
        },
    ]


def write_refcoco(folder: Path) -> Path:
    """`refs(unc).p` with `instances.json` beside it, whose image has its name of 2014."""
    content = coco_instances()
    content["images"][0]["file_name"] = "COCO_train2014_000000000009.jpg"
    content["images"][0]["coco_url"] = "http://mscoco.org/images/9"
    write_json(folder / "instances.json", content)
    path = folder / "refs(unc).p"
    path.write_bytes(pickle.dumps(references(), protocol=2))
    return path
