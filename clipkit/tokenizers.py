"""The tokenizer of a model, and the facts about it that a model directory records."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from clipkit.json_files import canonical_json

DEFAULT_CONTEXT_LENGTH = 77
OPEN_CLIP_VOCAB_SIZE = 49408


def context_length_of(text_cfg: dict[str, Any]) -> int:
    """Columns of a tokenised text; 77 where the config says nothing, as in open_clip."""
    return int(text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH))


def build_tokenizer(text_cfg: dict[str, Any], directory: Path | None) -> Any:
    """The open_clip tokenizer of a config: its own byte-pair one, or a transformers tokenizer.

    Args:
        text_cfg: decides the kind (`hf_tokenizer_name`), the length and the text cleaning.
        directory: where transformers tokenizer files lie; None fetches them by name.

    Returns:
        A callable, text or list of texts -> (B, context_length) int64.

    Raises:
        OSError: the tokenizer cannot be made: files that are not there, a setting it does not have.
        ValueError: the text tower has fewer embeddings than open_clip's tokenizer has tokens.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    settings = dict(text_cfg.get("tokenizer_kwargs") or {})
    name = text_cfg.get("hf_tokenizer_name")
    length = context_length_of(text_cfg)
    known = text_cfg.get("vocab_size", OPEN_CLIP_VOCAB_SIZE)
    if not name and known < OPEN_CLIP_VOCAB_SIZE:
        raise ValueError(
            f"the text tower knows {known} tokens, open_clip's tokenizer makes {OPEN_CLIP_VOCAB_SIZE}: "
            "the model needs a tokenizer of its own (text_cfg.hf_tokenizer_name and its files)"
        )
    try:
        if not name:
            return SimpleTokenizer(context_length=length, **settings)
        mode = text_cfg.get("tokenizer_mode")
        return HFTokenizer(str(directory or name), context_length=length, tokenizer_mode=mode, **settings)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(
            f"the tokenizer '{directory or name or 'open_clip'}' cannot be made: {reason}"
        ) from error


def tokenizer_facts(tokenizer: Any, text_cfg: dict[str, Any]) -> dict[str, Any]:
    """What has to stay the same for the same text to become the same tokens (JSON-ready)."""
    settings = text_cfg.get("tokenizer_kwargs") or {}
    length = context_length_of(text_cfg)
    if not text_cfg.get("hf_tokenizer_name"):
        return {
            "kind": "open_clip",
            "context_length": length,
            "vocab_size": tokenizer.vocab_size,
            "clean": settings.get("clean", "lower"),
            "padding": 0,
        }
    vocabulary = canonical_json(tokenizer.tokenizer.get_vocab())
    return {
        "kind": "transformers",
        "context_length": length,
        "vocab_size": len(tokenizer.tokenizer),
        "vocab_sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "clean": settings.get("clean", "whitespace"),
        "padding": tokenizer.tokenizer.pad_token_id,
        "mode": text_cfg.get("tokenizer_mode"),
    }
