"""The identity of a model: a hash of its weights and of what turns images and texts into its inputs.

It is independent of the file format, of the order of the tensors and of the place of the file, so a model
keeps its id when it is saved, copied or converted without change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from clipkit.json_files import canonical_json


def model_id(
    tensors: Iterable[tuple[str, Tensor]],
    *,
    model_cfg: Mapping[str, Any],
    preprocess_cfg: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes of the tensors, then over the settings.

    Args:
        tensors: (name, tensor) sorted by name; taken one at a time, so they may come from a file.
        model_cfg: open_clip's architecture config.
        preprocess_cfg: as `PreprocessConfig.to_dict` gives it.
        tokenizer: as `tokenizers.tokenizer_facts` gives them.

    Raises:
        ValueError: the names are not sorted.
    """
    digest = hashlib.sha256()
    previous = ""
    for name, tensor in tensors:
        if name < previous:
            raise ValueError(f"tensors must come sorted by name, got {name} after {previous}")
        previous = name
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    settings = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg, "tokenizer": tokenizer}
    digest.update(canonical_json(settings).encode())
    return digest.hexdigest()
