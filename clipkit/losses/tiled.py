"""Losses whose memory grows with the batch, not with its square: tiles, computed again in the backward.

This rank scores its own images (rows) against the texts (columns) of its group. A tile of logits serves both
directions: its rows go into the image-to-text sums, its columns into the text-to-image ones, which are then
added up over the ranks. So only text features travel. An exact loss takes 8 N^2 D operations in all: 2 for
the sums; 2 again, 2 and 2 for the gradients. The sigmoid loss needs no sums and does without the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipkit.distributed import all_reduce_max, all_reduce_sum
from clipkit.exchange import EXCHANGES, ExchangeName, RowLayout
from clipkit.losses.kernels import TiledName, make_kernel
from clipkit.losses.kernels.tiles import CAST_ELEMENTS, LOG2_E, PowerSums, slices
from clipkit.losses.pairs import PairLabels


def _tiles(
    labels: PairLabels, texts: Tensor, block: Tensor, place: slice, size: int
) -> Iterator[tuple[slice, slice, PairLabels]]:
    """Tiles of a block of columns: their rows, their columns within the block, their labels.

    Args:
        labels: of all rows and columns.
        texts: those of the rows, this rank's.
        block: texts of the columns.
        place: of the block among all columns.
        size: of a tile.
    """
    for rows in slices(labels.shape[0], size):
        for columns in slices(block.shape[0], size):
            tile = labels.tile(rows, slice(place.start + columns.start, place.start + columns.stop))
            yield rows, columns, tile.without_similar_texts(texts[rows], block[columns])


class SoftmaxSums(torch.autograd.Function):
    """Log-sum-exps of the logits over each of this rank's rows and columns; the sum of target times logit.

    `apply(image_features (N, D), text_features (N, D), logit_scale (), labels, layout, kernel, exchange)`
    gives (N,), (N,) and (). The scale has the dtype to compute in.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        labels: PairLabels,
        layout: RowLayout,
        kernel_name: TiledName,
        exchange: ExchangeName,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Visit all tiles once."""
        kernel = make_kernel(kernel_name)
        image, text = image.contiguous(), text.contiguous()
        row_sums, column_sums = (PowerSums.empty(count, scale) for count in labels.shape)
        log2_scale, on_target = scale * LOG2_E, torch.zeros_like(scale)

        def visit(block: Tensor, place: slice) -> None:
            for rows, columns, tile in _tiles(labels, text, block, place, kernel.tile_size):
                of_rows, of_columns, part = kernel.power_sums(image[rows], block[columns], log2_scale, tile)
                row_sums.part(rows).add_(of_rows)
                column_sums.part(place).part(columns).add_(of_columns)
                on_target.add_(part)

        EXCHANGES[exchange](text, layout, visit)
        column_sums = _over_ranks(column_sums, layout)
        # Not the kernel: its buffers would live as long as the loss.
        ctx.labels, ctx.layout, ctx.kernel_name, ctx.exchange = labels, layout, kernel_name, exchange
        ctx.save_for_backward(
            image, text, scale, row_sums.largest, row_sums.total, column_sums.largest, column_sums.total
        )
        own = column_sums.part(layout.own)
        return row_sums.log2() / LOG2_E, own.log2() / LOG2_E, on_target / LOG2_E

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, row_grad: Tensor, own_column_grad: Tensor, target_grad: Tensor) -> tuple[Any, ...]:
        """Visit all tiles again."""
        image, text, scale, *sums = ctx.saved_tensors
        row_sums, column_sums = PowerSums(*sums[:2]), PowerSums(*sums[2:])
        labels, layout, kernel = ctx.labels, ctx.layout, make_kernel(ctx.kernel_name)
        # Each rank has differentiated its own columns; all of their rows are everywhere.
        column_grad = layout.gather(own_column_grad)
        image_grad = scale.new_zeros(image.shape)
        needs_text = ctx.needs_input_grad[1]

        def visit(block: Tensor, place: slice) -> Tensor | None:
            block_grad = scale.new_zeros(block.shape) if needs_text else None
            for rows, columns, tile in _tiles(labels, text, block, place, kernel.tile_size):
                gradient = kernel.softmax_gradient(
                    image[rows],
                    block[columns],
                    scale * LOG2_E,
                    tile,
                    (row_sums.part(rows), column_sums.part(place).part(columns)),
                    (row_grad[rows], column_grad[place][columns], target_grad),
                )
                kernel.add_product(image_grad[rows], gradient, block[columns])
                if block_grad is not None:
                    kernel.add_product(block_grad[columns], gradient.T, image[rows])
            return block_grad

        with torch.autocast(image.device.type, enabled=False):  # as in the forward, whatever surrounds this
            text_grad = EXCHANGES[ctx.exchange](text, layout, visit)
        scale_grad = _scale_gradients(image, image_grad, text_grad, scale)
        features = [None if g is None else g.to(image.dtype) for g in (image_grad, text_grad)]
        return *features, scale_grad, None, None, None, None


class SigmoidSum(torch.autograd.Function):
    """Weighted sum of the losses of all pairs in this rank's rows; its gradient comes in the same pass.

    `apply(image_features (N, D), text_features (N, D), logit_scale (), logit_bias (), labels, layout, kernel,
    exchange, label_smoothing)` gives (). The gradients, summed over ranks, are ready after the forward pass,
    so the backward must be given the same factor on every rank.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        labels: PairLabels,
        layout: RowLayout,
        kernel_name: TiledName,
        exchange: ExchangeName,
        label_smoothing: float,
    ) -> Tensor:
        """Visit all tiles once."""
        kernel = make_kernel(kernel_name)
        image, text = image.contiguous(), text.contiguous()
        value, bias_grad = torch.zeros_like(scale), torch.zeros_like(bias)
        with_gradient, needs_text = any(ctx.needs_input_grad), ctx.needs_input_grad[1]
        image_grad = scale.new_zeros(image.shape) if with_gradient else None

        def visit(block: Tensor, place: slice) -> Tensor | None:
            block_grad = scale.new_zeros(block.shape) if needs_text else None
            for rows, columns, tile in _tiles(labels, text, block, place, kernel.tile_size):
                part, result = kernel.sigmoid(
                    image[rows],
                    block[columns],
                    (scale, bias),
                    tile,
                    label_smoothing=label_smoothing,
                    with_gradient=with_gradient,
                )
                value.add_(part)
                if result is None or image_grad is None:
                    continue
                gradient, gradient_sum = result
                bias_grad.add_(gradient_sum)
                kernel.add_product(image_grad[rows], gradient, block[columns])
                if block_grad is not None:
                    kernel.add_product(block_grad[columns], gradient.T, image[rows])
            return block_grad

        text_grad = EXCHANGES[exchange](text, layout, visit)
        if image_grad is not None:
            scale_grad = _scale_gradients(image, image_grad, text_grad, scale)
            ctx.layout, ctx.dtype = layout, image.dtype
            ctx.save_for_backward(image_grad, text_grad, scale_grad, bias_grad)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, value_grad: Tensor) -> tuple[Any, ...]:
        """Scale the gradients that are there."""
        _check_same_on_all_ranks(value_grad, ctx.layout)
        gradients = ctx.saved_tensors
        if value_grad.device.type != "cpu" or value_grad != 1:  # a copy that the usual case can do without
            gradients = tuple(None if grad is None else grad * value_grad for grad in gradients)
        image_grad, text_grad, scale_grad, bias_grad = gradients
        features = [None if grad is None else grad.to(ctx.dtype) for grad in (image_grad, text_grad)]
        return *features, scale_grad, bias_grad, None, None, None, None, None


