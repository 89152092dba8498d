"""Time and memory of the contrastive losses against open_clip's and, on a GPU, Inf-CL's.

    python benchmarks/loss.py                     # what this machine can do: the CPU parts, or the GPU part
    python benchmarks/loss.py --parts cpu ranks

Forward and backward on random features; contestants take turns in one process, pinned to as many threads.
Ratios are those of the same turn. Memory is the rise of the resident set's peak over its level with the
features there (on a GPU: of the allocator's), in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from report import write_result
from torch import Tensor

from clipkit.distributed import make_group
from clipkit.losses import clip_loss, siglip_loss

EMBED_DIM = 512
SCALE, BIAS = 1 / 0.07, -10.0
Run = Callable[[], Tensor]


def features(
    num_pairs: int, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Image and text features with a shared part, as leaves, then logit scale and bias."""
    generator = torch.Generator(device).manual_seed(seed)
    image, noise = (torch.randn(num_pairs, EMBED_DIM, device=device, generator=generator) for _ in range(2))
    pair = [F.normalize(x, dim=-1).to(dtype).requires_grad_() for x in (image, image + 2 * noise)]
    return [*pair, *(torch.tensor(v, device=device, requires_grad=True) for v in (SCALE, BIAS))]


def contestants(objective: str, inputs: list[Tensor]) -> dict[str, Run]:
    """Losses on one device by name; the first is ours."""
    from open_clip.loss import ClipLoss, SigLipLoss

    image, text, scale, bias = inputs
    kernel = "triton" if image.is_cuda else "tiled"
    if objective == "softmax":
        theirs = ClipLoss()
        runs: dict[str, Run] = {
            f"clipkit {kernel}": lambda: clip_loss(image, text, scale, kernel=kernel),
            "open_clip ClipLoss": lambda: theirs(image, text, scale),
        }
        if image.is_cuda and importlib.util.find_spec("inf_cl"):
            from inf_cl import cal_flash_loss

            runs["inf_cl flash"] = lambda: (
                (cal_flash_loss(image, text, scale=scale) + cal_flash_loss(text, image, scale=scale)).mean()
                / 2
            )
        return runs
    theirs = SigLipLoss()
    runs = {
        f"clipkit {kernel}": lambda: siglip_loss(image, text, scale, bias, kernel=kernel),
        "open_clip SigLipLoss": lambda: theirs(image, text, scale, bias),
    }
    if "chunk_size" in inspect.signature(SigLipLoss).parameters:
        chunked = SigLipLoss(chunk_size=1024)
        runs["open_clip SigLipLoss, chunk_size 1024"] = lambda: chunked(image, text, scale, bias)
    return runs


