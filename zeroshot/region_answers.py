"""Answers about parts of a batch of images, from the tokens of one forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.regions.answers import grid_of, why_not_ground
from clipkit.regions.dense import pool_tokens
from clipkit.regions.queries import QueryDecoder
from clipkit.towers import TowerOutput

from .region_source import GROUNDED, HEAD, PEAKS, QUERIES, TOKENS, FoundByQueries, ImageRegions

if TYPE_CHECKING:
    from clipkit.model import DualEncoder
    from clipkit.regions.base import RegionHead

_NUMBERS_AT_ONCE = 2**24
"""Of the tokens that a head looks at for some boxes or phrases."""


@torch.no_grad()
def lacking(model: DualEncoder, wanted: frozenset[str]) -> dict[str, str]:
    """Why a model cannot give some of what is wanted, by `region_source.ANSWERS`; tried on a blank image."""
    head = model.region_head
    found: dict[str, str] = {}
    if head is None:
        found = dict.fromkeys(wanted & {HEAD, GROUNDED, QUERIES}, "the model has no region head")
    elif QUERIES in wanted and not isinstance(head, QueryDecoder):
        found[QUERIES] = f"the model's region head is a {head.kind}, which finds no regions by itself"
    if wanted & {TOKENS, PEAKS}:
        seen = model.tokens(torch.zeros(1, 3, *model.image_size, device=model.image_mean.device))
        try:
            model.project_tokens(seen.tokens[0])
        except ValueError as error:
            found |= dict.fromkeys(wanted & {TOKENS, PEAKS}, str(error))
    if GROUNDED in wanted and head is not None:
        reason = why_not_ground(model)
        if reason is not None:
            found[GROUNDED] = reason
    return found


@dataclass(frozen=True, kw_only=True)
class RegionAnswerer:
    """Gives what is wanted of a model, which can give all of it."""

    model: DualEncoder
    wanted: frozenset[str]
    """Some of `region_source.ANSWERS`."""
    phrase_features: Mapping[str, Tensor]
    """(D,) unit vectors of all phrases that are to be found."""

    def __call__(
        self, seen: TowerOutput, shown: Sequence[ImageRegions], phrases: Sequence[Sequence[str]]
    ) -> list[ImageRegions]:
        """The boxes of B images with what the model says of them, on the CPU.

        Args:
            seen: tokens of the images, on the model's device.
            shown: their boxes.
            phrases: to be found in each of them.
        """
        device = seen.tokens[0].device
        counts = [len(image.boxes) for image in shown]
        boxes = torch.cat([image.boxes for image in shown]).to(device)
        index = _image_of_row(counts, device)
        features = {
            method: torch.split(self._box_features(method, seen, boxes, index).cpu(), counts)
            for method in sorted(self.wanted & {HEAD, TOKENS})
        }
        grounded, peaks = self._grounded(seen, phrases), self._peaks(seen, phrases)
        queries = self._queries(seen)
        return [
            replace(
                image,
                features={method: parts[place] for method, parts in features.items()},
                grounded=grounded[place],
                peaks=peaks[place],
                queries=queries[place],
            )
            for place, image in enumerate(shown)
        ]

    def _box_features(self, method: str, seen: TowerOutput, boxes: Tensor, index: Tensor) -> Tensor:
        """(R, 4) boxes -> (R, D)."""
        if method == TOKENS:
            return pool_tokens(self.model, seen, boxes, index)
        parts = [
            self.model.encode_regions(seen, boxes[rows], index[rows]).float()
            for rows in _rows_at_once(seen, len(boxes))
        ]
        return torch.cat(parts) if parts else boxes.new_empty(0, self.model.embed_dim)

    def _grounded(self, seen: TowerOutput, phrases: Sequence[Sequence[str]]) -> Sequence[Tensor | None]:
        if GROUNDED not in self.wanted:
            return [None] * len(phrases)
        tokens = seen.tokens[0]
        counts = [len(own) for own in phrases]
        features, index = self._features(phrases).to(tokens.device), _image_of_row(counts, tokens.device)
        parts = [
            self._head.ground(tokens, grid_of(seen), features[rows], index[rows]).float()
            for rows in _rows_at_once(seen, len(index))
        ]
        boxes = torch.cat(parts) if parts else features.new_empty(0, 4)
        return torch.split(boxes.cpu(), counts)

    def _peaks(self, seen: TowerOutput, phrases: Sequence[Sequence[str]]) -> Sequence[Tensor | None]:
        """The middle of the token that fits a phrase best."""
        if PEAKS not in self.wanted:
            return [None] * len(phrases)
        rows, columns = grid_of(seen)
        places = F.normalize(self.model.project_tokens(seen.tokens[0]).float(), dim=-1).cpu()
        found = []
        for image, own in zip(places, phrases, strict=True):
            best = (self._features([own]) @ image.T).argmax(dim=1)
            x, y = (best % columns + 0.5) / columns, (best // columns + 0.5) / rows
            found.append(torch.stack([x, y], dim=1))
        return found

    def _queries(self, seen: TowerOutput) -> Sequence[FoundByQueries | None]:
        if QUERIES not in self.wanted:
            return [None] * len(seen.pooled)
        head = self._head
        assert isinstance(head, QueryDecoder)
        found = head.find(seen.tokens[0], grid_of(seen))
        columns = (found.boxes.float().cpu(), found.features.cpu(), found.image_features.cpu())
        return [
            FoundByQueries(boxes=boxes, features=features, image_feature=image)
            for boxes, features, image in zip(*columns, strict=True)
        ]

    def _features(self, phrases: Sequence[Sequence[str]]) -> Tensor:
        """(P, D) of the phrases of all images, one after the other."""
        rows = [self.phrase_features[phrase] for own in phrases for phrase in own]
        return torch.stack(rows) if rows else torch.empty(0, self.model.embed_dim)

    @property
    def _head(self) -> RegionHead:
        assert self.model.region_head is not None
        return self.model.region_head


def _rows_at_once(seen: TowerOutput, num_rows: int) -> list[slice]:
    """Parts of rows, each of which a head looks at with all tokens of an image."""
    step = max(1, _NUMBERS_AT_ONCE // seen.tokens[0][0].numel())
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def _image_of_row(counts: Sequence[int], device: torch.device) -> Tensor:
    return torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
