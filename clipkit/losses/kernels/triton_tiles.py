"""Large tiles on CUDA by fused Triton kernels: a small tile of logits lives in registers and is never
written.

The forward pass writes, for every small tile, the partial sums of its rows and columns: nothing is shared
between programs, so the result does not depend on their order. The backward pass writes the gradient of the
logits of one large tile, in the dtype of the features, and leaves the products with the features to the
vendor's library.

Logits and sums are fp32 for all inputs; fp32 inputs are multiplied in three TF32 passes, which keeps fp32
accuracy on tensor cores. Triton's interpreter runs the kernels on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from clipkit.losses.kernels import triton_kernels
from clipkit.losses.kernels.tiles import PowerSums
from clipkit.losses.pairs import PairLabels


class TritonTiles:
    """A `TileKernel` for bf16 and fp32 features on CUDA."""

    block = (128, 128, 64)
    """Rows, columns and depth of the small tiles."""

    def __init__(self, tile_size: int) -> None:
        self.tile_size = tile_size
        self._gradient: Tensor | None = None

    def power_sums(
        self, image: Tensor, text: Tensor, log2_scale: Tensor, labels: PairLabels
    ) -> tuple[PowerSums, PowerSums, Tensor]:
        """See `TileKernel`."""
        num_rows, num_columns = labels.shape
        tile_rows, tile_columns = self._num_tiles(labels)
        of_rows = [log2_scale.new_empty(tile_columns, num_rows) for _ in range(2)]
        of_columns = [log2_scale.new_empty(tile_rows, num_columns) for _ in range(2)]
        on_target = log2_scale.new_empty(tile_rows * tile_columns)
        _launch(
            triton_kernels.power_sums_kernel,
            tile_rows * tile_columns,
            *_features(image, text, log2_scale),
            *_labels(labels, image),
            *_targets_of(labels, image),
            *of_rows,
            *of_columns,
            on_target,
            **_has(labels),
            HAS_UNIFORM=_has_uniform(labels),
            **self._settings(image),
        )
        return _combine(*of_rows), _combine(*of_columns), on_target.sum()

    def softmax_gradient(
        self,
        image: Tensor,
        text: Tensor,
        log2_scale: Tensor,
        labels: PairLabels,
        sums: tuple[PowerSums, PowerSums],
        gradients: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """See `TileKernel`."""
        (row_sums, column_sums), (row_grad, column_grad, target_grad) = sums, gradients
        gradient = self._gradient_buffer(image, labels)
        tile_rows, tile_columns = self._num_tiles(labels)
        _launch(
            triton_kernels.softmax_gradient_kernel,
            tile_rows * tile_columns,
            *_features(image, text, log2_scale),
            *_labels(labels, image),
            *_targets_of(labels, image),
            row_sums.largest,
            row_grad / row_sums.total,
            column_sums.largest,
            column_grad / column_sums.total,
            target_grad,
            gradient,
            **_has(labels),
            HAS_UNIFORM=_has_uniform(labels),
            **self._settings(image),
        )
        return gradient

    def sigmoid(
        self,
        image: Tensor,
        text: Tensor,
        scale_and_bias: tuple[Tensor, Tensor],
        labels: PairLabels,
        *,
        label_smoothing: float,
        with_gradient: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """See `TileKernel`."""
        scale, bias = scale_and_bias
        tile_rows, tile_columns = self._num_tiles(labels)
        values, sums = (scale.new_empty(tile_rows * tile_columns) for _ in range(2))
        gradient = self._gradient_buffer(image, labels) if with_gradient else None
        _launch(
            triton_kernels.sigmoid_kernel,
            tile_rows * tile_columns,
            *_features(image, text, scale, bias),
            *_labels(labels, image),
            labels.row_weights,
            labels.column_weights,
            label_smoothing / 2,
            values,
            sums,
            image if gradient is None else gradient,
            **_has(labels),
            WITH_GRADIENT=with_gradient,
            **self._settings(image),
        )
        return values.sum(), None if gradient is None else (gradient, sums.sum())

    def add_product(self, target: Tensor, left: Tensor, right: Tensor) -> None:
        """See `TileKernel`."""
        if left.dtype == target.dtype:
            target.addmm_(left, right)
        elif left.is_cuda:
            target += torch.mm(left, right, out_dtype=target.dtype)
        else:
            target.addmm_(left.to(target.dtype), right.to(target.dtype))

    def _num_tiles(self, labels: PairLabels) -> tuple[int, int]:
        num_rows, num_columns = labels.shape
        return triton.cdiv(num_rows, self.block[0]), triton.cdiv(num_columns, self.block[1])

    def _gradient_buffer(self, image: Tensor, labels: PairLabels) -> Tensor:
        num_rows, num_columns = labels.shape
        if self._gradient is None or self._gradient.numel() < num_rows * num_columns:
            self._gradient = image.new_empty(num_rows * num_columns)
        return self._gradient[: num_rows * num_columns].view(num_rows, num_columns)

    def _settings(self, image: Tensor) -> dict[str, Any]:
        return self.settings(is_half=image.element_size() == 2, is_cuda=image.is_cuda)

    @classmethod
    def settings(cls, *, is_half: bool, is_cuda: bool) -> dict[str, Any]:
        """Constants of the kernels, and how to compile them."""
        block_rows, block_columns, block_depth = cls.block
        return {
            "BLOCK_R": block_rows,
            "BLOCK_C": block_columns,
            "BLOCK_D": block_depth if is_half else max(16, block_depth // 2),
            "PRECISION": "ieee" if is_half else "tf32x3",
            # The interpreter cannot multiply halves; the products of the same numbers in fp32 are the same.
            "UPCAST": is_half and not is_cuda,
            "num_warps": 8,
            "num_stages": 3,
        }


def _launch(kernel: Any, num_programs: int, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument, which need not be the current one."""
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        kernel[(num_programs,)](*arguments, **constants)


