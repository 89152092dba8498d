"""Features of texts and images, from the cache where they were computed before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.data.evaluation import EvalLoader, build_eval_loader
from clipkit.data.image_files import ImageFiles
from clipkit.data.problems import SampleError
from clipkit.evaluation import encode_texts
from clipkit.feature_cache import FeatureCache, content_key

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

Progress = Callable[[int], None]


def no_progress(count: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """Features of the images that could be read."""

    features: Tensor
    """(N, D) fp32 on the CPU, L2-normalised."""
    index: Tensor
    """(N,) int64, rising: the place of each among the files that were asked for."""
    unreadable: dict[int, str]
    """Why the others could not be read, by their place."""
    num_from_cache: int
    """How many cost no forward pass."""


class Encoder:
    """A model in evaluation mode, with a cache of what it has encoded."""

    def __init__(self, model: DualEncoder, cache: FeatureCache | None) -> None:
        """Wrap a model.

        Args:
            model: on the device to compute on; put in evaluation mode.
            cache: of this model; None computes everything anew.
        """
        self.model = model.eval()
        self._cache = cache

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], *, progress: Progress = no_progress) -> Tensor:
        """Features of texts: (T, D) fp32 on the CPU, L2-normalised."""
        keys = [content_key("text", text.encode()) for text in texts]
        known = {} if self._cache is None else self._cache.read(keys)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        progress(sum(key in known for key in keys))
        if new:
            device = self.model.logit_scale.device
            encoded = encode_texts(self.model, list(new.values()), device=device, progress=progress).cpu()
            computed = dict(zip(new, F.normalize(encoded, dim=-1), strict=True))
            if self._cache is not None:
                self._cache.write(computed)
            known |= computed
        return _stack([known[key] for key in keys], self.model.embed_dim)

    @torch.inference_mode()
    def images(
        self,
        files: ImageFiles,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        progress: Progress = no_progress,
    ) -> EncodedImages:
        """Features of image files; what cannot be read is left out and reported.

        Args:
            files: any number of them.
            batch_size: images encoded at once.
            num_workers: processes that decode.
            progress: called with the number of files that are done.
        """
        keys, unreadable = _content_keys(files)
        known = {} if self._cache is None else self._cache.read(keys.values())
        num_from_cache = sum(key in known for key in keys.values())
        progress(len(unreadable) + num_from_cache)
        # Of files with equal content, one is encoded.
        owners = {key: number for number, key in keys.items() if key not in known}
        new = sorted(owners.values())
        loader = self._loader(files, new, batch_size, num_workers) if new else None
        for batch in loader or ():
            image = batch["image"].to(self.model.logit_scale.device)
            features = F.normalize(self.model.encode_image(image).float(), dim=-1).cpu()
            numbers = [new[place] for place in batch["index"].tolist()]
            computed = {keys[number]: feature for number, feature in zip(numbers, features, strict=True)}
            if self._cache is not None:
                self._cache.write(computed)
            known |= computed
            progress(len(numbers))
        reasons = {keys[new[skip.sample]]: skip.reason for skip in loader.skips()} if loader else {}
        unreadable |= {number: reasons[key] for number, key in keys.items() if key not in known}
        readable = [number for number, key in keys.items() if key in known]
        return EncodedImages(
            features=_stack([known[keys[number]] for number in readable], self.model.embed_dim),
            index=torch.tensor(readable, dtype=torch.int64),
            unreadable=dict(sorted(unreadable.items())),
            num_from_cache=num_from_cache,
        )

    def _loader(
        self, files: ImageFiles, numbers: Sequence[int], batch_size: int, num_workers: int
    ) -> EvalLoader:
        return build_eval_loader(
            ImageFiles([files.paths[number] for number in numbers]),
            transform=self.model.preprocess(),
            batch_size=batch_size,
            num_workers=num_workers,
            rank=0,
            world_size=1,
        )


def _content_keys(files: ImageFiles) -> tuple[dict[int, bytes], dict[int, str]]:
    """Keys of the files' content by their place, and why some could not be read."""
    keys: dict[int, bytes] = {}
    unreadable: dict[int, str] = {}
    for number in range(len(files)):
        try:
            keys[number] = content_key("image", files.read(number).image)
        except SampleError as error:
            unreadable[number] = error.reason
    return keys, unreadable


def _stack(rows: Sequence[Tensor], embed_dim: int) -> Tensor:
    return torch.stack(list(rows)) if rows else torch.empty(0, embed_dim)
