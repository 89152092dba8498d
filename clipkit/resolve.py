"""What a source string means: where its config, its weights and its tokenizer are."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipkit import model_dir
from clipkit.architecture import Config, known_names, named_config, split_config
from clipkit.checkpoints import read_tensors
from clipkit.hf_conversion import convert_config, is_transformers_config
from clipkit.json_files import read_json
from clipkit.openai_weights import is_openai_state, openai_config
from clipkit.suggestions import did_you_mean

_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz")
# The order in which open_clip looks for weights in a directory.
_WEIGHT_NAMES = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *(
        "open_clip_pytorch_model.pth",
        "model.safetensors",
        "pytorch_model.bin",
        "pytorch_model.pth",
        "model.pth",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that is about to be loaded."""

    origin: str
    """What to call it in a message."""
    model_cfg: Config
    preprocess_cfg: Mapping[str, Any]
    weights: Path
    transformers: bool = False
    """The tensors have transformers' names."""
    directory: Path | None = None
    """Where tokenizer files and a transformers text config lie."""
    record: Mapping[str, Any] | None = None
    """`clipkit.json`, where clipkit wrote the directory."""


def resolve(source: str | Path, model_name: str | None = None) -> ModelSource:
    """Find out what `source` names. Weights of tags and hub repositories are downloaded (and cached).

    Raises:
        FileNotFoundError: a path that does not exist, or a directory without config or weights.
        ValueError: a name, tag or combination that means nothing; the nearest is named.
        OSError: a download failed.
    """
    text = os.fspath(source)
    path = Path(text.removeprefix("local-dir:")).expanduser()
    is_file = path.is_file()
    if model_name is not None and not is_file:
        what = "is a directory" if path.is_dir() else "is no file"
        raise ValueError(f"model_name='{model_name}' goes with a bare checkpoint file; '{text}' {what}")
    if text.startswith("hf-hub:"):
        return _from_hub(text.removeprefix("hf-hub:"))
    if path.is_dir():
        return _from_directory(path)
    if is_file:
        return _from_checkpoint(path, model_name)
    if text.startswith(("local-dir:", "/", "./", "../", "~")) or path.suffix in (*_WEIGHT_SUFFIXES, ".json"):
        raise FileNotFoundError(f"no model directory or checkpoint at {path}")
    return _from_tag(text)


def _from_directory(path: Path) -> ModelSource:
    if not (path / model_dir.CONFIG_NAME).is_file() and (path / "config.json").is_file():
        return _from_transformers(path)
    content = model_dir.read_config(path)
    model_cfg, preprocess_cfg = split_config(content, str(path / model_dir.CONFIG_NAME))
    record = model_dir.read_record(path)
    if record is not None:
        model_dir.verify(path, record, model_cfg)
        preprocess_cfg = dict(record["preprocessing"])
    return ModelSource(
        origin=str(path),
        model_cfg=model_cfg,
        preprocess_cfg=preprocess_cfg,
        weights=path / model_dir.WEIGHTS_NAME if record is not None else _find_weights(path),
        directory=path,
        record=record,
    )


def _from_transformers(path: Path) -> ModelSource:
    content = read_json(path / "config.json")
    if not is_transformers_config(content):
        kind = content.get("model_type")
        raise ValueError(f"{path} holds a transformers model of type '{kind}'; clipkit reads clip and siglip")
    model_cfg, preprocess_cfg = convert_config(content, path)
    return ModelSource(
        origin=str(path),
        model_cfg=model_cfg,
        preprocess_cfg=preprocess_cfg,
        weights=_find_weights(path),
        transformers=True,
        directory=path,
    )


