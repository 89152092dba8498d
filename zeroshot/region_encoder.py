"""Features of parts of images, and where phrases are: from the cache, or from one forward of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.data.problems import SampleError
from clipkit.data.prompted_images import Region
from clipkit.data.samples import RawSample
from clipkit.data.subset import Subset
from clipkit.distributed import all_gather_objects, world_size
from clipkit.feature_cache import content_key
from clipkit.images import ImageError, image_size
from clipkit.regions import boxes as region_boxes
from clipkit.regions.heads import head_id
from clipkit.windows import Window, eval_window

from .encoder import EncodedImages, Encoder, Progress, gathered, no_progress, stack_rows
from .region_answers import RegionAnswerer, lacking
from .region_source import (
    GROUNDED,
    HEAD,
    PEAKS,
    QUERIES,
    TOKENS,
    ImageRegions,
    RegionSet,
    RegionSource,
    no_queries,
)

if TYPE_CHECKING:
    from clipkit.feature_cache import FeatureCache
    from clipkit.model import DualEncoder


class RegionEncoder(Encoder):
    """An encoder that also answers about parts of images."""

    def __init__(self, model: DualEncoder, cache: FeatureCache | None, *, precision: str = "fp32") -> None:
        """Wrap a model, with or without a region head; arguments as of `Encoder`."""
        super().__init__(model, cache, precision=precision)
        self._row_kinds = {TOKENS: f"region-tokens{self._kind}"}
        if model.region_head is not None:
            self._row_kinds[HEAD] = f"region:{head_id(model.region_head)}{self._kind}"

    @torch.inference_mode()
    def regions(
        self,
        source: RegionSource,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        progress: Progress = no_progress,
    ) -> tuple[EncodedImages, RegionSet]:
        """Features of the images of a source, and answers about their parts.

        Features of boxes are kept in the cache; where phrases are, and what queries find, is computed anew.

        Args:
            source: the same on all ranks.
            batch_size: images encoded at once.
            num_workers: processes that decode.
            progress: called with the number of images that are done, over all ranks about.

        Raises:
            ValueError: nothing is wanted but what queries find, and the model has no query decoder.
        """
        missing = lacking(self.model, source.wanted)
        if QUERIES in missing and source.wanted == {QUERIES}:
            raise ValueError(no_queries(missing))
        wanted = source.wanted - missing.keys()
        phrases = {phrase: None for one in source.asked for phrase in one.phrases}
        is_looked_for = bool(wanted & {GROUNDED, PEAKS})
        answerer = RegionAnswerer(
            model=self.model,
            wanted=wanted,
            phrase_features=dict(zip(phrases, self.texts(list(phrases)), strict=True))
            if is_looked_for
            else {},
        )
        part, answers = self._own_regions(source, answerer, batch_size, num_workers, progress)
        encoded, head = gathered(part), self.model.region_head
        regions = RegionSet(
            images=_in_order(part.index, answers),
            index=encoded.index,
            lacking=missing,
            head=None if head is None else head.kind,
        )
        return encoded, regions

    def _own_regions(
        self,
        source: RegionSource,
        answerer: RegionAnswerer,
        batch_size: int,
        num_workers: int,
        progress: Progress,
    ) -> tuple[EncodedImages, list[ImageRegions]]:
        """This rank's images, and what is said of their parts."""
        stride = world_size()
        numbers = self.own_numbers(len(source), batch_size)
        opened, unreadable = self._open(source, numbers, answerer.wanted)
        keys = [key for one in opened.values() for key in one.keys]
        known = {} if self._cache is None else self._cache.read(keys)
        is_all_of_rows = answerer.wanted <= {HEAD, TOKENS}
        found = {
            number: (known[one.image_key], one.with_rows(known, self.model.embed_dim))
            for number, one in opened.items()
            if is_all_of_rows and known.keys() >= set(one.keys)
        }
        num_from_cache = len(found)
        progress(stride * (len(unreadable) + num_from_cache))
        new = [number for number in opened if number not in found]
        loader = self._loader(Subset(source, new), batch_size, num_workers) if new else None
        for batch in loader or ():
            done = [new[place] for place in batch["index"].tolist()]
            with self._autocast():
                seen = self.model.tokens(batch["image"].to(self._device))
                answers = answerer(
                    seen, [opened[n].shown for n in done], [source.asked[n].phrases for n in done]
                )
            pooled = F.normalize(seen.pooled.float(), dim=-1).cpu()
            computed = dict(zip(done, zip(pooled, answers, strict=True), strict=True))
            rows = (opened[number].rows(*answer) for number, answer in computed.items())
            self._keep({key: row for own in rows for key, row in own.items()})
            found |= computed
            progress(stride * len(done))
        unreadable |= {new[skip.sample]: skip.reason for skip in loader.skips()} if loader else {}
        used = [number for number in opened if number in found]
        encoded = EncodedImages(
            features=stack_rows([found[number][0] for number in used], self.model.embed_dim),
            index=torch.tensor(used, dtype=torch.int64),
            samples=tuple(opened[number].sample for number in used),
            unreadable=dict(sorted(unreadable.items())),
            num_from_cache=num_from_cache,
        )
        return encoded, [found[number][1] for number in used]

    def _open(
        self, source: RegionSource, numbers: Sequence[int], wanted: frozenset[str]
    ) -> tuple[dict[int, _Opened], dict[int, str]]:
        """Images with their boxes as the tower will see them, and why others could not be read."""
        opened: dict[int, _Opened] = {}
        unreadable: dict[int, str] = {}
        for number in numbers:
            try:
                sample = source.read(number)
                height, width = image_size(sample.image)
            except (SampleError, ImageError) as error:
                unreadable[number] = error.reason
                continue
            window = eval_window(self.model.preprocess_config, (height, width))
            shown = _shown(source.asked[number].boxes, (width, height), window)
            image_key = content_key(self._image_kind, sample.image)
            row_keys = {
                method: tuple(_row_key(self._row_kinds[method], image_key, box) for box in shown.boxes)
                for method in sorted(wanted & {HEAD, TOKENS})
            }
            opened[number] = _Opened(replace(sample, image=b""), shown, image_key, row_keys)
        return opened, unreadable


