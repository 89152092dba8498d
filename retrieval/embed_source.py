"""What is to be embedded: images with captions, images alone, or texts alone."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from clipkit.data import problems
from clipkit.data.locations import Location, resolve
from clipkit.data.problems import Problems
from clipkit.data.samples import RawSample, SampleKeys, Source, check_usable, clean_captions
from clipkit.data.sources import open_sources
from clipkit.data.tables import segment_sizes, table_rows
from clipkit.json_files import canonical_json

from .embed_settings import EmbedSettings


@dataclass(frozen=True, kw_only=True)
class EmbedSource:
    """Samples, what of them is embedded, and where they come from."""

    source: Source
    with_images: bool
    with_texts: bool
    location: Location

    @property
    def embedded(self) -> list[str]:
        """`image`, `text` or both."""
        return ["image"] * self.with_images + ["text"] * self.with_texts

    def origin(self, number: int, sample: RawSample) -> dict[str, str]:
        """The first metadata columns of a sample: a path that opens its image, or the key in its tar."""
        where = self.source.where(number)
        if not self.with_images:
            return {"key": where}
        if self.location.kind == "shards":
            return {"image_path": sample.key, "shard": os.path.abspath(self._shard(number))}
        root = self.location.paths[0]
        return {"image_path": os.path.abspath((root.parent if root.is_file() else root) / where)}

    def _shard(self, number: int) -> Path:
        return self.location.paths[bisect.bisect_right(self._ends, number)]

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(self.source.sizes_per_shard))

    def fingerprint(self) -> str:
        """Changes where samples were added, removed or moved: sizes of shards and what is at their ends."""
        facts: list[object] = [self.source.sizes_per_shard]
        if self.location.kind == "shards":
            facts += [[path.name, path.stat().st_size] for path in self.location.paths]
        else:
            ends = [
                (end - size, end - 1)
                for size, end in zip(self.source.sizes_per_shard, self._ends, strict=True)
            ]
            facts += [[self.source.where(first), self.source.where(last)] for first, last in ends]
        return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def open_embed_source(location: str, settings: EmbedSettings, *, show: bool = False) -> EmbedSource:
    """Open what is at a location; on all ranks together.

    Args:
        location: see `clipkit.data.sources.open_source`; a folder or tars may also hold captions alone.
        settings: names of the parts of a sample, and what is to be embedded.
        show: whether rank 0 shows the progress of indexing many tars.

    Raises:
        ValueError: nothing at the location can be embedded.
        OSError: there is nothing at the location.
    """
    found = resolve(location)
    keys = SampleKeys(
        image=settings.image_keys,
        caption=settings.caption_keys,
        require=(),
        fields=True,
        image_column=settings.image_column,
        caption_column=settings.caption_column,
    )
    with_captions = replace(keys, require=("caption",))
    embed = settings.embed
    if embed == "text":
        source = _open_texts(location, found, with_captions, show=show)
    else:
        source = _open(location, keys, show=show)
        if embed == "auto" and len(source) == 0:
            embed, source = "text", _open_texts(location, found, with_captions, show=show)
        elif embed == "auto":
            num_pairs = _num_pairs(location, with_captions)
            embed = "both" if 2 * num_pairs >= len(source) else "image"
        elif embed == "both" and len(source) and _num_pairs(location, with_captions) == 0:
            raise ValueError(
                f"no image of {location} has a caption: give --embed image, or other caption keys"
            )
    check_usable(source)
    return EmbedSource(
        source=source, with_images=embed != "text", with_texts=embed != "image", location=found
    )


def _open(location: str, keys: SampleKeys, *, show: bool) -> Source:
    return open_sources({_name(location): location}, keys, show=show)[0]


def _num_pairs(location: str, keys: SampleKeys) -> int:
    try:
        return len(_open(location, keys, show=False))
    except ValueError as error:  # a table without the column
        raise ValueError(f"{error}; --embed image takes images without captions") from None


def _name(location: str) -> str:
    return Path(location).name or location


def _open_texts(location: str, found: Location, keys: SampleKeys, *, show: bool) -> Source:
    """A source whose samples are texts; where another has an image, these have their text again."""
    if found.kind == "table":
        return TableTexts(_name(location), found.paths[0], keys)
    source = _open(location, replace(keys, image=keys.caption_members), show=show)
    renamed = Problems()
    for reason, count in source.problems.counts.items():
        lacks_text = reason == problems.MISSING_IMAGE
        if found.kind == "folder" and reason == problems.DUPLICATE_KEY:
            continue  # a sample with captions in two files: both are read
        examples = source.problems.examples[reason]
        renamed.add(problems.MISSING_CAPTION if lacks_text else reason, examples, count)
    source.problems = renamed
    return source


class TableTexts(Source):
    """One sample for every row of a table that has a caption."""

    def __init__(self, name: str, path: Path, keys: SampleKeys) -> None:
        super().__init__(name)
        self._table = path.name
        rows, texts = [], []
        for row, text in self._captions(path, keys):
            if text and text.strip():
                rows.append(row)
                texts.append(text)
            else:
                self.problems.add(problems.MISSING_CAPTION, [f"{path.name}: row {row}"])
        self._rows = pa.array(rows, type=pa.int64())
        self._texts = pa.array(texts, type=pa.large_string())
        self.sizes_per_shard = segment_sizes(len(rows))

    @staticmethod
    def _captions(path: Path, keys: SampleKeys) -> Iterator[tuple[int, str | None]]:
        keys = replace(keys, image_column=keys.caption_column)
        for row, (_, text, _) in enumerate(table_rows(path, keys), start=1):
            yield row, text

    def read(self, index: int) -> RawSample:
        """See `Source`."""
        captions = clean_captions([self._texts[index].as_py()], required=True)
        return RawSample(self.where(index), b"", captions)

    def where(self, index: int) -> str:
        """`TABLE: row N`, the first row after the header being 1."""
        return f"{self._table}: row {self._rows[index].as_py()}"
