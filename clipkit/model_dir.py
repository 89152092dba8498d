"""The model directory: what every part of clipkit takes, and open_clip loads without clipkit.

`docs/model-directory.md` describes each file. Writing is atomic; reading verifies the model id.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipkit.json_files import canonical_json, read_json
from clipkit.model_id import model_id
from clipkit.preprocess import PreprocessConfig
from clipkit.swap import replacing_directory
from clipkit.tokenizers import context_length_of, tokenizer_facts
from clipkit.version import __version__

if TYPE_CHECKING:
    from clipkit.regions.base import RegionHead

FORMAT_VERSION = 1
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
RECORD_NAME = "clipkit.json"
HEADS_NAME = "heads"


@dataclass(frozen=True, kw_only=True)
class ModelContents:
    """All that a model directory is made of."""

    tensors: Mapping[str, Tensor]
    """open_clip's state dict, any device."""
    model_cfg: Mapping[str, Any]
    preprocess: PreprocessConfig
    tokenizer: Any
    """An open_clip tokenizer."""
    text_model: Any = None
    """The transformers config of the text tower, where it is one; saved as `config.json`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Measured values by name, for the model card."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """JSON-ready facts on where the model comes from."""
    region_head: RegionHead | None = None
    region_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """The state dict of the region head, any device."""


def write_model_dir(path: Path, contents: ModelContents) -> str:
    """Write a model directory, in place of an older one if there is one, and return the model id.

    Raises:
        OSError: the disk is full or not writable; what was at `path` is untouched.
        ValueError: `path` holds something else than a model directory, or heads of other weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = _own_memory(contents.tensors)
    config = {"model_cfg": dict(contents.model_cfg), "preprocess_cfg": _preprocess_cfg(contents.preprocess)}
    record = _record(contents, tensors)
    heads = _kept_heads(path, record["model_id"])
    record["heads"] = sorted(head.stem for head in heads if head.suffix == ".json")
    with replacing_directory(path) as folder:
        try:
            save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"cannot write {path / WEIGHTS_NAME}: {error}") from None
        _write_json(folder / CONFIG_NAME, config)
        _write_json(folder / RECORD_NAME, record)
        if contents.model_cfg["text_cfg"].get("hf_tokenizer_name"):
            contents.tokenizer.save_pretrained(str(folder))
        if contents.text_model is not None:
            contents.text_model.save_pretrained(str(folder))
        for head in heads:
            target = folder / HEADS_NAME / head.name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(head.read_bytes())
        if contents.region_head is not None:
            from clipkit.regions.heads import write_region_head

            write_region_head(
                folder, contents.region_head, contents.region_tensors, model_id=str(record["model_id"])
            )
        (folder / "README.md").write_text(model_card(path.name, record, contents.metrics), encoding="utf-8")
    return str(record["model_id"])


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors sorted by name, floating ones in fp32, none sharing memory (safetensors refuses those)."""
    seen: set[int] = set()
    result = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        # Models are loaded in fp32, and so the id that is recorded is the id that the loaded model has.
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        shared = tensor.untyped_storage().data_ptr() in seen
        result[name] = tensor.clone() if shared else tensor
        seen.add(result[name].untyped_storage().data_ptr())
    return result


def _preprocess_cfg(preprocess: PreprocessConfig) -> dict[str, Any]:
    """The keys open_clip writes; it takes the size from the tower."""
    settings = preprocess.to_dict()
    keys = ["mean", "std", "interpolation", "resize_mode"]
    return {key: settings[key] for key in (*keys, *(["fill_color"] if settings["fill_color"] else []))}


def _record(contents: ModelContents, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    facts = tokenizer_facts(contents.tokenizer, contents.model_cfg["text_cfg"])
    preprocessing = contents.preprocess.to_dict()
    identity = model_id(
        tensors.items(), model_cfg=contents.model_cfg, preprocess_cfg=preprocessing, tokenizer=facts
    )
    versions = {
        "clipkit": __version__,
        "torch": torch.__version__,
        "open_clip": importlib.metadata.version("open_clip_torch"),
    }
    return {
        "format_version": FORMAT_VERSION,
        "model_id": identity,
        "embed_dim": contents.model_cfg["embed_dim"],
        "tokenizer": facts,
        "preprocessing": preprocessing,
        "heads": [],
        "provenance": {**versions, **contents.provenance},
    }


def _kept_heads(path: Path, identity: str) -> list[Path]:
    """Files of `heads/` to carry over: all of them while the weights are the same."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a model is saved as a directory")
    if not path.is_dir() or not any(path.iterdir()):
        return []
    if not (path / CONFIG_NAME).is_file():
        raise ValueError(f"{path} is not empty and no model directory: choose another path")
    # States of trainings that were cut are hidden, and stay behind.
    heads = sorted(head for head in (path / HEADS_NAME).glob("*") if not head.name.startswith("."))
    if heads and read_json(path / RECORD_NAME).get("model_id") != identity:
        from clipkit.regions.heads import NAME

        # A region head is a part of the model, and goes with the weights that are replaced.
        if any(head.stem != NAME for head in heads):
            raise ValueError(f"{path / HEADS_NAME} holds heads made for other weights: save to another path")
        return []
    return heads


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_config(path: Path) -> dict[str, Any]:
    """`open_clip_config.json` of a directory.

    Raises:
        FileNotFoundError: the directory has none.
        ValueError: it does not parse.
    """
    if not (path / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{path} is no model directory: it has no {CONFIG_NAME}")
    return read_json(path / CONFIG_NAME)


def read_record(path: Path) -> dict[str, Any] | None:
    """`clipkit.json` of a directory, None where clipkit did not write the directory.

    Raises:
        ValueError: it does not parse, lacks a field, or was written by a newer clipkit.
    """
    if not (path / RECORD_NAME).is_file():
        return None
    record = read_json(path / RECORD_NAME)
    version = record.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this clipkit reads up to {FORMAT_VERSION}: upgrade clipkit"
        )
    missing = [key for key in ("model_id", "embed_dim", "tokenizer", "preprocessing") if key not in record]
    if missing:
        raise ValueError(f"{path / RECORD_NAME} has no {', '.join(missing)}: the directory is damaged")
    return record


