"""What a loss may know about the pairs of a batch, and the form in which kernels use it, tile by tile."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.distributed import all_reduce_sum
from clipkit.exchange import EXCHANGES, ExchangeName, RowLayout
from clipkit.losses.text_similarity import similar_texts


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What is known about a batch of N pairs on this rank beyond "image i goes with text i".

    M is the number of pairs on all ranks of the group, in rank order. Every field is independent of the
    others.
    """

    positive_keys: Tensor | None = None
    """(N,) int64: image i and text j, of any rank, are a positive pair if their keys are equal (several
    captions of one image, duplicates). None means that only i and i are."""
    ignored_keys: Tensor | None = None
    """(N,) int64: image i and text j with equal keys are left out, unless they are a positive pair."""
    ignored: Tensor | None = None
    """(N, M) bool: pairs of this rank's image i and text j of the group that are left out, unless
    positive."""
    max_text_similarity: float | None = None
    """Image i and text j are left out, unless positive, where texts i and j have a cosine above this, which
    no gradient goes through; 1 leaves nothing out. Tiles compare the texts of a tile at a time."""
    negative_text_features: Tensor | None = None
    """(N, K, D), rows L2-normalised: K more texts that do not fit image i. They are negatives of image i
    alone and never leave this rank."""
    weights: Tensor | None = None
    """(N,) >= 0: how much a pair counts as an anchor; one with weight 0 is still a negative of the others."""
    row_counts: Sequence[int] | None = None
    """Number of pairs of every rank of the group, where they differ: `distributed.gather_counts` tells."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The linear part of the softmax loss: its gradient with respect to the logits, apart from the softmax.

    The target of image i and text j is `[positive] * (row_positive[i] + column_positive[j])
    + [kept] * (row_uniform[i] + column_uniform[j])`.
    """

    row_positive: Tensor
    column_positive: Tensor
    row_uniform: Tensor | None
    """With label smoothing, as for the columns."""
    column_uniform: Tensor | None

    def tile(self, rows: slice, columns: slice) -> Targets:
        """The targets of some rows and columns."""
        return Targets(
            row_positive=self.row_positive[rows],
            column_positive=self.column_positive[columns],
            row_uniform=_part(self.row_uniform, rows),
            column_uniform=_part(self.column_uniform, columns),
        )


