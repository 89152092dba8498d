"""Features of texts and images, from the cache where they were computed before, by all ranks together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.data.evaluation import EvalLoader, build_eval_loader
from clipkit.data.problems import SampleError
from clipkit.data.samples import RawSample, Source
from clipkit.data.subset import Subset
from clipkit.devices import autocast_of, warn_if_emulated
from clipkit.distributed import all_gather_objects, all_gather_rows, rank, world_size
from clipkit.evaluation import encode_texts
from clipkit.feature_cache import FeatureCache, content_key

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

Progress = Callable[[int], None]


def no_progress(count: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """Features of the images of a source that could be read."""

    features: Tensor
    """(N, D) fp32 on the CPU, L2-normalised."""
    index: Tensor
    """(N,) int64, rising: the place of each in the source."""
    samples: tuple[RawSample, ...]
    """(N,) what the source says of each; without the content of the image."""
    unreadable: dict[int, str]
    """Why the others could not be read, by their place."""
    num_from_cache: int
    """How many cost no forward pass."""


class Encoder:
    """A model in evaluation mode, with a cache of what it has encoded.

    In a job of several ranks all of them call it together, each encodes its share, and all get everything.
    """

    def __init__(self, model: DualEncoder, cache: FeatureCache | None, *, precision: str = "fp32") -> None:
        """Wrap a model.

        Args:
            model: on the device to compute on; put in evaluation mode.
            cache: of this model; None computes everything anew.
            precision: of the towers, `fp32`, `bf16` or `fp16`; features are normalised in fp32.
        """
        self.model = model.eval()
        self._cache = cache
        self._device = model.logit_scale.device
        self._kind = "" if precision == "fp32" else f"/{precision}"
        self._image_kind = f"image{self._kind}"
        self._autocast = partial(autocast_of, precision, self._device)
        warn_if_emulated(precision, self._device)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], *, progress: Progress = no_progress) -> Tensor:
        """Features of texts: (T, D) fp32 on the CPU, L2-normalised. A text that occurs twice is encoded once.

        Args:
            texts: the same on all ranks.
            progress: called with the number of different texts that are done, over all ranks about.
        """
        unique = list(dict.fromkeys(texts))
        stride = world_size()
        own = self._own_texts(unique[rank() :: stride], lambda count: progress(count * stride))
        of_rank = [range(first, len(unique), stride) for first in range(stride)]
        places = {unique[number]: row for row, number in enumerate(n for part in of_rank for n in part)}
        return all_gather_rows(own)[torch.tensor([places[text] for text in texts], dtype=torch.int64)]

    def _own_texts(self, texts: Sequence[str], progress: Progress) -> Tensor:
        keys = [content_key(f"text{self._kind}", text.encode()) for text in texts]
        known = {} if self._cache is None else self._cache.read(keys)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        progress(len(texts) - len(new))
        if new:
            encoded = encode_texts(
                self.model,
                list(new.values()),
                device=self._device,
                autocast=self._autocast,
                progress=progress,
            ).cpu()
            computed = dict(zip(new, F.normalize(encoded, dim=-1), strict=True))
            self._keep(computed)
            known |= computed
        return stack_rows([known[key] for key in keys], self.model.embed_dim)

    @torch.inference_mode()
    def images(
        self,
        source: Source,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        progress: Progress = no_progress,
    ) -> EncodedImages:
        """Features of the images of a source; what cannot be read is left out and reported.

        Args:
            source: any number of images, the same on all ranks.
            batch_size: images encoded at once.
            num_workers: processes that decode.
            progress: called with the number of images that are done, over all ranks about.
        """
        own = self.own_numbers(len(source), batch_size)
        stride = world_size()
        part = self._own_images(source, own, batch_size, num_workers, lambda count: progress(count * stride))
        return gathered(part)

    @staticmethod
    def own_numbers(num_images: int, batch_size: int) -> list[int]:
        """This rank's share of the images of a source, batch by batch."""
        starts = range(rank() * batch_size, num_images, batch_size * world_size())
        return [n for start in starts for n in range(start, min(start + batch_size, num_images))]

    def _own_images(
        self, source: Source, numbers: Sequence[int], batch_size: int, num_workers: int, progress: Progress
    ) -> EncodedImages:
        keys, samples, unreadable = _read(source, numbers, self._image_kind)
        known = {} if self._cache is None else self._cache.read(keys.values())
        num_from_cache = sum(key in known for key in keys.values())
        progress(len(unreadable) + num_from_cache)
        # Of files with equal content, one is encoded.
        owners = {key: number for number, key in keys.items() if key not in known}
        new = sorted(owners.values())
        loader = self._loader(Subset(source, new), batch_size, num_workers) if new else None
        for batch in loader or ():
            with self._autocast():
                features = self._encode(batch["image"].to(self._device))
            done = [new[place] for place in batch["index"].tolist()]
            unit = F.normalize(features.float(), dim=-1).cpu()
            computed = {keys[number]: feature for number, feature in zip(done, unit, strict=True)}
            self._keep(computed)
            known |= computed
            progress(len(done))
        reasons = {keys[new[skip.sample]]: skip.reason for skip in loader.skips()} if loader else {}
        unreadable |= {number: reasons[key] for number, key in keys.items() if key not in known}
        readable = [number for number, key in keys.items() if key in known]
        return EncodedImages(
            features=stack_rows([known[keys[number]] for number in readable], self.model.embed_dim),
            index=torch.tensor(readable, dtype=torch.int64),
            samples=tuple(samples[number] for number in readable),
            unreadable=dict(sorted(unreadable.items())),
            num_from_cache=num_from_cache,
        )

    def _encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D), of any length."""
        return self.model.encode_image(images)

    def _loader(self, source: Source, batch_size: int, num_workers: int) -> EvalLoader:
        return build_eval_loader(
            source,
            transform=self.model.preprocess(),
            batch_size=batch_size,
            num_workers=num_workers,
            rank=0,
            world_size=1,
        )

    def _keep(self, computed: dict[bytes, Tensor]) -> None:
        if self._cache is not None:
            self._cache.write(computed)


def _read(
    source: Source, numbers: Iterable[int], kind: str
) -> tuple[dict[int, bytes], dict[int, RawSample], dict[int, str]]:
    """Keys of the images' content and what else the samples say, and why some could not be read."""
    keys: dict[int, bytes] = {}
    samples: dict[int, RawSample] = {}
    unreadable: dict[int, str] = {}
    for number in numbers:
        try:
            sample = source.read(number)
        except SampleError as error:
            unreadable[number] = error.reason
            continue
        keys[number] = content_key(kind, sample.image)
        samples[number] = dataclasses.replace(sample, image=b"")
    return keys, samples, unreadable


def gathered(part: EncodedImages) -> EncodedImages:
    """The parts of all ranks as one, in the order of the source."""
    if world_size() == 1:
        return part
    index, order = all_gather_rows(part.index).sort()
    others = all_gather_objects((part.samples, part.unreadable, part.num_from_cache))
    samples = [sample for own, _, _ in others for sample in own]
    unreadable = {number: reason for _, own, _ in others for number, reason in own.items()}
    return EncodedImages(
        features=all_gather_rows(part.features)[order],
        index=index,
        samples=tuple(samples[row] for row in order.tolist()),
        unreadable=dict(sorted(unreadable.items())),
        num_from_cache=sum(num_known for _, _, num_known in others),
    )


def stack_rows(rows: Sequence[Tensor], embed_dim: int) -> Tensor:
    """(N, D), of no rows too."""
    return torch.stack(list(rows)) if rows else torch.empty(0, embed_dim)