@dataclass(frozen=True)
class _Opened:
    """An image that is to be asked about."""

    sample: RawSample
    shown: ImageRegions
    """Its boxes, without answers."""
    image_key: bytes
    row_keys: Mapping[str, tuple[bytes, ...]]
    """Of the features of its boxes, by method."""

    @property
    def keys(self) -> list[bytes]:
        """Of all its features in the cache."""
        return [self.image_key, *(key for keys in self.row_keys.values() for key in keys)]

    def with_rows(self, known: Mapping[bytes, Tensor], embed_dim: int) -> ImageRegions:
        """Its boxes with features from the cache."""
        features = {
            method: stack_rows([known[key] for key in keys], embed_dim)
            for method, keys in self.row_keys.items()
        }
        return replace(self.shown, features=features)

    def rows(self, image_feature: Tensor, regions: ImageRegions) -> dict[bytes, Tensor]:
        """What the cache is to keep."""
        found = {self.image_key: image_feature}
        for method, keys in self.row_keys.items():
            found |= dict(zip(keys, regions.features[method], strict=True))
        return found


def _shown(regions: Sequence[Region], size: tuple[int, int], window: Window) -> ImageRegions:
    """The boxes of an image of (width, height) of which enough is in a window."""
    rows = [
        [
            edge / side
            for edge, side in zip(region.box, (size if region.in_pixels else (1, 1)) * 2, strict=True)
        ]
        for region in regions
    ]
    fractions = torch.tensor(rows).reshape(-1, 4)
    inside = (region_boxes.visible_share(fractions) >= region_boxes.MIN_VISIBLE).nonzero()[:, 0]
    clean = region_boxes.shown(fractions[inside].clamp(0, 1), window)
    num_outside = len(regions) - len(inside)
    return ImageRegions(
        kept=inside[clean.kept],
        boxes=clean.boxes,
        problems={**clean.problems, **({region_boxes.OUTSIDE: num_outside} if num_outside else {})},
    )


def _row_key(kind: str, image_key: bytes, box: Tensor) -> bytes:
    return content_key(kind, image_key + box.numpy().tobytes())


def _in_order(index: Tensor, own: list[ImageRegions]) -> tuple[ImageRegions, ...]:
    """The answers of all ranks in the order of their images."""
    parts = all_gather_objects((index.tolist(), own))
    pairs = [pair for numbers, answers in parts for pair in zip(numbers, answers, strict=True)]
    return tuple(answer for _, answer in sorted(pairs, key=lambda pair: pair[0]))
