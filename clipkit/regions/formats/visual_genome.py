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
from urllib.parse import urlsplit

from clipkit.data.problems import Problems
from clipkit.regions.formats.base import (
    UNKNOWN_IMAGE,
    AnnotatedImage,
    AnnotatedRegion,
    Annotations,
    load_json,
    one_line,
    refusing,
)
from clipkit.regions.formats.instances import Entry, read_captions

IMAGE_DATA = "image_data.json"


def read_visual_genome(source: Path, *, captions: Path | None = None) -> Annotations:
    """Every image of the list, with its regions.

    Args:
        source: `region_descriptions.json`, with `image_data.json` beside it, or their folder.
        captions: a captions JSON of COCO, for those images that are COCO's.

    Raises:
        ValueError: a file is not of its form.
    """
    source = source / "region_descriptions.json" if source.is_dir() else source
    listed = load_json(source.with_name(IMAGE_DATA), list)
    captions_by_id = read_captions(captions) if captions else {}
    left_out = Problems()
    described = load_json(source, list)
    with refusing(source, "region descriptions"):
        regions = {entry["id"]: _regions(entry) for entry in described}
    with refusing(source.with_name(IMAGE_DATA), "image data"):
        for number in regions.keys() - {image["image_id"] for image in listed}:
            left_out.add(UNKNOWN_IMAGE, [f"image {number}"], len(regions[number]))
        images = [
            AnnotatedImage(
                paths=_paths(image),
                width=int(image["width"]),
                height=int(image["height"]),
                captions=captions_by_id.get(image.get("coco_id"), ()),
                regions=regions.get(image["image_id"], ()),
            )
            for image in listed
        ]
    return Annotations(images=images, box_format="xywh", left_out=left_out)


def _regions(entry: Entry) -> tuple[AnnotatedRegion, ...]:
    return tuple(
        AnnotatedRegion(
            (region["x"], region["y"], region["width"], region["height"]), one_line(region["phrase"])
        )
        for region in entry["regions"]
    )


def _paths(image: Entry) -> tuple[str, ...]:
    """`VG_100K_2/1.jpg`, as the two archives unpack, or `1.jpg`."""
    url = urlsplit(image["url"]).path.split("/")
    return "/".join(url[-2:]), url[-1]
