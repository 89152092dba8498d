"""Data sets of boxes as tar shards whose json members have regions (`clipkit regions convert`).

```
OUT/00000.tar ...   KEY.jpg (or png, webp: the bytes of the file), KEY.txt (a caption a line, where there are
                    captions), KEY.json {"image", "width", "height", "regions": [{"box", "phrase"}]}
OUT/sizes.json      {"00000.tar": 1000, ...}
OUT/report.json     what was written, and what was left out and why
OUT/convert.json    the settings and checksums of the annotations; written last, so a folder that has it is
                    complete
```

A box is x0, y0, x1, y1 as fractions of the image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch

from clipkit.checksums import sha256_of
from clipkit.complete_folder import complete_folder
from clipkit.console import Meter, progress
from clipkit.data.problems import MISSING_FILE, Problems, describe_counts
from clipkit.data.regions import EMPTY_PHRASE, WRONG_CONVENTION
from clipkit.data.shard_writer import Sample, write_split
from clipkit.images import ImageError, decode_pixels
from clipkit.json_files import read_json, write_json
from clipkit.regions import boxes
from clipkit.regions.boxes import BoxFormat
from clipkit.regions.conventions import wrong_convention
from clipkit.regions.convert_settings import Converted, ConvertSettings, Format
from clipkit.regions.formats.base import AnnotatedImage, Annotations
from clipkit.regions.formats.coco import read_coco
from clipkit.regions.formats.flickr30k_entities import flickr30k_entities_files, read_flickr30k_entities
from clipkit.regions.formats.lvis import read_lvis
from clipkit.regions.formats.refcoco import read_refcoco, refcoco_files
from clipkit.regions.formats.visual_genome import read_visual_genome, visual_genome_files

FORMAT_VERSION = 1
"""Raised whenever the same settings would give other shards."""

SETTINGS_NAME = "convert.json"
REPORT_NAME = "report.json"

WRONG_SIZE = "another size than annotated"
OTHER_FILE_FORMAT = "neither jpeg, png nor webp"


class Reader(NamedTuple):
    """How annotations of a format are read."""

    read: Callable[..., Annotations]
    files: Callable[[Path], Iterable[Path]] = lambda source: [source]
    """All files that are read of a source, captions aside."""


READERS: Mapping[Format, Reader] = {
    "coco": Reader(read_coco),
    "visual-genome": Reader(read_visual_genome, visual_genome_files),
    "flickr30k-entities": Reader(read_flickr30k_entities, flickr30k_entities_files),
    "refcoco": Reader(read_refcoco, refcoco_files),
    "lvis": Reader(read_lvis),
}
_DECIMALS = 6
"""Of the edges of a box; one that is no wider than that has no area."""
_MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"))


@dataclass
class _Tally:
    """Counts while the work goes on."""

    boxes: Problems
    images: Problems = field(default_factory=Problems)
    num_images: int = 0
    num_images_with_regions: int = 0
    num_images_without_caption: int = 0
    num_regions: int = 0

    def total(self, num_shards: int) -> Converted:
        return Converted(
            num_shards=num_shards,
            num_images=self.num_images,
            num_images_with_regions=self.num_images_with_regions,
            num_images_without_caption=self.num_images_without_caption,
            num_regions=self.num_regions,
            images_left_out=self.images.counts,
            boxes_left_out=self.boxes.counts,
            examples={**self.images.examples, **self.boxes.examples},
        )


def convert(
    source: Path, out: Path, settings: ConvertSettings, *, show: bool = True
) -> tuple[Converted, bool]:
    """Write a data set as shards; nothing is left behind at `out` unless all of it is complete.

    Images are copied, not encoded again. An image that is missing, damaged or of another size than annotated
    is left out and counted; so are boxes of crowds, boxes that `boxes.clean` refuses, and empty phrases.

    Args:
        source: the annotations, see the modules of `clipkit.regions.formats`.
        out: a folder that does not exist yet or is empty.
        settings: the format, the images and the shards.
        show: whether progress is shown.

    Returns:
        What is in `out`, and whether it was written now: a folder that already holds the result of these
        settings is left as it is.

    Raises:
        FileExistsError: `out` holds something else.
        FileNotFoundError: `source`, the folder of images or another file is missing.
        ValueError: annotations of another form; no image or no box can be used; the boxes of the data set are
            in another convention than the format has.
    """
    if not settings.images.is_dir():
        raise FileNotFoundError(f"there is no folder of images {settings.images}")
    with complete_folder(out, SETTINGS_NAME, _described(source, settings)) as folder:
        if folder is not None:
            annotations = _read(source, settings)
            _check_convention(source, annotations)
            converted = _write(folder, annotations, settings, show)
            write_json(folder / REPORT_NAME, asdict(converted))
    return Converted(**read_json(out / REPORT_NAME)), folder is not None


def _described(source: Path, settings: ConvertSettings) -> str:
    paths = {"source": source, "images": settings.images, "captions": settings.captions}
    described = {
        "format_version": FORMAT_VERSION,
        **asdict(settings),
        **{name: None if path is None else str(path.resolve()) for name, path in paths.items()},
        "sha256": _checksum(source, settings),
    }
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


def _checksum(source: Path, settings: ConvertSettings) -> str:
    """Of the annotations and captions; those that are missing are for the reader to report."""
    captions = [] if settings.captions is None else [settings.captions]
    files = [path for path in (*READERS[settings.format].files(source), *captions) if path.is_file()]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _read(source: Path, settings: ConvertSettings) -> Annotations:
    given: dict[str, Any] = {"captions": settings.captions, "split": settings.split}
    options = {name: value for name, value in given.items() if value is not None}
    return READERS[settings.format].read(source, **options)


def _check_convention(source: Path, annotations: Annotations) -> None:
    """Refuse annotations whose boxes as a whole look like something else than the format has."""
    counts = torch.tensor([len(image.regions) for image in annotations.images], dtype=torch.int64)
    sides = boxes.as_rows((image.width, image.height) * 2 for image in annotations.images)
    given = boxes.as_rows(region.box for image in annotations.images for region in image.regions)
    problem = wrong_convention(given, annotations.box_format, sides.repeat_interleave(counts, dim=0))
    if problem is not None:
        form = boxes.described(annotations.box_format, in_pixels=True)
        raise ValueError(f"{source}: {problem}; convert the file to {form}")


def _write(folder: Path, annotations: Annotations, settings: ConvertSettings, show: bool) -> Converted:
    tally = _Tally(boxes=annotations.left_out, images=annotations.images_left_out)
    with progress("convert", len(annotations.images), show=show) as meter:
        samples = _samples(annotations, settings.images, tally, meter)
        sizes = write_split(folder, "{:05d}.tar", settings.shard_size, samples)
    if not tally.num_images:
        found = describe_counts(tally.images.counts)
        num_images = sum(tally.images.counts.values())
        if not num_images:
            raise ValueError("the annotations list no image")
        raise ValueError(f"none of {num_images:,} images can be used ({found}); see --images")
    if not tally.num_regions:
        found = describe_counts(tally.boxes.counts)
        if not tally.boxes.counts:
            raise ValueError(f"the annotations have no box for any of {tally.num_images:,} images")
        first = next((f", such as {examples[0]}" for examples in tally.boxes.examples.values()), "")
        raise ValueError(f"no box can be used, left out: {found}{first}")
    return tally.total(len(sizes))


def _samples(annotations: Annotations, folder: Path, tally: _Tally, meter: Meter) -> Iterator[Sample]:
    for image in annotations.images:
        meter.advance()
        path = _find(image, folder)
        if path is None:
            tally.images.add(MISSING_FILE, image.paths[:1])
            continue
        data = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        extension = _check(data, image, name, tally.images)
        if extension is None:
            continue
        regions = _regions(image, annotations.box_format, name, tally.boxes)
        captions = [caption for caption in image.captions if caption]
        fields = {"image": name, "width": image.width, "height": image.height, "regions": regions}
        sample: Sample = {"__key__": f"{tally.num_images:09d}", extension: data}
        if captions:
            sample["txt"] = "".join(f"{caption}\n" for caption in captions).encode()
        sample["json"] = json.dumps(fields, ensure_ascii=False).encode()
        tally.num_images += 1
        tally.num_images_with_regions += bool(regions)
        tally.num_images_without_caption += not captions
        tally.num_regions += len(regions)
        yield sample


def _find(image: AnnotatedImage, folder: Path) -> Path | None:
    """The file of an image; annotations cannot name one outside the folder."""
    for path in (*image.paths, PurePosixPath(image.paths[0]).name):
        is_inside = not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
        if path and is_inside and (folder / path).is_file():
            return folder / path
    return None


def _check(data: bytes, image: AnnotatedImage, name: str, found: Problems) -> str | None:
    """The extension of the member for an image file, None where it cannot be used, which is counted."""
    try:
        _, height, width = decode_pixels(data).shape
    except ImageError as error:
        found.add(error.reason, [name])
        return None
    if (width, height) != (image.width, image.height):
        annotated = f"{image.width} x {image.height} annotated"
        found.add(WRONG_SIZE, [f"{name}: {width} x {height} pixels, {annotated}"])
        return None
    extension = next((extension for magic, extension in _MAGIC if data.startswith(magic)), None)
    if extension is None:
        found.add(OTHER_FILE_FORMAT, [name])
    return extension


def _regions(
    image: AnnotatedImage, box_format: BoxFormat, name: str, found: Problems
) -> list[dict[str, Any]]:
    """The regions as JSON data; what is left out is counted."""
    named = [region for region in image.regions if region.phrase]
    found.add(EMPTY_PHRASE, [name], len(image.regions) - len(named))
    try:
        cleaned = boxes.clean([region.box for region in named], box_format, (image.height, image.width))
    except ValueError as error:
        found.add(WRONG_CONVENTION, [f"{name}: {error}"], len(named))
        return []
    written = boxes.usable(cleaned.boxes.double().round(decimals=_DECIMALS))
    for reason, count in (*cleaned.problems.items(), *written.problems.items()):
        found.add(reason, [name], count)
    return [
        {"box": [round(edge, _DECIMALS) for edge in box], "phrase": named[row].phrase}
        for box, row in zip(written.boxes.tolist(), cleaned.kept[written.kept].tolist(), strict=True)
    ]
