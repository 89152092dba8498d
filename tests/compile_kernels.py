"""Compile the Triton kernels for GPUs that need not be there; prints how often each uses tensor cores.

python tests/compile_kernels.py
"""

from __future__ import annotations

import json
import os

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clipkit.losses.kernels import triton_kernels
from clipkit.losses.kernels.triton_tiles import TritonTiles

KERNELS = {
    triton_kernels.power_sums_kernel: "HAS_UNIFORM",
    triton_kernels.softmax_gradient_kernel: "HAS_UNIFORM",
    triton_kernels.sigmoid_kernel: "WITH_GRADIENT",
}
SETTINGS = ((90, "bf16", False), (90, "bf16", True), (90, "fp32", False), (80, "bf16", False))
POINTERS = {
    "row_keys": "*i64",
    "column_keys": "*i64",
    "row_ignored_keys": "*i64",
    "column_ignored_keys": "*i64",
    "ignored": "*i1",
}
NUMBERS = dict.fromkeys(("image_stride", "text_stride", "R", "C", "D", "diagonal", "ignored_stride"), "i32")
ALIGNED = {"image", "text", "gradient", "image_stride", "text_stride", "R", "C", "D"}


def compile_kernel(kernel: triton.JITFunction, dtype: str, capability: int, flags: dict[str, bool]) -> str:
    """PTX of a kernel for features of a dtype."""
    settings = TritonTiles.settings(is_half=dtype != "fp32", is_cuda=True)
    options = {name: settings.pop(name) for name in ("num_warps", "num_stages")}
    constants = {**settings, **flags}
    features = dict.fromkeys(("image", "text", "gradient"), f"*{dtype}")
    known = {**POINTERS, **NUMBERS, **features, "smoothing": "fp32"}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else known.get(name, "*fp32") for name in names}
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in names if name in ALIGNED},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]


def main() -> None:
    """One JSON line a kernel."""
    for capability, dtype, has_labels in SETTINGS:
        for kernel, own_flag in KERNELS.items():
            flags = dict.fromkeys(("HAS_KEYS", "HAS_IGNORED_KEYS", "HAS_IGNORED"), has_labels)
            ptx = compile_kernel(kernel, dtype, capability, {**flags, own_flag: has_labels})
            instruction = "wgmma.mma_async" if capability == 90 else "mma.sync"
            row = {"kernel": kernel.__name__, "dtype": dtype, "capability": capability, "labels": has_labels}
            print(json.dumps({**row, "tensor_core_instructions": ptx.count(instruction)}))


if __name__ == "__main__":
    main()
