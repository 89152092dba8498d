"""Classes of the built-in data whose names leave something to descriptions, and descriptions of classes.

Each shape has three varieties that are told apart by colour alone: a field star is red or brown, a river star
yellow or green, a mountain star cyan or blue. Their names say the shape and not the colour. A description is
written from a single specimen, a training image, and says all that its attribute table has: one of the two
colours, and besides size, place and background, which vary within every variety. So it holds, like what a
language model writes, features that tell classes apart, others that do not, and not all that there are.

The 64 classes of `objects` are described in the same way; their names say all that tells them apart.

```
OUT/varieties.json                the settings; written last, so a folder that has it is complete
OUT/classnames.txt, zeroshot_classification_templates.txt
OUT/descriptions.json             {class: [descriptor, ...]}
OUT/{train,test}/                 CLIP_benchmark layout, one object an image: nshards.txt, sizes.json,
                                  0.tar ... with KEY.jpg, KEY.cls, KEY.json
```
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from clipkit.complete_folder import complete_folder
from clipkit.data.shard_writer import write_split
from clipkit.scene_captions import TEMPLATES, noun_phrase
from clipkit.scene_objects import CLASSES, COLOURS, SHAPES, Description, class_names
from clipkit.scene_sampling import Scene, generate
from clipkit.scene_shards import encode, write_lines

FORMAT_VERSION = 1
"""Raised whenever the same settings would give other bytes."""

DESCRIPTIONS_NAME = "descriptions.json"

_EPITHETS = ("field", "river", "mountain")
_COLOURS_PER_VARIETY = 2
_SHARD_SIZE = 1_000
_FIRST = len(CLASSES) * 100_000
"""Of the scenes of the split `objects` that are drawn here, beyond those of its test images."""


@dataclass(frozen=True)
class Variety:
    """A fine-grained class."""

    name: str
    shape: str
    colours: tuple[str, ...]


def _varieties() -> Iterator[Variety]:
    colours = tuple(COLOURS)
    for first, shape in enumerate(SHAPES):
        for number, epithet in enumerate(_EPITHETS):
            places = (first + _COLOURS_PER_VARIETY * number + n for n in range(_COLOURS_PER_VARIETY))
            own = tuple(colours[place % len(colours)] for place in places)
            yield Variety(f"{epithet} {shape}", shape, own)


VARIETIES = tuple(_varieties())
"""By label."""

_LABELS = {
    (colour, variety.shape): label for label, variety in enumerate(VARIETIES) for colour in variety.colours
}


@dataclass(frozen=True, kw_only=True)
class VarietyShards:
    """How many images to write, and which."""

    num_train: int = 20
    """Training images of each variety, for the selection of descriptions."""
    num_test: int = 40
    """Test images of each variety."""
    image_size: int = 64
    """Side of the images in pixels."""
    seed: int = 0
    """The images follow from it alone, and the descriptions from the images."""

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_test) < 1:
            raise ValueError(f"num_train and num_test must be >= 1, got {self.num_train} and {self.num_test}")


def write_varieties(out_dir: str | Path, settings: VarietyShards | None = None) -> Path:
    """Write the images of the varieties and their descriptions.

    The bytes depend on `settings` alone. A folder that already holds these settings is left as it is.

    Args:
        out_dir: a folder that does not exist yet or is empty.
        settings: defaults to `VarietyShards()`.

    Returns:
        `out_dir`.

    Raises:
        FileExistsError: `out_dir` holds something else.
    """
    settings = settings or VarietyShards()
    described = json.dumps({"format_version": FORMAT_VERSION, **asdict(settings)}, indent=2) + "\n"
    with complete_folder(Path(out_dir), "varieties.json", described) as root:
        if root is not None:
            _write_tree(root, settings)
    return Path(out_dir)


def describe_specimen(scene: Scene) -> list[str]:
    """What the attribute table of a scene with one object says, a short phrase for each attribute.

    Returns:
        Such as "a red star", "a small star", "a star at the top left", "on a white background" and "on a
        noisy background".
    """
    (obj,) = scene.objects
    said = (
        Description(colour=obj.colour, shape=obj.shape),
        Description(size=obj.size, shape=obj.shape),
        Description(cell=obj.cell, shape=obj.shape),
    )
    background = scene.background
    return [noun_phrase(what) for what in said] + [
        f"on a {word} background" for word in (background.tone, background.style)
    ]


def object_descriptions(*, seed: int = 0) -> dict[str, list[str]]:
    """Descriptions of the classes of `objects`, each written from one specimen that is no test image."""
    specimens = generate(len(CLASSES), seed=seed, split="objects", start=_FIRST)
    return dict(zip(class_names(), map(describe_specimen, specimens), strict=True))


def specimens(settings: VarietyShards) -> tuple[list[tuple[int, Scene]], list[tuple[int, Scene]]]:
    """Training and test images as (label, scene), in the order in which they were drawn.

    They are the first scenes of the split `objects`, from a place on, that show a variety, until there are
    enough of each; so all but the colours varies as it does everywhere.
    """
    num_drawn: Counter[int] = Counter()
    train: list[tuple[int, Scene]] = []
    test: list[tuple[int, Scene]] = []
    for scene in generate(2**62, seed=settings.seed, split="objects", start=_FIRST):
        label = _LABELS.get((scene.objects[0].colour, scene.objects[0].shape))
        if label is None or num_drawn[label] == settings.num_train + settings.num_test:
            continue
        (train if num_drawn[label] < settings.num_train else test).append((label, scene))
        num_drawn[label] += 1
        if len(test) == settings.num_test * len(VARIETIES):
            break
    return train, test


def _write_tree(root: Path, settings: VarietyShards) -> None:
    train, test = specimens(settings)
    for split, drawn in (("train", train), ("test", test)):
        samples = (
            {**encode(scene, "objects", settings.image_size), "cls": str(label).encode()}
            for label, scene in drawn
        )
        write_split(root / split, "{}.tar", _SHARD_SIZE, samples)
        num_shards = len(list((root / split).glob("*.tar")))
        (root / split / "nshards.txt").write_text(f"{num_shards}\n")
    # Reversed, so that the first specimen of a class remains.
    described = {VARIETIES[label].name: describe_specimen(scene) for label, scene in reversed(train)}
    ordered = {variety.name: described[variety.name] for variety in VARIETIES}
    (root / DESCRIPTIONS_NAME).write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    write_lines(root / "classnames.txt", ordered)
    write_lines(root / "zeroshot_classification_templates.txt", TEMPLATES)
