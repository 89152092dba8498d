"""Image files by path, as a source: without captions or labels, in the order they are given."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from clipkit.data.samples import RawSample, Source
from clipkit.data.tables import read_file

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class ImageFiles(Source):
    """Sample i is file i."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__("images")
        self.paths = tuple(paths)
        self.sizes_per_shard = (len(self.paths),)

    def read(self, index: int) -> RawSample:
        """See `Source`."""
        path = self.paths[index]
        return RawSample(str(path), read_file(path), ())

    def where(self, index: int) -> str:
        """See `Source`."""
        return str(self.paths[index])


def find_images(places: Iterable[str]) -> list[Path]:
    """Image files in folders (and all folders below), by glob patterns, and by path.

    A file that is named by its path is taken whatever its name; in folders and by patterns, those count that
    end like images.

    Args:
        places: folders, patterns such as `photos/*.jpg`, and files.

    Returns:
        Files in the order of `places`, sorted within a folder or pattern, each once.

    Raises:
        FileNotFoundError: a place does not exist, or a pattern matches nothing.
        ValueError: there is no image at any place.
    """
    found: dict[Path, None] = {}
    for place in places:
        for path in _images_at(place):
            found[path] = None
    if not found:
        raise ValueError(
            f"expected images ({', '.join(EXTENSIONS)}), found none in {', '.join(places) or 'no place'}"
        )
    return list(found)


def _images_at(place: str) -> Iterator[Path]:
    path = Path(place)
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if _is_image(file))
    elif path.exists():
        yield path
    elif glob.has_magic(place):
        matches = sorted(Path(match) for match in glob.glob(place, recursive=True))
        if not matches:
            raise FileNotFoundError(f"nothing matches {place}")
        for match in matches:
            if match.is_dir():
                yield from _images_at(str(match))
            elif _is_image(match):
                yield match
    else:
        raise FileNotFoundError(f"there is no file or folder {place}")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file()
