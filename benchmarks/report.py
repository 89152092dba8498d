"""Result files: what was measured, with which command, versions and hardware."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "webdataset", "numpy", "pillow")


def processor() -> str:
    """Model name and number of usable cores, with the vector instructions that decide CPU speed."""
    name, flags = platform.processor(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(
            (part.strip() for part in line.split(":", 1))
            for line in info.read_text().splitlines()
            if ":" in line
        )
        name, flags = fields.get("model name", name), fields.get("flags", "")
    found = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags.split()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores ({', '.join(found)})"


def write_result(name: str, title: str, body: str, *, command: Sequence[str]) -> Path:
    """Write `results/NAME_cpuN_DATE.md` and print it; returns the path."""
    import torch

    accelerator = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "none"
    hardware = f"cpu{len(os.sched_getaffinity(0))}" if accelerator == "none" else accelerator
    today = datetime.date.today().isoformat()
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    text = (
        f"# {title}\n\n"
        f"- command: `python {' '.join(command)}`\n"
        f"- date: {today}\n"
        f"- processor: {processor()}; accelerator: {accelerator}\n"
        f"- versions: Python {platform.python_version()}, {versions}, clipkit {version('clipkit')}\n\n{body}"
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}_{hardware}_{today}.md"
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
    print(text)
    return path
