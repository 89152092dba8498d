"""What decides the files that `clipkit embed` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Embedded = Literal["auto", "both", "image", "text"]


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """Settings of one embedding folder; a run that goes on with a folder must have the same ones."""

    embed: Embedded = "auto"
    """`both` images and captions, of samples that have both; `image` or `text` alone. By default `both` where
    at least half of the images have a caption, else `image`, and `text` where there are no images."""
    captions: Literal["all", "first"] = "all"
    """Of an image with several captions, the first is its row of text_emb; `all` puts the embeddings of the
    others in more_text_emb."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the towers; embeddings are normalised in fp32 and stored in fp16."""
    batch_size: int = 64
    """Images encoded at once."""
    write_batch_size: int = 10_000
    """Samples of one file. A run that is interrupted goes on with the first unfinished file."""
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Extensions or tar members that hold the image."""
    caption_keys: tuple[str, ...] = ("txt",)
    """Extensions or tar members that hold captions, one a line; json.NAME is a field of the json member."""
    image_column: str = "filepath"
    """Column of a table that holds the path of the image."""
    caption_column: str = "title"
    """Column of a table that holds a caption."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "write_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Where workers of Ray run, and how many."""

    ray_address: str | None = None
    """With `--engine ray`: the cluster, `auto` (the one this machine is in) or `HOST:6379`; by default Ray is
    started on this machine alone."""
    ray_workers: int | None = None
    """With `--engine ray`: workers; by default one for each GPU, without any one for each machine."""

    def __post_init__(self) -> None:
        if self.ray_workers is not None and self.ray_workers < 1:
            raise ValueError(f"--ray-workers must be at least 1, got {self.ray_workers}")
