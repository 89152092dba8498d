"""Normalised features of the images and captions of one partition after another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.devices import autocast_of, warn_if_emulated
from clipkit.evaluation import encode_texts

from .embed_chunks import Chunk, Failure, Item
from .embed_folder import Partition
from .embed_metadata import metadata_table
from .embed_settings import EmbedSettings
from .embed_source import EmbedSource
from .store import IMAGES, MORE_TEXTS, TEXTS

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

CaptionProgress = Callable[[int, int], None]


class PartitionEncoder:
    """Takes the chunks of a partition in order, gives the partition, and starts with the next one."""

    def __init__(self, model: DualEncoder, source: EmbedSource, settings: EmbedSettings) -> None:
        """Wrap a model.

        Args:
            model: on the device to compute on; put in evaluation mode.
            source: what is embedded.
            settings: precision, and which captions.
        """
        self._model = model.eval()
        self._with_images, self._with_texts = source.with_images, source.with_texts
        self._with_more = settings.captions == "all"
        self._device = model.logit_scale.device
        self._autocast = partial(autocast_of, settings.precision, self._device)
        warn_if_emulated(settings.precision, self._device)
        self._reset()

    def _reset(self) -> None:
        self._features: list[Tensor] = []
        self._items: list[Item] = []
        self._failures: list[Failure] = []

    @torch.inference_mode()
    def add(self, chunk: Chunk) -> None:
        """Encode the images of a chunk; a GPU is not waited for."""
        self._items += chunk.items
        self._failures += chunk.failures
        if chunk.images is not None:
            with self._autocast():
                features = self._model.encode_image(chunk.images.to(self._device, non_blocking=True))
            self._features.append(_stored(features))

    def finish(self, number: int, num_samples: int, *, progress: CaptionProgress | None = None) -> Partition:
        """Encode the captions of the chunks since the last call, and put everything together.

        Args:
            number: of the partition.
            num_samples: in it, unusable ones included.
            progress: called with the captions that are encoded, and all of them.

        Raises:
            ValueError: an embedding is not finite.
        """
        embeddings: dict[str, npt.NDArray[np.float16]] = {}
        if self._items:
            if self._with_images:
                embeddings[IMAGES] = torch.cat(self._features).cpu().numpy()
            if self._with_texts:
                first = [item.captions[0] for item in self._items]
                more = [text for item in self._items for text in item.captions[1:] if self._with_more]
                texts = self._encode_texts(first + more, progress)
                embeddings[TEXTS], embeddings[MORE_TEXTS] = np.split(texts, [len(first)])
        for name, rows in embeddings.items():
            self._check_finite(name, rows)
        partition = Partition(
            number=number,
            num_samples=num_samples,
            embeddings=embeddings,
            metadata=metadata_table(self._items) if self._items else None,
            failures=self._failures,
        )
        self._reset()
        return partition

    @torch.inference_mode()
    def _encode_texts(self, texts: list[str], progress: CaptionProgress | None) -> npt.NDArray[np.float16]:
        num_done = 0

        def count(num_settled: int) -> None:
            nonlocal num_done
            num_done += num_settled
            if progress is not None:
                progress(num_done, len(texts))

        features = encode_texts(
            self._model, texts, device=self._device, autocast=self._autocast, progress=count
        )
        rows: npt.NDArray[np.float16] = _stored(features).cpu().numpy()
        return rows

    def _check_finite(self, name: str, rows: npt.NDArray[np.float16]) -> None:
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            owner = (
                "a further caption" if name == MORE_TEXTS else next(iter(self._items[bad[0]].origin.values()))
            )
            raise ValueError(
                f"{name}: the embedding of {owner} is not finite: give --precision fp32, and if that is what "
                "this run has, check the weights of the model"
            )


def _stored(features: Tensor) -> Tensor:
    """Unit rows in fp16."""
    return F.normalize(features.float(), dim=-1).half()
