"""Tensors out of checkpoint files, and into a model; a file of another architecture is named as one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]

# What DistributedDataParallel, torch.compile and DualEncoder put before open_clip's names.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.")
_NUM_NAMED = 3


def read_tensors(path: Path, wanted: Callable[[str], bool] | None = None) -> Tensors:
    """The state dict in a file, on the CPU, under open_clip's names (wrapper prefixes are taken off).

    Args:
        path: `.safetensors`, or a file of `torch.save` whose state dict is flat or under "state_dict".
        wanted: given a name as it stands in the file without wrapper prefixes, whether to read it. The
            other tensors of a safetensors file are never read; those of a torch file stay on disk.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds something else than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    tensors = _read_safetensors(path, wanted) if path.suffix == ".safetensors" else _read_torch(path, wanted)
    if not tensors:
        raise ValueError(f"{path} holds none of the tensors asked for")
    return tensors


def _read_safetensors(path: Path, wanted: Callable[[str], bool] | None) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = without_wrappers({name: name for name in file.keys()})  # noqa: SIM118
            return {name: file.get_tensor(key) for name, key in names.items() if not wanted or wanted(name)}
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from None


def _read_torch(path: Path, wanted: Callable[[str], bool] | None) -> Tensors:
    try:
        content = _torch_load(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{path} is damaged or holds more than tensors (weights_only): {reason}") from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds no state dict but a {type(state).__name__}")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    named = without_wrappers(tensors)
    return {name: tensor for name, tensor in named.items() if not wanted or wanted(name)}


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # written before torch 1.6: cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def without_wrappers(named: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with every prefix gone that all the names share and a wrapper put there."""
    result = dict(named)
    for _ in range(len(_WRAPPER_PREFIXES)):
        for prefix in _WRAPPER_PREFIXES:
            if result and all(name.startswith(prefix) for name in result):
                result = {name.removeprefix(prefix): value for name, value in result.items()}
    return result


def config_for_tensors(model_cfg: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The config, completed by what the tensors of a checkpoint say beyond doubt.

    open_clip's trainer takes some switches as flags that no config file records: `text.*` names mean
    `custom_text`, a stored `logit_bias` means that there is one, a logit scale of shape (1,) is non-scalar.
    """
    completed = dict(model_cfg)
    own_text = not model_cfg["text_cfg"].get("hf_model_name")
    if own_text and any(name.startswith("text.") for name in tensors):
        completed["custom_text"] = True
    if "logit_bias" in tensors and completed.get("init_logit_bias") is None:
        completed["init_logit_bias"] = float(tensors["logit_bias"].float().mean())
    return completed


def load_weights(model: nn.Module, tensors: Tensors, origin: str) -> None:
    """Copy a state dict into the model, all of it, in the model's precision.

    Args:
        model: an open_clip model, whole or one tower of it.
        tensors: open_clip's names; the older flat names of a custom text tower are understood too.
        origin: what the tensors came from, for the message.

    Raises:
        ValueError: names or shapes differ; the first differences are named with both shapes.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    tensors = convert_state_dict(model, dict(tensors))
    if hasattr(model, "text"):
        tensors = convert_to_custom_text_state_dict(tensors)
    expected = model.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in tensors and name in expected and tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(expected[name].shape)
    # Index buffers that transformers once stored.
    tensors = {name: value for name, value in tensors.items() if not name.endswith("embeddings.position_ids")}
    problem = differences(expected, tensors)
    if problem:
        raise ValueError(f"{origin} is of another architecture than its config says: {problem}")
    model.load_state_dict(tensors)


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What differs between two state dicts in names and shapes, in one line; empty where nothing does."""
    shared = [name for name in expected if name in found and expected[name].shape != found[name].shape]
    shapes = [f"{name} is {tuple(found[name].shape)}, not {tuple(expected[name].shape)}" for name in shared]
    parts = [_first(shapes, "tensor(s) differ in shape")]
    parts.append(_first([name for name in expected if name not in found], "missing"))
    parts.append(_first([name for name in found if name not in expected], "unexpected"))
    return "; ".join(part for part in parts if part)


def _first(items: list[str], what: str) -> str:
    if not items:
        return ""
    more = ", ..." if len(items) > _NUM_NAMED else ""
    return f"{len(items)} {what} ({', '.join(items[:_NUM_NAMED])}{more})"