def _combine(largest: Tensor, total: Tensor) -> PowerSums:
    """Sums over a (tiles, count) grid of partial sums."""
    of_all = largest.amax(0)
    return PowerSums(of_all, (total * torch.exp2(largest - of_all)).sum(0))


def _features(image: Tensor, text: Tensor, *scalars: Tensor) -> tuple[Any, ...]:
    assert image.shape[1] == 1 or image.stride(1) == text.stride(1) == 1
    sizes = image.shape[0], text.shape[0], image.shape[1]
    return image, text, image.stride(0), text.stride(0), *scalars, *sizes


def _labels(labels: PairLabels, unused: Tensor) -> tuple[Any, ...]:
    """Keys and masks, with `unused` in the place of absent ones."""
    present = (
        labels.row_keys,
        labels.column_keys,
        labels.row_ignored_keys,
        labels.column_ignored_keys,
        labels.ignored,
    )
    keys = [unused if tensor is None else tensor for tensor in present]
    stride = 0 if labels.ignored is None else labels.ignored.stride(0)
    return *keys[:2], labels.diagonal, *keys[2:], stride


def _targets_of(labels: PairLabels, unused: Tensor) -> tuple[Tensor, ...]:
    t = labels.targets
    assert t is not None
    uniform = (unused if vector is None else vector for vector in (t.row_uniform, t.column_uniform))
    return t.row_positive, t.column_positive, *uniform


def _has(labels: PairLabels) -> dict[str, bool]:
    return {
        "HAS_KEYS": labels.row_keys is not None,
        "HAS_IGNORED_KEYS": labels.row_ignored_keys is not None,
        "HAS_IGNORED": labels.ignored is not None,
    }


def _has_uniform(labels: PairLabels) -> bool:
    return labels.targets is not None and labels.targets.row_uniform is not None