def verify(path: Path, record: Mapping[str, Any], model_cfg: Mapping[str, Any]) -> None:
    """Check the configs against each other and everything against the recorded model id.

    The weights are read tensor by tensor, so this costs no memory.

    Raises:
        ValueError: something was changed after the model was saved; what, where it can be told.
    """
    for name, said, configured in _shared_facts(path, record, model_cfg):
        if canonical_json(said) != canonical_json(configured):
            raise ValueError(f"{path}: {RECORD_NAME} says {name} {said}, {CONFIG_NAME} says {configured}")
    found = model_id(
        _stored_tensors(path / WEIGHTS_NAME),
        model_cfg=model_cfg,
        preprocess_cfg=record["preprocessing"],
        tokenizer=record["tokenizer"],
    )
    if found != record["model_id"]:
        ids = f"model id {found[:12]}, recorded {str(record['model_id'])[:12]}"
        raise ValueError(f"{path}: weights or configs were changed after saving ({ids}): save it again")


def _shared_facts(
    path: Path, record: Mapping[str, Any], model_cfg: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """(name, value in clipkit.json, value in open_clip_config.json) of what both files state."""
    yield "embed_dim", record["embed_dim"], model_cfg["embed_dim"]
    tokenizer = record["tokenizer"]
    yield "context_length", tokenizer.get("context_length"), context_length_of(model_cfg["text_cfg"])
    for key, value in read_config(path).get("preprocess_cfg", {}).items():
        yield key, record["preprocessing"].get(key), value


def _stored_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from None


def model_card(name: str, record: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """The README of a model directory, with the front matter that model hubs read."""
    lines = ["---", "library_name: open_clip", "pipeline_tag: zero-shot-image-classification"]
    lines += ["tags:", "- clip", "---", "", f"# {name}", ""]
    lines += ["A contrastive image-text model saved by clipkit.", "", "```python", "import clipkit", ""]
    lines += [f'model = clipkit.load("{name}")', "```", ""]
    lines += [f'Without clipkit: `open_clip.create_model("local-dir:{name}")`.', ""]
    size = record["preprocessing"]["size"]
    facts = {
        "model id": record["model_id"],
        "embedding width": record["embed_dim"],
        "image size": f"{size[0]} x {size[1]}",
        "context length": record["tokenizer"]["context_length"],
        **record["provenance"],
    }
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items()), ""]
    if metrics:
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {key} | {value:.6g} |" for key, value in metrics.items()]
        lines.append("")
    return "\n".join(lines)