def _find_weights(path: Path) -> Path:
    for name in _WEIGHT_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(entry for entry in path.iterdir() if entry.suffix in (".safetensors", ".bin", ".pth"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(entry.name for entry in found)
        raise ValueError(f"{path} holds several checkpoints ({names}): name one {_WEIGHT_NAMES[0]}")
    raise FileNotFoundError(f"{path} has a config but no weights ({_WEIGHT_NAMES[0]})")


def _from_checkpoint(path: Path, model_name: str | None) -> ModelSource:
    if path.suffix == ".json":
        raise ValueError(f"{path} is a config and has no weights: use clipkit.create('{path}')")
    if path.suffix not in _WEIGHT_SUFFIXES:
        raise ValueError(f"{path} is no checkpoint: expected {', '.join(_WEIGHT_SUFFIXES)}")
    preprocess_cfg: Config = {}
    if model_name in (None, "openai") and path.suffix != ".npz":
        tensors = read_tensors(path)
        if model_name is None and not is_openai_state(tensors):
            raise ValueError(f"{path} is a bare checkpoint: name its architecture, model_name='ViT-B-32'")
        model_cfg = openai_config(tensors, str(path))
    elif model_name is None:
        raise ValueError(f"{path} is a bare checkpoint: name its architecture, model_name='ViT-B-16-SigLIP'")
    else:
        model_cfg, preprocess_cfg = named_config(model_name)
    return ModelSource(origin=str(path), model_cfg=model_cfg, preprocess_cfg=preprocess_cfg, weights=path)


def _from_tag(text: str) -> ModelSource:
    """An open_clip `name/tag`; a name may hold a slash itself, as in ViT-B/32/openai."""
    import open_clip

    name, _, tag = text.rpartition("/")
    name = name.replace("/", "-")
    if text.replace("/", "-") in known_names():
        tags = open_clip.list_pretrained_tags_by_model(text.replace("/", "-"))
        cure = f"add a tag: {', '.join(tags)}" if tags else f"use clipkit.create('{text}')"
        raise ValueError(f"'{text}' names an architecture without weights: {cure}")
    if name not in known_names():
        nearest = did_you_mean(name or text, known_names())
        raise ValueError(f"'{text}' is neither a path nor an open_clip name/tag{nearest}")
    weights_cfg = open_clip.get_pretrained_cfg(name, tag)
    if not weights_cfg:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none at all"
        raise ValueError(f"{name} has no pretrained tag '{tag}'; it has {tags}")
    model_cfg, _ = named_config(name)
    if bool(weights_cfg.get("quick_gelu")) != bool(model_cfg.get("quick_gelu")):
        other = name.removesuffix("-quickgelu") if model_cfg.get("quick_gelu") else f"{name}-quickgelu"
        raise ValueError(f"{text} was trained with the other GELU than {name} has: use '{other}/{tag}'")
    try:
        weights = open_clip.download_pretrained(weights_cfg)
    except Exception as error:  # urllib, hub and checksum errors share no base class
        raise OSError(f"cannot download {text}: {' '.join(str(error).split())[:200]}") from error
    return ModelSource(
        origin=text, model_cfg=model_cfg, preprocess_cfg=dict(weights_cfg), weights=Path(weights)
    )


def _from_hub(repo: str) -> ModelSource:
    if not repo:
        raise ValueError("'hf-hub:' needs a repository, as in hf-hub:org/repo")
    try:
        config = _download(repo, model_dir.CONFIG_NAME)
    except OSError as error:
        return _transformers_from_hub(repo, error)
    model_cfg, preprocess_cfg = split_config(read_json(config), f"{model_dir.CONFIG_NAME} of {repo}")
    return ModelSource(
        origin=f"hf-hub:{repo}",
        model_cfg=model_cfg,
        preprocess_cfg=preprocess_cfg,
        weights=_download(repo, None),
    )


def _transformers_from_hub(repo: str, missing: OSError) -> ModelSource:
    """A repository of transformers: its files land in one folder, which is read as a directory."""
    try:
        folder = _download(repo, "config.json").parent
    except OSError:
        raise missing from None
    _download(repo, "model.safetensors")
    for optional in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        with contextlib.suppress(OSError):
            _download(repo, optional)
    return dataclasses.replace(_from_transformers(folder), origin=f"hf-hub:{repo}")


def _download(repo: str, filename: str | None) -> Path:
    from open_clip.pretrained import download_pretrained_from_hf

    try:
        return Path(download_pretrained_from_hf(repo, filename=filename))
    except Exception as error:  # hub errors share no base class
        reason = " ".join(str(error).split())[:200]
        raise OSError(f"cannot fetch {filename or 'the weights'} of hf-hub:{repo}: {reason}") from error
