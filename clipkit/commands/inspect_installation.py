"""What clipkit runs on here: versions, processor, accelerators, and combinations known to be broken."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from clipkit.version import __version__

_PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "webdataset",
    "numpy",
    "pillow",
    "pyarrow",
    "faiss-cpu",
    "faiss-gpu",
    "xformers",
)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def facts() -> dict[str, Any]:
    """Versions and hardware; `problems` says in words what is broken."""
    import torch

    versions = {name: _version(name) for name in _PACKAGES}
    devices = range(torch.cuda.device_count())
    return {
        "clipkit": __version__,
        "python": platform.python_version(),
        "packages": versions,
        "cpu": {"name": _cpu_field("model name"), "cores": os.cpu_count(), "flags": _cpu_flags()},
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(device) for device in devices],
        "cuda": torch.version.cuda,
        "problems": _problems(versions),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _problems(versions: dict[str, str | None]) -> list[str]:
    if versions["faiss-cpu"] and versions["faiss-gpu"]:
        return [
            "faiss-cpu and faiss-gpu are both installed and overwrite each other's files: "
            "pip uninstall faiss-cpu faiss-gpu, then install one of clipkit[cpu] and clipkit[gpu]"
        ]
    return []


def _cpu_field(name: str) -> str:
    """A line of /proc/cpuinfo, empty on other systems."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def _cpu_flags() -> list[str]:
    present = _cpu_field("flags").split()
    return [flag for flag in _CPU_FLAGS if flag in present]


def render(facts: dict[str, Any]) -> Iterator[RenderableType]:
    """A table for a terminal."""
    table = Table(show_header=False, title="installation")
    table.add_row("clipkit", facts["clipkit"])
    table.add_row("python", facts["python"])
    for name, version in facts["packages"].items():
        table.add_row(name, version or "not installed")
    cpu = facts["cpu"]
    table.add_row("processor", f"{cpu['name'] or 'unknown'}, {cpu['cores']} cores ({' '.join(cpu['flags'])})")
    table.add_row("GPUs", ", ".join(facts["gpus"]) or "none")
    yield table
    for problem in facts["problems"]:
        yield Text(f"broken: {problem}", style="bold red")
