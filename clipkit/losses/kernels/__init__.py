"""Contrastive losses computed tile by tile, without ever holding all logits."""

from __future__ import annotations

from typing import Literal

import torch

from clipkit.losses.kernels.tiles import TileKernel

KernelName = Literal["auto", "dense", "tiled", "triton"]

ResolvedKernel = Literal["dense", "tiled", "triton"]
TiledName = Literal["tiled", "triton"]

TILE_SIZES = {"tiled": 1280, "triton": 16_384}
"""Rows and columns of the largest tile. One takes 6.25 MiB in fp32, one of Triton 512 MiB in bf16."""

MAX_DENSE_LOGITS = 1024 * 1024
"""Up to here all logits at once are as fast as tiles, and small."""


def choose_kernel(
    kernel: KernelName, device: torch.device, dtype: torch.dtype, *, num_rows: int, num_columns: int
) -> ResolvedKernel:
    """The kernel for features of a dtype on a device, and that many logits; `auto` picks.

    Raises:
        ValueError: the device cannot run the kernel, or there is none of that name.
    """
    if kernel == "auto":
        if num_rows * num_columns <= MAX_DENSE_LOGITS:
            return "dense"
        return "tiled" if _why_not_triton(device, dtype) else "triton"
    if kernel not in ("dense", "tiled", "triton"):
        raise ValueError(f"unknown kernel {kernel!r}; choose from auto, dense, tiled, triton")
    if kernel == "triton" and (reason := _why_not_triton(device, dtype)):
        raise ValueError(f"kernel 'triton' {reason}; use 'tiled' or 'auto'")
    return kernel


def make_kernel(kernel: TiledName) -> TileKernel:
    """A fresh kernel with its buffers."""
    if kernel == "triton":
        from clipkit.losses.kernels.triton_tiles import TritonTiles

        return TritonTiles(TILE_SIZES[kernel])
    from clipkit.losses.kernels.torch_tiles import TorchTiles

    return TorchTiles(TILE_SIZES[kernel])


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps the Triton kernels from running there, if anything."""
    if dtype not in (torch.bfloat16, torch.float32):
        # The gradient of a logit, of the order of one over the square of the batch, is too small for fp16.
        return f"needs features in bf16 or fp32, got {dtype}"
    try:
        from triton import knobs
    except ImportError:
        return "needs the package triton, which is not installed"
    if knobs.runtime.interpret:
        return None
    if device.type != "cuda":
        return f"needs a CUDA device, got features on {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"needs compute capability 8.0, {torch.cuda.get_device_name(device)} has less"
    return None
