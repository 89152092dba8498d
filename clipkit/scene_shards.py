"""Write scenes as the tar shards that `clipkit train` and `clipkit evaluate` read.

```
OUT/scenes.json                   the settings; written last, so a folder that has it is complete
OUT/{train,train_objects,val}/    img2dataset layout: 00000.tar ... with KEY.jpg, KEY.txt (a caption a line),
                                  KEY.json, and sizes.json {"00000.tar": 1000, ...}
OUT/objects/                      CLIP_benchmark layout, one object an image, every colour-shape class:
                                  classnames.txt, zeroshot_classification_templates.txt, unseen_classnames.txt
OUT/objects/test/                 nshards.txt, sizes.json, 0.tar ... with KEY.jpg, KEY.cls, KEY.json
```

KEY.json holds `regions` (box xyxy in [0, 1] and phrase), `objects` (the attribute table, in the order of the
regions), `background`, `captions` with, caption by caption, their `details` ("names", "partial", "full") and
`claims`, and in val and objects the `foils`.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipkit.complete_folder import complete_folder
from clipkit.data.shard_writer import Sample, write_split
from clipkit.scene_captions import TEMPLATES, Claim
from clipkit.scene_objects import class_names, unseen_class_names
from clipkit.scene_sampling import Scene, generate

FORMAT_VERSION = 1
"""Raised whenever the same settings would give other bytes."""

_SCENES_PER_JOB = 250
_JPEG = {"quality": 95, "subsampling": 0}


@dataclass(frozen=True, kw_only=True)
class SceneShards:
    """How many scenes to write, and which."""

    num_train: int = 16_000
    """Scenes to train on; they never show a combination of `UNSEEN_CLASSES`."""
    num_train_objects: int = 10_000
    """Images of one object to train on, captioned by name; the trained combinations in turn."""
    num_val: int = 1_000
    """Held-out scenes over all combinations."""
    num_objects: int = 1_280
    """Held-out images of one object, equally many of every class as far as the number divides."""
    image_size: int = 64
    """Side of the images in pixels."""
    seed: int = 0
    """The scenes follow from it alone."""
    shard_size: int = 1_000
    """Samples in a tar file; the last may hold fewer."""

    def __post_init__(self) -> None:
        if self.image_size < 32:
            raise ValueError(f"image_size must be >= 32 for shapes to be recognisable, got {self.image_size}")
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be >= 1, got {self.shard_size}")
        if min(self.numbers.values()) < 1:
            raise ValueError("num_train, num_train_objects, num_val and num_objects must each be >= 1")

    @property
    def numbers(self) -> dict[str, int]:
        """Scenes of each split."""
        return {
            "train": self.num_train,
            "train_objects": self.num_train_objects,
            "val": self.num_val,
            "objects": self.num_objects,
        }

    @property
    def num_scenes(self) -> int:
        """Scenes of all splits."""
        return sum(self.numbers.values())


def write_shards(
    out_dir: str | Path,
    settings: SceneShards | None = None,
    *,
    num_processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the three splits; nothing is left behind under `out_dir` unless all of it is complete.

    The bytes depend on `settings` alone. A folder that already holds these settings is left as it is.

    Args:
        out_dir: a folder that does not exist yet or is empty.
        settings: defaults to `SceneShards()`.
        num_processes: drawing processes. They are spawned, so for more than one the calling script needs the
            usual `if __name__ == "__main__":`.
        progress: called with (scenes done, scenes in all) as the work goes on.

    Returns:
        `out_dir`.

    Raises:
        FileExistsError: `out_dir` holds something else.
    """
    out_dir, settings = Path(out_dir), settings or SceneShards()
    described = json.dumps({"format_version": FORMAT_VERSION, **asdict(settings)}, indent=2) + "\n"
    with complete_folder(out_dir, "scenes.json", described) as root:
        if root is not None:
            _write_tree(root, settings, num_processes, progress)
    return out_dir


def _write_tree(
    root: Path, settings: SceneShards, num_processes: int, progress: Callable[[int, int], None] | None
) -> None:
    done, total = 0, settings.num_scenes

    def counted(samples: Iterable[list[Sample]]) -> Iterator[Sample]:
        nonlocal done
        for chunk in samples:
            yield from chunk
            done += len(chunk)
            if progress is not None:
                progress(done, total)

    with contextlib.ExitStack() as stack:
        run: Callable[[Any, Any], Iterable[list[Sample]]] = map
        if num_processes > 1:
            run = stack.enter_context(multiprocessing.get_context("spawn").Pool(num_processes)).imap
        for split, number in settings.numbers.items():
            starts = range(0, number, _SCENES_PER_JOB)
            jobs = [(settings, split, start, min(_SCENES_PER_JOB, number - start)) for start in starts]
            folder = root / "objects" / "test" if split == "objects" else root / split
            pattern = "{}.tar" if split == "objects" else "{:05d}.tar"
            write_split(folder, pattern, settings.shard_size, counted(run(_encode_job, jobs)))
    objects = root / "objects"
    (objects / "test" / "nshards.txt").write_text(f"{len(list((objects / 'test').glob('*.tar')))}\n")
    write_lines(objects / "classnames.txt", class_names())
    write_lines(objects / "unseen_classnames.txt", unseen_class_names())
    write_lines(objects / "zeroshot_classification_templates.txt", TEMPLATES)


def _encode_job(job: tuple[SceneShards, str, int, int]) -> list[Sample]:
    settings, split, start, number = job
    scenes = generate(number, seed=settings.seed, split=split, start=start)
    return [encode(scene, split, settings.image_size) for scene in scenes]


def encode(scene: Scene, split: str, image_size: int) -> Sample:
    """The members of a sample; the label of `objects` is their class id."""
    image = io.BytesIO()
    scene.draw(image_size).save(image, "JPEG", **_JPEG)
    fields = json.dumps(describe(scene, with_foils=split in ("val", "objects"))).encode()
    if split == "objects":
        label = str(scene.objects[0].class_id).encode()
        return {"__key__": f"s{int(scene.key):07d}", "jpg": image.getvalue(), "cls": label, "json": fields}
    lines = "".join(caption.text + "\n" for caption in scene.captions).encode()
    return {"__key__": scene.key, "jpg": image.getvalue(), "txt": lines, "json": fields}


def describe(scene: Scene, *, with_foils: bool = True) -> dict[str, Any]:
    """The ground truth of a scene as JSON data, the member KEY.json (keys: see the module)."""
    boxes = [[round(edge, 6) for edge in obj.box] for obj in scene.objects]
    fields: dict[str, Any] = {
        "regions": [{"box": b, "phrase": p} for b, p in zip(boxes, scene.phrases(), strict=True)],
        "objects": [
            {"shape": o.shape, "colour": o.colour, "size": o.size, "cell": o.cell} for o in scene.objects
        ],
        "background": {"style": scene.background.style, "tone": scene.background.tone},
        "captions": [caption.text for caption in scene.captions],
        "details": [caption.detail for caption in scene.captions],
        "claims": [[_claim(claim) for claim in caption.claims] for caption in scene.captions],
    }
    if with_foils:
        fields["foils"] = [
            {"kind": foil.kind, "caption": foil.caption.text, "foil": foil.foil.text}
            for foil in scene.foils()
        ]
    return fields


def _claim(claim: Claim) -> dict[str, Any]:
    return {"claim": type(claim).__name__, **asdict(claim)}


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file."""
    path.write_text("".join(f"{line}\n" for line in lines))