def _check_same_on_all_ranks(value_grad: Tensor, layout: RowLayout) -> None:
    if layout.num_ranks > 1:
        largest, minus_smallest = all_reduce_max(
            torch.stack([value_grad, -value_grad]), layout.group
        ).tolist()
        if largest != -minus_smallest:
            raise ValueError(
                "the sigmoid loss must count alike on all ranks, got factors from "
                f"{-minus_smallest:g} to {largest:g}; give pairs.weights instead"
            )


def _scale_gradients(image: Tensor, image_grad: Tensor, text_grad: Tensor | None, scale: Tensor) -> Tensor:
    """Turn gradients of unscaled products into those of the features, in place; returns that of the scale."""
    scale_grad = _inner_product(image, image_grad)
    image_grad *= scale
    if text_grad is not None:
        text_grad *= scale
    return scale_grad


def _over_ranks(sums: PowerSums, layout: RowLayout) -> PowerSums:
    """Add up the sums of all ranks; the collectives carry two numbers a column."""
    if layout.num_ranks == 1:
        return sums
    largest = all_reduce_max(sums.largest, layout.group)
    total = all_reduce_sum(sums.total * torch.exp2(sums.largest - largest), layout.group)
    return PowerSums(largest, total)


def _inner_product(left: Tensor, right: Tensor) -> Tensor:
    """Sum of the products of all entries, in the dtype of `right`; casts a few rows at a time."""
    num_rows = max(1, CAST_ELEMENTS // max(1, left.shape[1]))
    total = right.new_zeros(())
    for rows in slices(left.shape[0], num_rows):
        total += torch.dot(left[rows].to(right.dtype).flatten(), right[rows].flatten())
    return total
