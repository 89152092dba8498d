"""Open whatever an evaluation is to run on: a source of images with labels, captions or json fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from clipkit.data.locations import resolve
from clipkit.data.samples import SampleKeys, Source, check_usable
from clipkit.data.sources import open_sources

from .caption_files import CaptionFile, is_caption_file

HUB_PREFIX = "hf-hub:"
SCENES = "scenes"
TEST_SPLIT = "test"


def open_images(location: str, *, require: Sequence[str] = ()) -> Source:
    """Open the images of an evaluation; on all ranks together.

    Args:
        location: a folder of class folders, or of images with `.txt` files; tar shards, or a folder in
            CLIP_benchmark's layout, of which the split `test` is taken unless `train` is named; a table
            (`.csv`, `.tsv`, `.parquet`) with the columns `filepath` and `title` or `cls`; a file of captions
            (see `caption_files`), followed by `::FOLDER` where its images are elsewhere;
            `hf-hub:clip-benchmark/wds_NAME[/train]`, which is downloaded; `scenes` or `scenes:objects`, the
            built-in data.
        require: what a sample must have: `label`, `labels` (several), `caption`, `fields` (a json file).

    Returns:
        The source, with the names of the classes and the templates that lie beside it.

    Raises:
        ValueError: nothing is usable, a shard is missing, or there are no names for the classes.
        OSError: there is nothing at `location`, or it cannot be downloaded.
    """
    if location == SCENES or location.startswith(f"{SCENES}:"):
        location = str(_scenes(location))
    if location.startswith(HUB_PREFIX):
        location = str(_from_hub(location))
    if is_caption_file(location):
        source: Source = CaptionFile(location)
        check_usable(source)
        return source
    place = _test_split(location)
    folder = _folder_of(place)
    _check_complete(folder)
    label_keys = {"label", "labels"} & set(require)
    if "label" in require and _dataset_type(folder) == "multilabel":
        label_keys = {"labels"}
    keys = SampleKeys(
        label="npy" if "labels" in label_keys else "cls",
        require=tuple(name for name in ("caption",) if name in require) + (("label",) if label_keys else ()),
        fields="fields" in require,
    )
    source = open_sources({_name(location): place}, keys)[0]
    check_usable(source)
    source.classnames = source.classnames or _lines_near(folder, "classnames.txt") or None
    source.templates = _lines_near(folder, "zeroshot_classification_templates.txt")
    return source


def _name(location: str) -> str:
    """What messages call the data: the last part of its path that is no name of a split."""
    parts = [part for part in Path(location).parts if part not in ("/", TEST_SPLIT, "train", "val")]
    return parts[-1] if parts else location


def _test_split(location: str) -> str:
    """CLIP_benchmark's data sets are named by the folder that holds their splits."""
    split = Path(location).expanduser() / TEST_SPLIT
    return str(split) if split.is_dir() and any(split.glob("*.tar")) else location


def _folder_of(location: str) -> Path:
    """Where files about the whole data set are looked for."""
    found = resolve(location)
    return found.paths[0] if found.kind == "folder" else found.paths[0].parent


def _check_complete(folder: Path) -> None:
    """Refuse a folder that says how many shards it has and lacks some.

    Raises:
        ValueError: shards are missing, or the file that counts them is damaged.
    """
    counted = folder / "nshards.txt"
    if not counted.is_file():
        return
    text = counted.read_text(encoding="utf-8").strip()
    if not text.isdigit():
        raise ValueError(f"{counted} must hold the number of shards, got {text[:40]!r}")
    present = {int(path.stem) for path in folder.glob("*.tar") if re.fullmatch(r"\d+", path.stem)}
    missing = [f"{number}.tar" for number in range(int(text)) if number not in present]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{folder} should have {text} shards by its nshards.txt, lacking {', '.join(missing[:3])}{more}; "
            "fetch them again"
        )


def _dataset_type(folder: Path) -> str:
    return " ".join(_lines_near(folder, "dataset_type.txt")).strip()


def _lines_near(folder: Path, name: str) -> tuple[str, ...]:
    """The lines of a file in a folder or the one above."""
    for candidate in (folder / name, folder.parent / name):
        if candidate.is_file():
            lines = candidate.read_text(encoding="utf-8-sig").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return ()


def _from_hub(location: str) -> Path:
    """Download one split of a data set in CLIP_benchmark's layout; kept in the hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    parts = location.removeprefix(HUB_PREFIX).split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"expected {HUB_PREFIX}OWNER/NAME or {HUB_PREFIX}OWNER/NAME/SPLIT, got {location!r}")
    split = parts[2] if len(parts) == 3 else TEST_SPLIT
    try:
        folder = snapshot_download(
            "/".join(parts[:2]), repo_type="dataset", allow_patterns=["*.txt", f"{split}/*"]
        )
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(
            f"{location} could not be downloaded: {reason}; download it elsewhere and name its folder"
        ) from None
    return Path(folder) / split


def _scenes(location: str) -> Path:
    """The built-in data, drawn once into the user's cache."""
    from clipkit.distributed import barrier, local_rank
    from clipkit.scenes import SceneShards, write_shards
    from clipkit.user_cache import user_cache

    splits = {SCENES: "val", f"{SCENES}:objects": "objects/test"}
    if location not in splits:
        raise ValueError(f"the built-in data sets are {' and '.join(splits)}, got {location!r}")
    # Nobody evaluates on the splits to train on.
    settings = SceneShards(num_train=1, num_train_objects=1)
    folder = user_cache("scenes")
    if local_rank() == 0:
        write_shards(folder, settings)
    barrier()
    return folder / splits[location]
