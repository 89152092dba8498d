"""Read the checkpoint of a home-made dual encoder by a description of it; see docs/foreign-checkpoints.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from clipkit.byte_tokenizer import ByteTokenizer
from clipkit.checkpoints import Tensors, read_tensors
from clipkit.foreign import ForeignEncoder, Tokenizer
from clipkit.json_files import read_json
from clipkit.plain_towers import ImageTower, PlainImageTower, PlainTextTower, TextTower
from clipkit.preprocess import PreprocessConfig
from clipkit.suggestions import did_you_mean
from clipkit.tensor_names import TensorNames, fill

LOGIT_SCALE = "logit_scale"
_OPTIONAL = (
    *("patch.bias", "class_token", "input_norm.weight", "final_norm.weight"),
    *("projection.weight", "projection.bias"),
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ByteTokens:
    """Ids of `ByteTokenizer`; those of the end and the padding are the text tower's."""

    start: int | None = None
    """Id in front of a text."""
    offset: int = 0
    """Id of byte 0."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint is, as the JSON file says it."""

    weights: str = ""
    """The checkpoint, relative to the JSON file."""
    embed_dim: int
    image: PlainImageTower
    text: PlainTextTower
    bytes: ByteTokens | None = None
    """The tokenizer; None where one is given to `load_foreign`."""
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    """open_clip's `preprocess_cfg`: mean, std, interpolation, resize_mode; the size is that of `image`."""
    logit_scale: float | None = None
    """The inverse temperature, exponentiated, where the checkpoint has none."""
    logit_scale_is_log: bool = True
    """Whether the checkpoint's is a logarithm."""
    names: Mapping[str, Any]
    """Where each parameter is in the checkpoint, see `TensorNames`."""
    ignored: tuple[str, ...] = ()
    """Patterns, such as `*.position_ids`, of tensors that are left unused."""


def is_description(source: str | Path) -> bool:
    """Whether a path names a file with `names`, the one field that no open_clip config has."""
    path = Path(source).expanduser()
    try:
        return path.suffix == ".json" and path.is_file() and "names" in read_json(path)
    except ValueError:
        return False


def load_foreign(
    description: str | Path,
    *,
    weights: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    device: str | torch.device = "cpu",
) -> ForeignEncoder:
    """Load a plain pair of transformers, in fp32 and evaluation mode; every tensor of the file is used.

    Args:
        description: a JSON file with the fields of `Description`.
        weights: the checkpoint, by default the one that the description names.
        tokenizer: for descriptions without `bytes`.
        device: where to put the model.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: the description is not complete, or it and the checkpoint differ; tensors that are
            missing, not used, or of another shape are named.
    """
    path = Path(description).expanduser()
    content = read_json(path)
    try:
        described = _parse(Description, content)
        names = TensorNames(described.names)
        towers = _build(described, names)
        _check_given(described, weights, tokenizer)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    checkpoint = path.parent / described.weights if weights is None else Path(weights).expanduser()
    tensors = read_tensors(checkpoint)
    heads = {"image": described.image.heads, "text": described.text.heads}
    fill(
        towers,
        tensors,
        names,
        heads_of=lambda parameter: heads[parameter.partition(".")[0]],
        also=[described.names[LOGIT_SCALE]] if LOGIT_SCALE in described.names else [],
        ignored=described.ignored,
        origin=str(checkpoint),
    )
    model = ForeignEncoder(
        towers["image"],
        towers["text"],
        tokenizer=tokenizer or _byte_tokenizer(described),
        embed_dim=described.embed_dim,
        preprocess_config=PreprocessConfig.from_dict(
            {**described.preprocess, "size": described.image.image_size}
        ),
        logit_scale=_logit_scale(described, tensors, checkpoint),
        description={key: value for key, value in content.items() if key != "weights"},
    )
    return model.to(device).eval()


def _check_given(described: Description, weights: str | Path | None, tokenizer: Tokenizer | None) -> None:
    if weights is None and not described.weights:
        raise ValueError("it names no weights; give them to load_foreign")
    if (tokenizer is None) == (described.bytes is None):
        raise ValueError("expected either bytes, or a tokenizer given to load_foreign")
    if (described.logit_scale is None) == (LOGIT_SCALE not in described.names):
        raise ValueError("expected either logit_scale, a number, or its name in names")
    if not isinstance(described.names.get(LOGIT_SCALE, ""), str):
        raise ValueError(f"names: {LOGIT_SCALE} must be the name of a tensor")
    text, tokens = described.text, described.bytes
    largest = max(text.end, text.pad, *((tokens.start or 0, tokens.offset + 255) if tokens else ()))
    if largest >= text.vocab_size:
        raise ValueError(f"the id {largest} needs a text.vocab_size above it, got {text.vocab_size}")
    known = {one.name for one in dataclasses.fields(PreprocessConfig)} - {"size"}
    for key in described.preprocess:
        if key not in known:
            raise ValueError(f"unknown key 'preprocess.{key}'{did_you_mean(key, known)}")


def _parse(kind: type[T], content: Any, where: str = "") -> T:
    """A dataclass from JSON: unknown and missing keys are named, nested ones are read likewise."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where.rstrip('.')} must be an object, got {content!r:.60}")
    known = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            raise ValueError(f"unknown key '{where}{key}'{did_you_mean(key, known)}")
    for key, one in known.items():
        without = (one.default, one.default_factory) == (dataclasses.MISSING, dataclasses.MISSING)
        if without and key not in content:
            raise ValueError(f"the key '{where}{key}' is missing")
    nested = {"image": PlainImageTower, "text": PlainTextTower, "bytes": ByteTokens} if not where else {}
    values = dict(content)
    for key, value in content.items():
        if key in nested:
            values[key] = _parse(nested[key], value, f"{key}.")
        elif isinstance(value, list):
            values[key] = tuple(value)
    if isinstance(values.get("image_size"), int):
        values["image_size"] = (values["image_size"], values["image_size"])
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where.rstrip('.') or 'the description'}: {error}") from None


def _build(described: Description, names: TensorNames) -> nn.ModuleDict:
    """Towers with the optional parts that have a name."""

    def parts(tower: str) -> list[str]:
        named = [part for part in _OPTIONAL if f"{tower}.{part}" in names]
        return [part.removesuffix(".weight") if "norm" in part else part for part in named]

    image = ImageTower(described.image, described.embed_dim, parts("image"))
    text = TextTower(described.text, described.embed_dim, parts("text"))
    towers = nn.ModuleDict({"image": image, "text": text})
    names.check(towers.state_dict(), [LOGIT_SCALE])
    return towers


def _byte_tokenizer(described: Description) -> ByteTokenizer:
    assert described.bytes is not None
    text = described.text
    return ByteTokenizer(
        context_length=text.context_length,
        start=described.bytes.start,
        end=text.end,
        pad=text.pad,
        offset=described.bytes.offset,
    )


def _logit_scale(described: Description, tensors: Tensors, origin: Path) -> float:
    """The inverse temperature, exponentiated."""
    name = described.names.get(LOGIT_SCALE)
    if name is None:
        assert described.logit_scale is not None
        return described.logit_scale
    stored = tensors[name].double()
    if stored.numel() != 1:
        raise ValueError(f"{origin}: {LOGIT_SCALE} must be one number, {name} has {stored.numel()}")
    scale = stored.reshape(())
    return float(scale.exp() if described.logit_scale_is_log else scale)
