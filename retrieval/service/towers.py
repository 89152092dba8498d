"""Texts and pictures to unit vectors, for the worker that owns the model."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import onednn_text
from clipkit.devices import AUTOCAST_DTYPES, autocast_of, warn_if_emulated
from clipkit.evaluation import encode_texts
from clipkit.images import decode_image
from clipkit.text_towers import needed_lengths
from clipkit.tokenizers import tokenizer_facts

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

Vector = npt.NDArray[np.float32]


class Towers:
    """A model as the service uses it; `texts`, `images` and `count` are called by one thread only."""

    def __init__(self, model: DualEncoder, precision: str) -> None:
        """Wrap a model.

        Args:
            model: whole, on its device.
            precision: of the towers; vectors are normalised in fp32.

        Raises:
            ValueError: a tower is missing.
        """
        if not (model.has_image and model.has_text):
            raise ValueError("the service needs a model with both towers")
        self._model = model.eval()
        self._device = model.logit_scale.device
        self._autocast = partial(autocast_of, precision, self._device)
        warn_if_emulated(precision, self._device)
        self._transform = model.preprocess(dtype=torch.uint8)
        self._text_tower = _text_tower(model, precision)
        self._lowers = tokenizer_lowers(model)
        self.model_id = model.model_id
        self.embed_dim = model.embed_dim

    def pixels(self, data: bytes, max_pixels: int) -> Tensor:
        """An image file -> (3, H, W) uint8 as the tower takes it; from any thread.

        Raises:
            ImageError: it cannot be used.
        """
        return self._transform(decode_image(data, max_pixels=max_pixels))

    def text_key(self, text: str) -> str:
        """The same for texts that become the same tokens, as far as that is plain to see.

        Open_clip's usual tokenizer makes one blank of several and lower case of capitals. Its other cleaning
        (HTML entities, broken encodings) is left to it, so texts that it may touch stay as they are.
        """
        if not self._lowers or not text.isascii() or "&" in text:
            return text
        joined = re.sub(r"[ \t\r\n]+", " ", text).strip(" ").lower()
        return joined if joined.isprintable() else text

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> list[Vector | Exception]:
        """T texts -> T unit vectors (D,) fp32."""
        if self._text_tower is not None:
            return _rows(self._text_tower(self._model.tokenizer(list(texts))))
        return _rows(encode_texts(self._model, texts, device=self._device, autocast=self._autocast))

    @torch.inference_mode()
    def images(self, images: Sequence[Tensor]) -> list[Vector | Exception]:
        """B pictures of `pixels` -> B unit vectors (D,) fp32."""
        with self._autocast():
            return _rows(self._model.encode_image(torch.stack(list(images)).to(self._device)))

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of each text the tower reads."""
        counts: list[int] = needed_lengths(self._model.model, self._model.tokenizer(list(texts))).tolist()
        return counts


class TextCache:
    """The vectors of the texts that were asked for last; for any number of threads."""

    def __init__(self, size: int) -> None:
        """Keep at most `size` texts."""
        self._size = size
        self._vectors: OrderedDict[str, Vector] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Vector | None:
        """The vector of a text, which becomes the newest."""
        with self._lock:
            vector = self._vectors.get(key)
            if vector is not None:
                self._vectors.move_to_end(key)
            return vector

    def put(self, key: str, vector: Vector) -> None:
        """Keep a vector; the oldest make room for it."""
        with self._lock:
            self._vectors[key] = vector
            self._vectors.move_to_end(key)
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)


def _text_tower(model: DualEncoder, precision: str) -> onednn_text.OneDnnText | None:
    """The text tower as a CPU runs it faster, if it can run this one."""
    dtype = AUTOCAST_DTYPES[precision]
    return onednn_text.OneDnnText(model.model, dtype) if onednn_text.can_run(model.model, dtype) else None


def tokenizer_lowers(model: DualEncoder) -> bool:
    """Whether the tokenizer is open_clip's with its usual cleaning, which makes everything lower case."""
    from open_clip.tokenizer import SimpleTokenizer

    if not isinstance(model.tokenizer, SimpleTokenizer):
        return False
    return bool(tokenizer_facts(model.tokenizer, model.config["text_cfg"])["clean"] == "lower")


def _rows(features: Tensor) -> list[Vector | Exception]:
    unit = F.normalize(features.float(), dim=-1).cpu().numpy()
    return [
        row if np.isfinite(row).all() else RuntimeError("the embedding is not finite: try --precision fp32")
        for row in unit
    ]
