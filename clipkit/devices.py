"""The device of this process, the job that it belongs to, and the precision of its towers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipkit import distributed

AUTOCAST_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_log = logging.getLogger(__name__)


def join() -> torch.device:
    """Join the process group that torchrun describes, if any; returns this process's device."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", distributed.local_rank())
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend)
    return device


@contextmanager
def process_group() -> Iterator[torch.device]:
    """`join` for the duration of a block; leaves a group alone that others have made."""
    was_initialized = dist.is_initialized()
    device = join()
    try:
        yield device
    finally:
        if dist.is_initialized() and not was_initialized:
            dist.destroy_process_group()


def autocast_of(precision: str, device: torch.device) -> torch.autocast:
    """The context in which towers run; fp32 leaves everything as it is."""
    dtype = AUTOCAST_DTYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


@contextmanager
def trained_attention(precision: str, device: torch.device) -> Iterator[None]:
    """Around forward and backward: on a CPU in low precision the plain attention, else whatever torch takes.

    There the backward pass of torch's fused attention takes 3 to 14 times that of the plain one (torch 2.14,
    bf16, 40 to 67 tokens, heads of 32 and 192). The plain one keeps the weights of all heads,
    `batch x heads x length x length` numbers a block.
    """
    if device.type != "cpu" or precision == "fp32":
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


def warn_if_emulated(precision: str, device: torch.device) -> None:
    """Say so where a low precision is slower than fp32, because the CPU has no instructions for it."""
    is_native = precision == "fp32" or (precision == "bf16" and has_bf16_instructions())
    if device.type == "cpu" and not is_native and distributed.rank() == 0:
        _log.warning(
            "this CPU has no %s instructions: autocast runs about 9 times slower than fp32 here; "
            "leave the precision at fp32",
            precision,
        )


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bf16 matrices itself (AVX512-BF16, AMX, or BF16 of ARM)."""
    if not hasattr(torch.cpu, "get_capabilities"):  # older torch
        return bool(torch.cpu._is_avx512_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
