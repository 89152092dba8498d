"""Captions listed in one file, with images in a folder: the forms of COCO and of Karpathy's splits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipkit.data import problems
from clipkit.data.samples import RawSample, Source, clean_captions
from clipkit.data.tables import read_file, segment_sizes

_KARPATHY_TXT = "_karpathy.txt"


def is_caption_file(location: str) -> bool:
    """Whether a location names such a file: `FILE.json[:SPLIT][::FOLDER]` or `..._karpathy.txt[::FOLDER]`."""
    path = _parts(location)[0]
    return path.suffix == ".json" or path.name.endswith(_KARPATHY_TXT)


class CaptionFile(Source):
    """One sample for each image of the file, with all its captions.

    `captions_val2017.json` and `coco_test_karpathy.json` are COCO's form: images, and annotations that name
    them. `dataset_coco.json` is Karpathy's own: images with sentences and a split, `test` unless another is
    named as `dataset_coco.json:val`. `flickr30k_test_karpathy.txt` has a line `NAME.jpg,caption` for each
    caption. Images are looked for in the named folder, else beside the file and one folder up, also in
    folders that the file's name or its entries give.
    """

    def __init__(self, location: str) -> None:
        """Read the file, but none of the images.

        Raises:
            ValueError: the file is of another form, or the folder of the images is not found.
            OSError: there is no such file.
        """
        path, split, folder = _parts(location)
        super().__init__(path.stem if not split else f"{path.stem}:{split}")
        entries = _entries(path, split or "test")
        without = [name for name, captions in entries.items() if not captions]
        self.problems.add(problems.MISSING_CAPTION, without[: problems.NUM_EXAMPLES], len(without))
        self._names = tuple(name for name in entries if entries[name])
        self._captions = tuple(tuple(captions) for captions in entries.values() if captions)
        self._folder = folder if folder is not None else _image_folder(path, self._names)
        self.sizes_per_shard = segment_sizes(len(self._names))

    def read(self, index: int) -> RawSample:
        """See `Source`."""
        image = read_file(self._folder / self._names[index])
        return RawSample(self._names[index], image, clean_captions(self._captions[index], required=True))

    def where(self, index: int) -> str:
        """See `Source`."""
        return str(self._folder / self._names[index])


def _parts(location: str) -> tuple[Path, str, Path | None]:
    file, _, folder = location.partition("::")
    file, colon, split = file.partition(".json:")
    path = Path(f"{file}.json" if colon else file).expanduser()
    return path, split, Path(folder).expanduser() if folder else None


def _entries(path: Path, split: str) -> dict[str, list[str]]:
    """Captions by the names of the images, in the order of the file."""
    if path.name.endswith(_KARPATHY_TXT):
        return _from_lines(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} does not parse as JSON: {error}") from None
    if isinstance(content, Mapping) and {"images", "annotations"} <= content.keys():
        return _from_coco(path, content)
    if isinstance(content, Mapping) and _has_sentences(content.get("images")):
        return _from_karpathy(path, content["images"], split)
    raise ValueError(
        f'{path} is no file of captions: expected COCO\'s {{"images", "annotations"}} or Karpathy\'s '
        '{"images": [{"sentences", "split"}]}'
    )


def _from_lines(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, comma, caption = line.partition(".jpg,")
        if comma:
            captions.setdefault(f"{name}.jpg", []).append(caption.strip())
        elif number > 1 and line.strip():  # the first line may be a header
            raise ValueError(f"{path}, line {number}: expected NAME.jpg,caption, got {line[:60]!r}")
    return captions


def _from_coco(path: Path, content: Mapping[str, Any]) -> dict[str, list[str]]:
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[str, list[str]] = {name: [] for name in names.values()}
        for annotation in content["annotations"]:
            captions[names[annotation["image_id"]]].append(annotation["caption"])
    except KeyError as error:
        raise ValueError(f"{path}: an entry lacks {error}, or names an image that is not listed") from None
    return captions


def _has_sentences(images: Any) -> bool:
    return isinstance(images, list) and bool(images) and "sentences" in images[0]


def _from_karpathy(path: Path, images: list[Any], split: str) -> dict[str, list[str]]:
    chosen = [image for image in images if image.get("split") == split]
    if not chosen:
        splits = sorted({str(image.get("split")) for image in images})
        raise ValueError(
            f"{path} has no split {split!r}; name one as {path.name}:SPLIT, of {', '.join(splits)}"
        )
    names = [str(Path(image.get("filepath", "")) / image["filename"]) for image in chosen]
    sentences = [[sentence["raw"] for sentence in image["sentences"]] for image in chosen]
    return dict(zip(names, sentences, strict=True))


def _image_folder(path: Path, names: tuple[str, ...]) -> Path:
    """The folder in which the first image is."""
    if not names:
        return path.parent
    guesses = (
        "",
        "images",
        path.stem.rpartition("_")[2],
        path.stem,
        "val2014",
        "val2017",
        "flickr30k-images",
    )
    tried = [root / guess for root in (path.parent, path.parent.parent) for guess in guesses]
    for folder in tried:
        if (folder / names[0]).is_file():
            return folder
    raise ValueError(
        f"the images of {path} were not found near it, such as {path.parent / names[0]}; name their folder "
        f"as {path}::FOLDER"
    )
