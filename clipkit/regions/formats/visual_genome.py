"""Visual Genome 1.2 (homes.cs.washington.edu/~ranjay/visualgenome): region descriptions.

```
region_descriptions.json  [{"id": 1, "regions": [{"region_id": 1382, "image_id": 1, "x": 421, "y": 57,
                            "width": 82, "height": 139, "phrase": "the clock is green"}]}]
image_data.json           [{"image_id": 1, "width": 800, "height": 600, "coco_id": null,
                            "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg"}]
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipkit.data.problems import Problems
from clipkit.regions.formats.base import (
    UNKNOWN_IMAGE,
    AnnotatedImage,
    AnnotatedRegion,
    Annotations,
    load_json,
    naming,
    one_line,
    readable_images,
    refusing,
)
from clipkit.regions.formats.instances import Entry, read_captions

DESCRIPTIONS = "region_descriptions.json"
IMAGE_DATA = "image_data.json"


def read_visual_genome(source: Path, *, captions: Path | None = None) -> Annotations:
    """Every image of the list, with its regions.

    Args:
        source: `region_descriptions.json`, with `image_data.json` beside it, or their folder.
        captions: a captions JSON of COCO, for those images that are COCO's.

    Raises:
        ValueError: a file is not of its form.
    """
    source = source / DESCRIPTIONS if source.is_dir() else source
    listed = load_json(source.with_name(IMAGE_DATA), list)
    captions_by_id = read_captions(captions) if captions else {}
    left_out, images_left_out = Problems(), Problems()
    described = load_json(source, list)
    regions: dict[Any, tuple[AnnotatedRegion, ...]] = {}
    with refusing(source, "region descriptions"):
        for number, entry in enumerate(described):
            with naming(f"entry {number}"):
                regions[entry["id"]] = _regions(entry)

    def read(image: Entry) -> AnnotatedImage:
        return AnnotatedImage(
            paths=_paths(image),
            width=int(image["width"]),
            height=int(image["height"]),
            captions=captions_by_id.get(image.get("coco_id"), ()),
            regions=regions.pop(image["image_id"], ()),
        )

    entries = ((f"{IMAGE_DATA}, entry {number}", image) for number, image in enumerate(listed))
    images = readable_images(entries, read, images_left_out)
    for image_id, found in regions.items():
        left_out.add(UNKNOWN_IMAGE, [f"image {image_id}"], len(found))
    return Annotations(images=images, box_format="xywh", left_out=left_out, images_left_out=images_left_out)


def visual_genome_files(source: Path) -> list[Path]:
    """The files that are read beside the captions."""
    source = source / DESCRIPTIONS if source.is_dir() else source
    return [source, source.with_name(IMAGE_DATA)]


def _regions(entry: Entry) -> tuple[AnnotatedRegion, ...]:
    """Numbers that are missing make a box that cannot be used, which is counted with the others."""
    return tuple(
        AnnotatedRegion(
            tuple(region.get(name) for name in ("x", "y", "width", "height")), one_line(region.get("phrase"))
        )
        for region in entry["regions"]
    )


def _paths(image: Entry) -> tuple[str, ...]:
    """`VG_100K_2/1.jpg`, as the two archives unpack, or `1.jpg`."""
    url = urlsplit(image["url"]).path.split("/")
    return "/".join(url[-2:]), url[-1]
