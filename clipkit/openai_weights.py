"""OpenAI's own CLIP weights: the architecture is read off the shapes, as OpenAI's loader does."""

from __future__ import annotations

from typing import Any

from clipkit.checkpoints import Tensors

# Scalars that OpenAI's archives keep between the weights.
_FACTS = ("input_resolution", "context_length", "vocab_size")


def is_openai_state(tensors: Tensors) -> bool:
    """Whether the tensors say themselves that they are OpenAI's."""
    return "input_resolution" in tensors


def openai_weights(tensors: Tensors) -> Tensors:
    """The weights without the scalars between them."""
    return {name: value for name, value in tensors.items() if name not in _FACTS}


def openai_config(tensors: Tensors, origin: str) -> dict[str, Any]:
    """The `model_cfg` of an OpenAI state dict (ViT or ResNet), QuickGELU throughout.

    Raises:
        ValueError: a tensor that every OpenAI model has is missing.
    """
    try:
        vision = _vit(tensors) if "visual.proj" in tensors else _resnet(tensors)
        context_length = tensors["positional_embedding"].shape[0]
        vocab_size, width = tensors["token_embedding.weight"].shape
        embed_dim = tensors["text_projection"].shape[1]
    except KeyError as error:
        raise ValueError(f"{origin} is no OpenAI CLIP state dict: it has no {error.args[0]}") from None
    text = {
        "context_length": context_length,
        "vocab_size": vocab_size,
        "width": width,
        "heads": width // 64,
        "layers": _count(tensors, "transformer.resblocks.", 2),
    }
    return {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def _vit(tensors: Tensors) -> dict[str, Any]:
    width, _, _, patch_size = tensors["visual.conv1.weight"].shape
    grid = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "layers": _count(tensors, "visual.transformer.resblocks.", 3),
        "width": width,
        "patch_size": patch_size,
        "image_size": patch_size * grid,
    }


def _resnet(tensors: Tensors) -> dict[str, Any]:
    grid = round((tensors["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "layers": [_count(tensors, f"visual.layer{stage}.", 2) for stage in (1, 2, 3, 4)],
        "width": tensors["visual.layer1.0.conv1.weight"].shape[0],
        "image_size": grid * 32,
    }


def _count(tensors: Tensors, prefix: str, position: int) -> int:
    """How many different parts stand at a position of the names that start with the prefix."""
    return len({name.split(".")[position] for name in tensors if name.startswith(prefix)})
