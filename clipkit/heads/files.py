"""Heads in a model directory: `heads/NAME.safetensors`, the tensors, and `heads/NAME.json`, all else."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clipkit.checksums import sha256_of
from clipkit.heads.base import Head
from clipkit.heads.methods import METHODS, method_class
from clipkit.json_files import read_json
from clipkit.model_dir import HEADS_NAME, RECORD_NAME, read_record
from clipkit.suggestions import did_you_mean
from clipkit.version import __version__
from clipkit.whole_file import flush_to_disk, whole_file

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

FORMAT_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_FIELDS = ("method", "config", "class_names", "model_id", "tensors_sha256")


@dataclass(frozen=True)
class StoredHead:
    """A head with what its file says of it."""

    head: Head
    facts: Mapping[str, Any]
    """The content of the JSON file; docs/model-directory.md has its fields."""


def check_head_name(name: str) -> None:
    """Refuse a name that makes no file name.

    Raises:
        ValueError: it has other characters than letters, digits, `.`, `_`, `+` and `-`.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a head's name consists of letters, digits, '.', '_', '+' and '-', and begins with one of the "
            f"first two, got {name!r}"
        )


def head_names(model_dir: Path) -> list[str]:
    """Names of the heads in a model directory, sorted; those that are whole."""
    records = (model_dir / HEADS_NAME).glob("*.json")
    found = sorted(path.name.removesuffix(".json") for path in records if not path.name.startswith("."))
    return [name for name in found if _tensors_path(model_dir, name).is_file()]


def write_head(
    model_dir: Path, name: str, head: Head, facts: Mapping[str, Any], *, model_id: str
) -> dict[str, Any]:
    """Store a head, in place of one of the same name.

    The JSON comes last and has the checksum of the tensors, so that a head is whole or is refused.

    Args:
        model_dir: of the model that the head was trained beside.
        name: of the head.
        head: trained.
        facts: JSON-ready: `class_names` (trained), and `seed`, `shots`, `split`, `data`, `recipe`,
            `training` as far as they are known.
        model_id: of the model.

    Returns:
        What the JSON file holds.

    Raises:
        OSError: it cannot be written.
        ValueError: the name makes no file name.
    """
    content = {"method": head.method, "config": dataclasses.asdict(head.config), **facts}
    return write_tensors(model_dir, name, head.state_dict(), content, model_id=model_id)


def write_tensors(
    model_dir: Path, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, model_id: str
) -> dict[str, Any]:
    """Store the tensors of a head and what is to be known of it; see `write_head`.

    Args:
        model_dir: of the model that the head was trained beside.
        name: of the head.
        tensors: its state dict, any device.
        facts: JSON-ready: at least `method`, `config` and `class_names`.
        model_id: of the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    check_head_name(name)
    tensors_path, record_path = _tensors_path(model_dir, name), _record_path(model_dir, name)
    record_path.parent.mkdir(exist_ok=True)
    own = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    try:
        with whole_file(tensors_path) as temporary:
            save_file(own, temporary, metadata={"format": "pt"})
            temporary.chmod(0o644)
            flush_to_disk(temporary)
            checksum = sha256_of(temporary)
    except SafetensorError as error:
        raise OSError(f"cannot write {tensors_path}: {error}") from None
    content = {
        "format_version": FORMAT_VERSION,
        "model_id": model_id,
        "clipkit": __version__,
        **facts,
        "tensors_sha256": checksum,
    }
    _write_json(record_path, content)
    _note_in_record(model_dir)
    return content


def read_facts(model_dir: Path, name: str) -> dict[str, Any]:
    """What is said of a head, without its tensors.

    Raises:
        FileNotFoundError: there is no such head; the nearest is named.
        ValueError: the file is damaged, or of a newer clipkit.
    """
    path = _record_path(model_dir, name)
    known = head_names(model_dir)
    if name not in known:
        there = ", ".join(known) or "none"
        raise FileNotFoundError(
            f"{model_dir} has no head {name!r}, its heads: {there}{did_you_mean(name, known)}"
        )
    facts = read_json(path)
    version = facts.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this clipkit reads up to {FORMAT_VERSION}: upgrade clipkit"
        )
    missing = [field for field in _FIELDS if field not in facts]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: the head is damaged, train it again")
    return facts


def read_head(model_dir: Path, name: str, model: DualEncoder) -> StoredHead:
    """Read a head, on the model's device and in evaluation mode.

    Args:
        model_dir: the model directory.
        name: of the head.
        model: the model, with the weights that the head was trained beside.

    Raises:
        FileNotFoundError: there is no such head; the nearest is named.
        ValueError: a file is damaged, or the head belongs to another model.
    """
    facts, tensors = read_stored(model_dir, name, model_id=model.model_id)
    if facts["method"] not in METHODS:
        raise ValueError(
            f"head {name!r} is a {facts['method']}, which does not classify; what does: {', '.join(METHODS)}"
        )
    with restoring(model_dir, name, facts):
        head = method_class(facts["method"]).restore(model, facts["config"], facts, tensors)
    return StoredHead(head.to(model.logit_scale.device).eval().requires_grad_(False), facts)


def read_stored(model_dir: Path, name: str, *, model_id: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is said of a head, and its tensors, on the CPU.

    Raises:
        FileNotFoundError: there is no such head; the nearest is named.
        ValueError: a file is damaged, or the head belongs to another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    facts = read_facts(model_dir, name)
    if facts["model_id"] != model_id:
        raise ValueError(
            f"head {name!r} belongs to the model {str(facts['model_id'])[:12]}, this one is {model_id[:12]}: "
            "a head serves the weights that it was trained beside"
        )
    path = _tensors_path(model_dir, name)
    if sha256_of(path) != facts["tensors_sha256"]:
        raise ValueError(f"{path} is not what {name}.json says (damaged or replaced): train the head again")
    try:
        return facts, load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as tensors: {str(error).splitlines()[0]}") from None


@contextmanager
def restoring(model_dir: Path, name: str, facts: Mapping[str, Any]) -> Iterator[None]:
    """What does not fit while a head is made from its file, said of the file."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        path, reason = _tensors_path(model_dir, name), str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a head of {facts['method']}: {reason}") from None


def _tensors_path(model_dir: Path, name: str) -> Path:
    return model_dir / HEADS_NAME / f"{name}.safetensors"


def _record_path(model_dir: Path, name: str) -> Path:
    return model_dir / HEADS_NAME / f"{name}.json"


def _note_in_record(model_dir: Path) -> None:
    """Keep the list in clipkit.json what the folder holds; foreign directories have none."""
    record = read_record(model_dir)
    if record is not None:
        _write_json(model_dir / RECORD_NAME, {**record, "heads": head_names(model_dir)})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        flush_to_disk(temporary)
