"""Samples of a folder: `x.jpg` with `x.txt` beside it, or a folder for every class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from clipkit.data import problems
from clipkit.data.samples import RawSample, SampleKeys, Source, parse_members
from clipkit.data.tables import read_file, segment_sizes


class FolderSource(Source):
    """Images in a folder and all folders in it, with text files of the same name.

    Where `keys.require` has `label`, the folders directly inside are the classes: `classnames` are their
    sorted names, and a sample's label is the place of its folder among them.
    """

    def __init__(self, name: str, folder: Path, keys: SampleKeys) -> None:
        super().__init__(name)
        self._folder = folder
        self._keys = keys
        files: dict[str, dict[str, str]] = {}
        for path in _walk(folder):
            stem, suffix = os.path.splitext(path)
            files.setdefault(stem, {})[suffix[1:].lower()] = suffix
        self._stems: list[str] = []
        self._suffixes: list[dict[str, str]] = []
        for stem in sorted(files):
            self._add(stem, files[stem])
        if "label" in keys.require:
            self.classnames = tuple(sorted({stem.split(os.sep)[0] for stem in self._stems}))
        self.sizes_per_shard = segment_sizes(len(self._stems))

    def _add(self, stem: str, suffixes: dict[str, str]) -> None:
        images = [suffixes[extension] for extension in self._keys.image if extension in suffixes]
        texts = {name: suffixes[name] for name in self._keys.text_members if name in suffixes}
        if not images:
            self.problems.add(problems.MISSING_IMAGE, [stem], count=1 if texts else 0)
        elif "caption" in self._keys.require and not texts.keys() & set(self._keys.caption_members):
            self.problems.add(problems.MISSING_CAPTION, [stem])
        elif "label" in self._keys.require and os.sep not in stem:
            self.problems.add(problems.MISSING_LABEL, [stem])
        else:
            self.problems.add(problems.DUPLICATE_KEY, [f"{stem}{images[-1]}"], count=len(images) - 1)
            self._stems.append(stem)
            self._suffixes.append({"image": images[0], **texts})

    def read(self, index: int) -> RawSample:
        """Read sample `index`."""
        stem = self._stems[index]
        members = {
            name: read_file(self._folder / f"{stem}{suffix}")
            for name, suffix in self._suffixes[index].items()
        }
        image = members.pop("image")
        captions, fields = parse_members(members, self._keys)
        label = self.classnames.index(stem.split(os.sep)[0]) if self.classnames is not None else None
        return RawSample(stem, image, captions, label, fields)

    def where(self, index: int) -> str:
        """The image's path inside the folder."""
        return f"{self._stems[index]}{self._suffixes[index]['image']}"


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all files, relative to `folder`; links to folders are followed, loops are not."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.relpath(os.path.join(root, name), folder) for name in files if name[0] != ".")
