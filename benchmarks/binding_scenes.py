"""Scenes of two objects that tell apart who sees which colour belongs to which shape.

Half of the classes are such as "red circle and a cyan square", the others have the colours exchanged: "cyan
circle and a red square". Who recognises colours and shapes but not what belongs together is right in at most
half of the images. The descriptors of a class are the names of its two objects.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from clipkit.complete_folder import complete_folder
from clipkit.data.shard_writer import Sample, write_split
from clipkit.scene_captions import noun_phrase
from clipkit.scene_objects import COLOURS, SHAPES, Description
from clipkit.scene_sampling import compose
from clipkit.scene_shards import encode, write_lines

Kind = tuple[str, str]

NAME_TEMPLATE = "a {c}"


def _classes() -> Iterator[tuple[Kind, Kind]]:
    colours, half = tuple(COLOURS), len(COLOURS) // 2
    for first, second in zip(SHAPES[::2], SHAPES[1::2], strict=True):
        for colour, other in zip(colours[:half], colours[half:], strict=True):
            yield (colour, first), (other, second)
            yield (other, first), (colour, second)


CLASSES = tuple(_classes())
"""(colour, shape) of both objects, by label; each of the 64 combinations is in one class."""


def descriptors(label: int) -> list[str]:
    """Such as "a red circle", "a cyan square"."""
    return [noun_phrase(Description(colour, shape)) for colour, shape in CLASSES[label]]


def class_name(label: int) -> str:
    """Such as "red circle and a cyan square", which `NAME_TEMPLATE` makes a caption."""
    return " and ".join(descriptors(label)).removeprefix("a ")


def write_binding_scenes(out_dir: Path, *, per_class: int, image_size: int = 64, seed: int = 0) -> Path:
    """Write `per_class` images of each class in the CLIP_benchmark layout, and `descriptions.json`.

    A folder that already holds the same is left as it is.

    Raises:
        FileExistsError: `out_dir` holds something else.
    """
    described = json.dumps({"per_class": per_class, "image_size": image_size, "seed": seed}) + "\n"
    with complete_folder(out_dir, "binding.json", described) as root:
        if root is not None:
            names = [class_name(label) for label in range(len(CLASSES))]
            num_images = per_class * len(CLASSES)
            write_split(root / "test", "{}.tar", num_images, _samples(num_images, image_size, seed))
            (root / "test" / "nshards.txt").write_text("1\n")
            write_lines(root / "classnames.txt", names)
            bank = {name: descriptors(label) for label, name in enumerate(names)}
            (root / "descriptions.json").write_text(json.dumps(bank, indent=2) + "\n", encoding="utf-8")
    return out_dir


def _samples(num_images: int, image_size: int, seed: int) -> Iterator[Sample]:
    for index in range(num_images):
        label = index % len(CLASSES)
        scene = compose(random.Random(f"{seed}/binding/{index}"), f"{index:09d}", CLASSES[label])
        yield {**encode(scene, "objects", image_size), "cls": str(label).encode()}