@dataclass(frozen=True, kw_only=True)
class PairLabels:
    """Labels of a rectangle of pairs: R images (rows) and C texts (columns)."""

    row_weights: Tensor
    """(R,): the weight of each image's own loss in this rank's loss."""
    column_weights: Tensor
    """(C,): the same of each text."""
    diagonal: int
    """Without keys, the positive pairs are those of row i and column i + `diagonal`."""
    row_keys: Tensor | None = None
    """(R,) int64; rows and columns with equal keys are positive pairs."""
    column_keys: Tensor | None = None
    """(C,) int64."""
    row_ignored_keys: Tensor | None = None
    """(R,) int64; rows and columns with equal ones are left out."""
    column_ignored_keys: Tensor | None = None
    """(C,) int64."""
    ignored: Tensor | None = None
    """(R, C) bool."""
    max_text_similarity: float | None = None
    """Of the texts that belong to rows and columns: `without_similar_texts` puts it into `ignored`."""
    targets: Targets | None = None
    """For the softmax loss."""

    def tile(self, rows: slice, columns: slice) -> PairLabels:
        """The labels of some rows and columns; both slices have a start."""
        return PairLabels(
            row_weights=self.row_weights[rows],
            column_weights=self.column_weights[columns],
            diagonal=self.diagonal + rows.start - columns.start,
            row_keys=_part(self.row_keys, rows),
            column_keys=_part(self.column_keys, columns),
            row_ignored_keys=_part(self.row_ignored_keys, rows),
            column_ignored_keys=_part(self.column_ignored_keys, columns),
            ignored=None if self.ignored is None else self.ignored[rows, columns],
            max_text_similarity=self.max_text_similarity,
            targets=None if self.targets is None else self.targets.tile(rows, columns),
        )

    def without_similar_texts(self, row_texts: Tensor, column_texts: Tensor) -> PairLabels:
        """These labels with pairs left out whose texts, (R, D) and (C, D), are more alike than allowed."""
        if self.max_text_similarity is None:
            return self
        similar = similar_texts(row_texts, column_texts, self.max_text_similarity)
        ignored = similar if self.ignored is None else similar | self.ignored
        return dataclasses.replace(self, ignored=ignored, max_text_similarity=None)

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return self.row_weights.shape[0], self.column_weights.shape[0]

    @property
    def can_be_ignored(self) -> bool:
        """Whether some pairs may be left out."""
        given = self.ignored, self.row_ignored_keys, self.max_text_similarity
        return any(kind is not None for kind in given)

    @property
    def has_diagonal(self) -> bool:
        """Whether the diagonal crosses this rectangle."""
        num_rows, num_columns = self.shape
        return -num_rows < self.diagonal < num_columns

    @property
    def has_diagonal_targets(self) -> bool:
        """Whether there are no targets but on the diagonal."""
        return self.row_keys is None and self.targets is not None and self.targets.row_uniform is None

    def diagonal_targets(self) -> Tensor:
        """Targets along the diagonal, as far as it crosses this rectangle."""
        assert self.targets is not None
        first_row, first_column = max(-self.diagonal, 0), max(self.diagonal, 0)
        length = max(0, min(self.shape[0] - first_row, self.shape[1] - first_column))
        of_rows = self.targets.row_positive[first_row : first_row + length]
        return of_rows + self.targets.column_positive[first_column : first_column + length]

    def positive(self) -> Tensor:
        """(R, C) bool: the positive pairs."""
        if self.row_keys is not None and self.column_keys is not None:
            return self.row_keys[:, None] == self.column_keys
        num_rows, num_columns = self.shape
        device = self.row_weights.device
        rows = torch.arange(self.diagonal, self.diagonal + num_rows, device=device)
        return rows[:, None] == torch.arange(num_columns, device=device)

    def kept(self) -> Tensor | None:
        """(R, C) bool: the pairs that are not left out; None if that is all of them."""
        assert self.max_text_similarity is None, "texts are compared first, by without_similar_texts"
        if not self.can_be_ignored:
            return None
        kept = torch.ones(self.shape, dtype=torch.bool, device=self.row_weights.device)
        if self.ignored is not None:
            kept &= ~self.ignored
        if self.row_ignored_keys is not None:
            kept &= self.row_ignored_keys[:, None] != self.column_ignored_keys
        return kept | self.positive()

    def target_matrix(self) -> Tensor:
        """(R, C): the targets written out."""
        assert self.targets is not None
        t, kept = self.targets, self.kept()
        targets = self.positive() * (t.row_positive[:, None] + t.column_positive)
        if t.row_uniform is not None and t.column_uniform is not None:
            uniform = t.row_uniform[:, None] + t.column_uniform
            targets += uniform if kept is None else uniform * kept
        return targets


def _part(vector: Tensor | None, part: slice) -> Tensor | None:
    return None if vector is None else vector[part]