def step_seconds(run: Run, inputs: list[Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    for tensor in inputs:
        tensor.grad = None
    began = time.perf_counter()
    run().backward()
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_rise(run: Run, inputs: list[Tensor]) -> int:
    """Bytes by which one forward and backward pass raises the peak of this process, or of its GPU."""
    if inputs[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step_seconds(run, inputs)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    step_seconds(run, inputs)
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def memory_alone(objective: str, name: str, num_pairs: int) -> int:
    """`peak_rise` of a contestant in a fresh process, which has warmed up on a small batch."""
    command = [sys.executable, __file__, "--memory-of", objective, name, str(num_pairs)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_memory_of(objective: str, name: str, num_pairs: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for size in (256, num_pairs):
        inputs = features(size, device, torch.bfloat16 if device == "cuda" else torch.float32)
        rise = peak_rise(contestants(objective, inputs)[name], inputs)
    print(rise)


def compare(objective: str, num_pairs: int, repeats: int, inputs: list[Tensor]) -> list[str]:
    """Table rows of all contestants at one size; the first one's lead over each."""
    runs = contestants(objective, inputs)
    ours = next(iter(runs))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    failed: set[str] = set()
    for repeat in range(repeats + 1):
        for name in [name for name in runs if name not in failed]:
            try:
                took = step_seconds(runs[name], inputs)
            except torch.OutOfMemoryError:
                failed.add(name)
                torch.cuda.empty_cache()
                continue
            if repeat:  # the first turn warms up
                seconds[name].append(took)
    if inputs[0].is_cuda:
        torch.cuda.empty_cache()  # for the processes that measure memory
    memory = {name: memory_alone(objective, name, num_pairs) for name in runs if name not in failed}
    rows = []
    for name, took in seconds.items():
        if name in failed:
            rows.append(f"| {objective} | {num_pairs:,} | {name} | out of memory | | | |")
            continue
        ratios = [b / a for a, b in zip(seconds[ours], took, strict=True)]
        lead = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(
            f"| {objective} | {num_pairs:,} | {name} | {statistics.median(took):.3f} "
            f"({min(took):.3f} to {max(took):.3f}) | {'1' if name == ours else lead} "
            f"| {memory[name] / 2**20:,.0f} | {memory[name] / memory[ours]:.1f} |"
        )
    print("\n".join(rows), flush=True)
    return rows


COMPARISON_HEAD = (
    "| objective | pairs | loss | seconds (range) | times clipkit's (range) "
    "| MiB above features | times clipkit's |\n"
    "|---|---|---|---|---|---|---|\n"
)


def cpu_part(repeats: int) -> str:
    rows = []
    for objective in ("softmax", "sigmoid"):
        rows += compare(objective, 16_384, repeats, features(16_384))
    return (
        f"## Against open_clip\n\nfp32, D = {EMBED_DIM}, {torch.get_num_threads()} threads, forward and "
        f"backward, median of {repeats} interleaved turns.\n\n{COMPARISON_HEAD}" + "\n".join(rows) + "\n"
    )


def scaling_part() -> str:
    """Ours alone: time over N squared and memory over N."""
    rows = []
    for objective in ("softmax", "sigmoid"):
        for num_pairs in (2_048, 4_096, 8_192, 16_384, 32_768):
            inputs = features(num_pairs)
            name, run = next(iter(contestants(objective, inputs).items()))
            repeats = 5 if num_pairs <= 8_192 else 3
            took = statistics.median(step_seconds(run, inputs) for _ in range(repeats))
            memory = memory_alone(objective, name, num_pairs)
            rows.append(
                f"| {objective} | {num_pairs:,} | {took:.3f} | {took / num_pairs**2 * 1e9:.1f} "
                f"| {memory / 2**20:,.0f} | {memory / num_pairs / 1024:.1f} |"
            )
            print(rows[-1], flush=True)
    return (
        "## Growth of clipkit tiled\n\n"
        "| objective | pairs | seconds | ns / pairs² | MiB above features | KiB / pair |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


RANK_SETTINGS = {
    # name: ranks, scope, group size, kernel, exchange
    "1 rank": (1, "world", None, "tiled", "ring"),
    "2 ranks, ring, tiled": (2, "world", None, "tiled", "ring"),
    "3 ranks, ring, tiled": (3, "world", None, "tiled", "ring"),
    "4 ranks, ring, tiled": (4, "world", None, "tiled", "ring"),
    "4 ranks, gather, tiled": (4, "world", None, "tiled", "gather"),
    "4 ranks, gather, dense": (4, "world", None, "dense", "gather"),
    "4 ranks in groups of 2, gather, tiled": (4, "group", 2, "tiled", "gather"),
    "4 ranks, open_clip local_loss + gather_with_grad": (4, "world", None, "open_clip", "gather"),
}
ROWS_PER_RANK = 4_096


def ranks_part() -> str:
    rows = []
    for name, (num_ranks, *_) in RANK_SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            before = _loopback_bytes()
            ranks = [
                subprocess.Popen(
                    [sys.executable, __file__, "--rank-of", name, str(rank), folder],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                for rank in range(num_ranks)
            ]
            outputs = [rank.communicate()[0].split() for rank in ranks]
            total = _loopback_bytes() - before
        memory, seconds = max(int(o[-2]) for o in outputs), max(float(o[-1]) for o in outputs)
        rows.append(
            f"| {name} | {num_ranks * ROWS_PER_RANK:,} | {memory / 2**20:,.0f} "
            f"| {total / num_ranks / 2**20:,.1f} | {seconds:.2f} |"
        )
        print(rows[-1], flush=True)
    return (
        f"## Over gloo ranks\n\nSoftmax, fp32, D = {EMBED_DIM}, {ROWS_PER_RANK:,} pairs on every rank, one "
        "thread a rank; ranks share the cores, so seconds are no more than an order of size. Received: all "
        "bytes through the loopback interface during the job, divided by the number of ranks.\n\n"
        "| setting | pairs of all ranks | MiB above features, a rank | MiB received, a rank | seconds |\n"
        "|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def run_rank(name: str, rank: int, folder: str) -> None:
    num_ranks, scope, group_size, kernel, exchange = RANK_SETTINGS[name]
    torch.set_num_threads(1)
    if num_ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    group = make_group(scope, group_size)

    def loss(inputs: list[Tensor]) -> Tensor:
        image, text, scale, _ = inputs
        if kernel == "open_clip":
            from open_clip.loss import ClipLoss

            theirs = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=num_ranks)
            return theirs(image, text, scale)
        return clip_loss(image, text, scale, group=group, kernel=kernel, exchange=exchange)

    for size in (256, ROWS_PER_RANK):
        inputs = features(size, seed=rank)
        began = time.perf_counter()
        rise = peak_rise(lambda inputs=inputs: loss(inputs), inputs)
        seconds = time.perf_counter() - began
    print(rise, seconds)


def _loopback_bytes() -> int:
    (line,) = [
        line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")
    ]
    return int(line.split()[1])


def gpu_part(repeats: int) -> str:
    rows = []
    for objective, num_pairs in (("softmax", 16_384), ("softmax", 65_536), ("sigmoid", 65_536)):
        rows += compare(objective, num_pairs, repeats, features(num_pairs, "cuda", torch.bfloat16))
    inputs = features(524_288, "cuda", torch.bfloat16)
    run = contestants("softmax", inputs)["clipkit triton"]
    step_seconds(run, inputs)
    large = f"524,288 pairs: {step_seconds(run, inputs):.2f} s, {peak_rise(run, inputs) / 2**30:.2f} GiB\n"
    return (
        f"## On a GPU\n\nbf16 features, D = {EMBED_DIM}, median of {repeats} interleaved turns.\n\n"
        + COMPARISON_HEAD
        + "\n".join(rows)
        + f"\n\n{large}\n{_gpu_accuracy()}"
    )


def _gpu_accuracy() -> str:
    """Distance of gradients from those of the same features in fp64."""
    lines = []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = features(65_536, "cuda", dtype)
        exact = [x.detach().double().requires_grad_() for x in inputs]
        clip_loss(*inputs[:3], kernel="triton").backward()
        clip_loss(*exact[:3], kernel="tiled").backward()
        errors = [
            float((a.grad.double() - b.grad).norm() / b.grad.norm())
            for a, b in zip(inputs[:3], exact[:3], strict=True)
        ]
        lines.append(f"Relative error of gradients (image, text, scale) in {dtype}: {errors}")
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = ["gpu"] if torch.cuda.is_available() else ["cpu", "scaling", "ranks"]
    parser.add_argument("--parts", nargs="+", choices=("cpu", "scaling", "ranks", "gpu"), default=usual)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--rank-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        objective, name, num_pairs = arguments.memory_of
        print_memory_of(objective, name, int(num_pairs))
        return
    if arguments.rank_of:
        name, rank, folder = arguments.rank_of
        run_rank(name, int(rank), folder)
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    parts: dict[str, Callable[[], str]] = {
        "cpu": lambda: cpu_part(arguments.repeats),
        "scaling": scaling_part,
        "ranks": ranks_part,
        "gpu": lambda: gpu_part(arguments.repeats),
    }
    body = "\n".join(parts[name]() for name in arguments.parts)
    command: Sequence[str] = ["benchmarks/loss.py", *sys.argv[1:]]
    write_result("loss", "Contrastive losses", body, command=command)


if __name__ == "__main__":
    main()
