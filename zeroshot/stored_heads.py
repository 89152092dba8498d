"""Zero-shot heads that were computed elsewhere: a vector for each class, and the names of the classes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .classifier import Classifier, PromptSet
from .classnames import checked_class_names

SUFFIXES = (".npz", ".npy", ".safetensors")


def is_head_file(location: str) -> bool:
    """Whether a head is meant that lies in a file of its own; else it is a name in a model directory."""
    return location.endswith(SUFFIXES) or any(f"{suffix}:" in location for suffix in SUFFIXES)


def read_head(location: str, *, names: Path | None = None, embed_dim: int | None = None) -> Classifier:
    """Read a head; its rows are normalised in fp32, whatever their type in the file.

    Args:
        location: `.npy`, or `.npz` and `.safetensors`, with `:ARRAY` behind it where the file holds several.
            The array is (C, D) of a floating-point type, a row for each class.
        names: C names, a line each in a `.txt`, or in a `.json` as a list, or as an object that has such a
            list under the name of the array or under `classnames`. By default the file with the name of the
            head and one of these endings.
        embed_dim: D of the model that the head is for.

    Returns:
        A classifier whose prompts are the names.

    Raises:
        ValueError: the file is damaged or ambiguous, names and rows do not fit, a row has no direction, or
            the head is of another width than `embed_dim`.
        OSError: a file cannot be read.
    """
    path, array = _parts(location)
    found, array = _choose(_read_arrays(path), array, path)
    place = _names_beside(path) if names is None else names
    class_names = _read_names(place, array)
    rows = _checked_rows(found, len(class_names), location, place)
    if embed_dim is not None and rows.shape[1] != embed_dim:
        raise ValueError(
            f"{location} holds features of width {rows.shape[1]}, the model's have width {embed_dim}; "
            "a head serves the model that it was made with"
        )
    weights = F.normalize(rows, dim=-1)
    return Classifier(
        prompt_set=PromptSet(
            class_names=class_names,
            prompts=class_names,
            class_of_prompt=torch.arange(len(class_names)),
            shown=class_names,
            renormalize=True,
        ),
        prompt_features=weights,
        weights=weights,
    )


def _parts(location: str) -> tuple[Path, str]:
    """The file, and the name of the array, empty where none is given."""
    for suffix in SUFFIXES:
        file, found, array = location.partition(f"{suffix}:")
        if found:
            return Path(f"{file}{suffix}").expanduser(), array
    if not location.endswith(SUFFIXES):
        raise ValueError(f"a head is a file of {', '.join(SUFFIXES)}, with :ARRAY if need be, got {location}")
    return Path(location).expanduser(), ""


def _read_arrays(path: Path) -> dict[str, Tensor]:
    """All arrays of a file by name; the one of a `.npy` has none."""
    if not path.is_file():
        raise FileNotFoundError(f"no stored head at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no readable safetensors file: {error}") from None
    try:
        with path.open("rb") as stream:
            content: Any = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return {"": _tensor(content)}
            return {name: _tensor(content[name]) for name in content.files}
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable {path.suffix} of numbers: {error}") from None


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    # torch takes only the byte order of the machine.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _choose(arrays: Mapping[str, Tensor], array: str, path: Path) -> tuple[Tensor, str]:
    if array in arrays:
        return arrays[array], array
    if not array and len(arrays) == 1:
        ((name, only),) = arrays.items()
        return only, name
    there = ", ".join(sorted(name for name in arrays if name)) or "one without a name"
    wanted = f"has no array {array!r}" if array else "needs the name of an array"
    raise ValueError(f"{path} {wanted}: give {path.name}:ARRAY, of {there}")


def _names_beside(path: Path) -> Path:
    for suffix in (".json", ".txt"):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise FileNotFoundError(
        f"the class names of {path} are missing: write them to {path.with_suffix('.txt').name} beside it, "
        "one a line, in the order of the rows"
    )


def _read_names(path: Path, array: str) -> tuple[str, ...]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix != ".json":
        return checked_class_names([line.strip() for line in text.splitlines()], str(path))
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} does not parse as JSON: {error}") from None
    if isinstance(content, Mapping):
        content = content.get(array, content.get("classnames"))
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        under = f"{array!r} or 'classnames'" if array else "'classnames'"
        raise ValueError(f"{path} must hold a list of class names, or have one under {under}")
    return checked_class_names(content, str(path))


def _checked_rows(found: Tensor, num_names: int, location: str, names: Path) -> Tensor:
    """(C, D) fp32, of a size whose square is in the range of fp32."""
    if found.ndim != 2 or not found.is_floating_point():
        raise ValueError(
            f"{location} must hold a row of floating-point numbers for each class, got {tuple(found.shape)} "
            f"of {str(found.dtype).removeprefix('torch.')}"
        )
    if found.shape[0] != num_names:
        turned = "; it is turned: transpose it" if found.shape[1] == num_names else ""
        raise ValueError(f"{location} has {found.shape[0]} rows for the {num_names} names in {names}{turned}")
    rows = found.float()
    bad = ~rows.isfinite().all(dim=1) | ~rows.any(dim=1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"{location}: row {row} is zero or not finite, so it has no direction")
    return rows / rows.abs().amax(dim=1, keepdim=True)