def label_pairs(pairs: Pairs, layout: RowLayout, like: Tensor) -> PairLabels:
    """Labels of this rank's images against the texts of its group, without targets. Collective.

    Weights are scaled such that a loss `sum_i row_weights[i] * loss_i + sum_j column_weights[j] * loss_j`
    over own rows and columns has as its mean over ranks the weighted mean, over all pairs of the group, of
    the mean of an image's and its text's loss.

    Args:
        pairs: what the caller knows.
        layout: where the pairs are.
        like: has the device and dtype of the logits.

    Raises:
        ValueError: a field has the wrong shape, or is no cosine.
    """
    num_own, num_all = layout.counts[layout.rank], layout.num_rows
    for name, shape in (
        ("positive_keys", (num_own,)),
        ("ignored_keys", (num_own,)),
        ("weights", (num_own,)),
        ("ignored", (num_own, num_all)),
    ):
        value = getattr(pairs, name)
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"pairs.{name} must be {shape}, got {tuple(value.shape)}")
    limit = pairs.max_text_similarity
    if limit is not None and not -1 <= limit <= 1:
        raise ValueError(f"max_text_similarity must be in [-1, 1], got {limit}")
    own = layout.own

    def gathered(keys: Tensor | None) -> Tensor | None:
        return None if keys is None else layout.gather(keys.to(like.device, torch.int64).contiguous())

    keys, ignored_keys = gathered(pairs.positive_keys), gathered(pairs.ignored_keys)
    if pairs.weights is None:
        weights = like.new_full((num_all,), layout.num_ranks / (2 * max(num_all, 1)))
    else:
        weights = layout.gather(pairs.weights.detach().to(like).contiguous())
        smallest = torch.finfo(like.dtype).tiny
        weights = weights * (layout.num_ranks / 2) / weights.sum().clamp(min=smallest)
    return PairLabels(
        row_weights=weights[own],
        column_weights=weights,
        diagonal=own.start,
        row_keys=None if keys is None else keys[own],
        column_keys=keys,
        row_ignored_keys=None if ignored_keys is None else ignored_keys[own],
        column_ignored_keys=ignored_keys,
        ignored=None if pairs.ignored is None else pairs.ignored.to(like.device, torch.bool).contiguous(),
        # Cosines of equal texts are above 1 by rounding.
        max_text_similarity=None if limit == 1 else limit,
    )


def of_images_alone(labels: PairLabels) -> PairLabels:
    """Labels of a loss that has only the images as anchors, each with its whole weight."""
    return dataclasses.replace(
        labels,
        row_weights=labels.row_weights * 2,
        column_weights=torch.zeros_like(labels.column_weights),
    )


def with_softmax_targets(
    labels: PairLabels,
    text_features: Tensor,
    layout: RowLayout,
    exchange: ExchangeName,
    *,
    label_smoothing: float,
    num_extra: int,
) -> PairLabels:
    """Add targets: `1 - label_smoothing` spread evenly over the positives of a row or column, the rest over
    all.

    Args:
        labels: of this rank's images.
        text_features: (N, D), this rank's, which may leave pairs out.
        layout: where the pairs are.
        exchange: how text features travel.
        label_smoothing: in [0, 1).
        num_extra: columns that each row has besides, for its own negative texts.
    """
    share = torch.full_like(labels.column_weights, 1 - label_smoothing)
    if labels.column_keys is not None:
        _, inverse, counts = torch.unique(labels.column_keys, return_inverse=True, return_counts=True)
        share = share / counts[inverse]
    row_uniform, column_uniform = None, None
    if label_smoothing:
        kept_in_row, kept_in_column = _num_kept(labels, text_features.detach(), layout, exchange)
        row_uniform = labels.row_weights * label_smoothing / (kept_in_row + num_extra)
        column_uniform = labels.column_weights * label_smoothing / kept_in_column
    targets = Targets(
        row_positive=labels.row_weights * share[layout.own],
        column_positive=labels.column_weights * share,
        row_uniform=row_uniform,
        column_uniform=column_uniform,
    )
    return dataclasses.replace(labels, targets=targets)


def _num_kept(
    labels: PairLabels, texts: Tensor, layout: RowLayout, exchange: ExchangeName, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """How many columns count in each row, and how many rows, of all ranks, in each column."""
    num_rows, num_columns = labels.shape
    in_row = torch.full_like(labels.row_weights, num_columns)
    in_column = torch.full_like(labels.column_weights, num_rows)

    def visit(block: Tensor, place: slice) -> None:
        for start in range(0, num_rows, chunk):
            rows = slice(start, start + chunk)
            kept = labels.tile(rows, place).without_similar_texts(texts[rows], block).kept()
            assert kept is not None
            in_row[rows] += kept.sum(1)
            in_column[place] += kept.sum(0)

    if labels.can_be_ignored:
        in_row.zero_()
        in_column.zero_()
        if labels.max_text_similarity is None:
            visit(texts, slice(0, num_columns))  # without a look at texts, which need not travel
        else:
            EXCHANGES[exchange](texts.contiguous(), layout, visit)
    return in_row, all_reduce_sum(in_column, layout.group)
