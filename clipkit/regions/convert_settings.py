"""What `clipkit regions convert` is told, and what it tells; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Format = Literal["coco", "visual-genome", "flickr30k-entities", "refcoco", "lvis"]

HAS_SPLITS = ("flickr30k-entities", "refcoco")
HAS_CAPTIONS = ("flickr30k-entities",)


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """What is converted, and how it is cut into shards."""

    format: Format
    """Form of the annotations."""
    images: Path
    """Folder of the images."""
    captions: Path | None = None
    """Captions JSON of COCO, for images of COCO; Flickr30k Entities has its own."""
    split: str | None = None
    """Take the images of this split alone, such as train; for refcoco and flickr30k-entities."""
    shard_size: int = 1_000
    """Images in a tar file; the last may hold fewer."""

    def __post_init__(self) -> None:
        if self.split is not None and self.format not in HAS_SPLITS:
            raise ValueError(
                f"--split is for {' and '.join(HAS_SPLITS)}; {self.format} has a file for each split: name it"
            )
        if self.captions is not None and self.format in HAS_CAPTIONS:
            raise ValueError(f"--captions is not for {self.format}, which has captions of its own")
        if self.shard_size < 1:
            raise ValueError(f"--shard-size must be at least 1, got {self.shard_size}")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written, and what was left out."""

    num_shards: int
    num_images: int
    num_images_with_regions: int
    num_images_without_caption: int
    num_regions: int
    images_left_out: dict[str, int]
    """By reason."""
    boxes_left_out: dict[str, int]
    """By reason."""
    examples: dict[str, list[str]]
    """Of each reason, the first few places."""

    def to_text(self) -> str:
        """One line."""
        from clipkit.data.problems import describe_counts  # imports torch

        text = (
            f"{self.num_images:,} images ({self.num_images_with_regions:,} with regions), "
            f"{self.num_regions:,} regions, {self.num_shards:,} shard{'s' * (self.num_shards != 1)}"
        )
        if self.num_images_without_caption:
            text += f"; {self.num_images_without_caption:,} images have no caption"
        if self.images_left_out:
            text += f"; images left out: {describe_counts(self.images_left_out)}"
        if self.boxes_left_out:
            text += f"; boxes left out: {describe_counts(self.boxes_left_out)}"
        return text
