"""Which detector a name stands for now, so that a run does not go on with another one."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from clipkit.checksums import sha256_of
from clipkit.heads.files import head_names, read_facts
from clipkit.json_files import canonical_json, read_json
from clipkit.model_dir import RECORD_NAME
from clipkit.regions.heads import NAME
from clipkit.regions.labelling.detectors import detector_kind, see_current_folder


def detector_id(name: str) -> str | None:
    """A text that changes with the detector behind a name.

    For a function the sha256 of its module's source, not of what this imports; for a model directory its
    model id and the checksum of its region head, which that id leaves out; for a folder of transformers a
    hash of the names, sizes and modification times of its files.

    Returns:
        None where there is none to be had: of a repository on the hub, and of a module that is not there.

    Raises:
        ValueError: the name has none of the forms of `--detector`.
    """
    kind = detector_kind(name)
    if kind == "hub repository":
        return None
    if kind == "function":
        return _of_module(name.partition(":")[0])
    folder = Path(name).expanduser()
    return _of_model_dir(folder) if kind == "model directory" else _of_files(folder)


def _of_module(name: str) -> str | None:
    see_current_folder()
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # of a package that is not there, or of what runs as a script
        return None
    if found is None or not found.has_location or found.origin is None:
        return None
    return sha256_of(Path(found.origin))


def _of_model_dir(folder: Path) -> str | None:
    record = folder / RECORD_NAME
    if not record.is_file():
        return None  # written by open_clip: it has no region head, and is refused when it is opened
    model_id = read_json(record).get("model_id")
    head = read_facts(folder, NAME)["tensors_sha256"] if NAME in head_names(folder) else "no head"
    return f"{model_id} {head}"


def _of_files(folder: Path) -> str:
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    facts = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()
