"""transformers CLIP and SigLIP models as open_clip ones: the config, then the names of the tensors.

CLIP becomes open_clip's own towers. SigLIP becomes a timm image tower with attention pooling and a
non-causal text tower, as in open_clip's own SigLIP configs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clipkit.checkpoints import Tensors
from clipkit.json_files import read_json

Config = dict[str, Any]
logger = logging.getLogger(__name__)

# (width, layers) of the SigLIP image towers in timm.
SIGLIP_SIZES = {(768, 12): "base", (1024, 24): "large", (1152, 27): "so400m", (1536, 40): "giantopt"}
_RESAMPLING = {2: "bilinear", 3: "bicubic"}
_IMAGE_PREFIXES = ("vision_model.", "visual_projection.")
_TEXT_PREFIXES = ("text_model.", "text_projection.")


def is_transformers_config(content: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one that this module converts."""
    return content.get("model_type") in ("clip", "siglip")


def belongs_to(name: str, towers: str) -> bool:
    """Whether a transformers tensor is part of "image", "text" or "both" towers."""
    other = {"image": _TEXT_PREFIXES, "text": _IMAGE_PREFIXES, "both": ()}[towers]
    return not name.startswith(other) if other else True


def convert_config(content: Mapping[str, Any], directory: Path) -> tuple[Config, Config]:
    """`(model_cfg, preprocess_cfg)` of a transformers directory.

    Raises:
        ValueError: a setting that open_clip cannot express.
    """
    vision, text = content["vision_config"], content["text_config"]
    siglip = content["model_type"] == "siglip"
    try:
        model_cfg = _siglip_config(vision, text) if siglip else _clip_config(content, vision, text)
    except KeyError as error:
        raise ValueError(f"{directory / 'config.json'} has no {error.args[0]}") from None
    text_cfg = model_cfg["text_cfg"]
    own_vocabulary = not siglip and text["vocab_size"] == 49408
    if not own_vocabulary and _has_tokenizer(directory):
        text_cfg["hf_tokenizer_name"] = directory.resolve().name
        if siglip:
            text_cfg["tokenizer_kwargs"] = {"clean": "canonicalize"}
    return model_cfg, _preprocess_config(directory, siglip)


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model"))


def _clip_config(content: Mapping[str, Any], vision: Config, text: Config) -> Config:
    activations = {vision["hidden_act"], text["hidden_act"]}
    if "quick_gelu" in activations and len(activations) > 1:
        raise ValueError(f"open_clip has one QuickGELU switch for both towers, this model has {activations}")
    vision_cfg = {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "width": vision["hidden_size"],
        "layers": vision["num_hidden_layers"],
        "head_width": vision["hidden_size"] // vision["num_attention_heads"],
        **_block_settings(vision),
    }
    text_cfg = {"pool_type": "argmax", **_text_settings(text)}
    # Before transformers 4.31 every config said 2, and the highest id was the end of the text.
    if text["eos_token_id"] not in (2, text["vocab_size"] - 1):
        text_cfg.update(pool_type="eos", eos_id=text["eos_token_id"])
    return {
        "embed_dim": content["projection_dim"],
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
    }


def _siglip_config(vision: Config, text: Config) -> Config:
    import timm

    shape = (vision["hidden_size"], vision["num_hidden_layers"])
    patch_size, image_size = vision["patch_size"], vision["image_size"]
    name = f"vit_{SIGLIP_SIZES.get(shape, '?')}_patch{patch_size}_siglip_{image_size}"
    if not timm.is_model(name):
        raise ValueError(
            f"open_clip takes the SigLIP image tower from timm, which has none of width {shape[0]}, "
            f"{shape[1]} layers, patch {patch_size}, {image_size} px"
        )
    _warn_of_activation(name, vision["hidden_act"])
    vision_cfg = {
        "image_size": image_size,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    text_cfg = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", **_text_settings(text)}
    return {
        "embed_dim": vision["hidden_size"],
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
    }


def _warn_of_activation(name: str, activation: str) -> None:
    """Some timm towers have exact GELU where SigLIP was trained with the tanh form."""
    import timm

    with torch.device("meta"):
        tower: Any = timm.create_model(name)
    layer = tower.blocks[0].mlp.act
    if ("tanh" in activation) != ("tanh" in type(layer).__name__.lower()):
        logger.warning(
            "timm's %s, which open_clip uses too, has %s where the config says %s: features differ slightly",
            *(name, type(layer).__name__, activation),
        )


def _text_settings(text: Config) -> Config:
    return {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "width": text["hidden_size"],
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
        **_block_settings(text),
    }


def _block_settings(tower: Config) -> Config:
    settings: Config = {"mlp_ratio": tower["intermediate_size"] / tower["hidden_size"]}
    activation, eps = tower["hidden_act"], tower.get("layer_norm_eps", 1e-5)
    if activation in ("gelu_pytorch_tanh", "gelu_new"):
        settings["act_kwargs"] = {"approximate": "tanh"}
    elif activation not in ("gelu", "quick_gelu"):
        raise ValueError(f"open_clip has no activation '{activation}'; it has gelu, quick_gelu and tanh gelu")
    if eps != 1e-5:
        settings["norm_kwargs"] = {"eps": eps}
    return settings


def _preprocess_config(directory: Path, siglip: bool) -> Config:
    """From `preprocessor_config.json`, or the defaults of the family."""
    if siglip:
        config: Config = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    else:
        config = {"resize_mode": "shortest"}
    path = directory / "preprocessor_config.json"
    if path.is_file():
        stored = read_json(path)
        config["mean"] = stored.get("image_mean", config.get("mean"))
        config["std"] = stored.get("image_std", config.get("std"))
        config["interpolation"] = _RESAMPLING.get(stored.get("resample", 3), "bicubic")
    return {key: value for key, value in config.items() if value is not None}


def convert_tensors(tensors: Tensors, model_cfg: Config) -> Tensors:
    """The tensors under open_clip's names; query, key and value become one, projections are transposed."""
    siglip = bool(model_cfg["vision_cfg"].get("timm_model_name"))
    converted: Tensors = {}
    for name, tensor in _join_qkv(tensors).items():
        if name.endswith("position_ids"):
            continue
        new_name = _renamed(name, siglip)
        if new_name in ("text_projection", "visual.proj"):
            tensor = tensor.T
        elif new_name == "visual.trunk.pos_embed":
            tensor = tensor.unsqueeze(0)
        converted[new_name] = tensor
    return _split_attention_pool(converted, "visual.trunk.attn_pool.") if siglip else converted


def _renamed(name: str, siglip: bool) -> str:
    is_image = name.startswith(_IMAGE_PREFIXES)
    image_rules = _SIGLIP_IMAGE_RULES if siglip else _CLIP_IMAGE_RULES
    new_name = name
    for pattern, replacement in image_rules if is_image else _TEXT_RULES:
        new_name = re.sub(pattern, replacement, new_name)
    # SigLIP becomes a CustomTextCLIP, whose text tower is a module of its own.
    return f"text.{new_name}" if siglip and name.startswith(_TEXT_PREFIXES) else new_name


def _join_qkv(tensors: Tensors) -> Tensors:
    joined = {
        name: tensor for name, tensor in tensors.items() if not re.search(r"self_attn\.[kv]_proj", name)
    }
    for name in [name for name in joined if "self_attn.q_proj" in name]:
        parts = [tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
        del joined[name]
        joined[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return joined


def _split_attention_pool(tensors: Tensors, prefix: str) -> Tensors:
    """The query of the pooling is a tensor of its own in timm, key and value are one."""
    for kind in ("weight", "bias"):
        joined = tensors.pop(f"{prefix}in_proj_{kind}", None)
        if joined is not None:
            width = joined.shape[0] // 3
            tensors[f"{prefix}q.{kind}"], tensors[f"{prefix}kv.{kind}"] = joined[:width], joined[width:]
    return tensors


_BLOCK = [
    (r"encoder\.layers\.", "transformer.resblocks."),
    (r"self_attn\.", "attn."),
    (r"layer_norm(\d)\.", r"ln_\1."),
    (r"mlp\.fc1\.", "mlp.c_fc."),
    (r"mlp\.fc2\.", "mlp.c_proj."),
]
_TEXT_RULES = [
    (r"^text_projection\.weight", "text_projection"),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.head\.", "text_projection."),
    (r"^text_model\.", ""),
    *_BLOCK,
]
_CLIP_IMAGE_RULES = [
    (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.", "visual."),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.", "visual."),
    (r"^visual_projection\.weight", "visual.proj"),
    *_BLOCK,
]
_SIGLIP_IMAGE_RULES = [
    (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.trunk.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.trunk.patch_embed.proj."),
    (r"^vision_model\.post_layernorm\.", "visual.trunk.norm."),
    (r"^vision_model\.head\.probe", "visual.trunk.attn_pool.latent"),
    (r"^vision_model\.head\.attention\.out_proj\.", "visual.trunk.attn_pool.proj."),
    (r"^vision_model\.head\.attention\.", "visual.trunk.attn_pool."),
    (r"^vision_model\.head\.layernorm\.", "visual.trunk.attn_pool.norm."),
    (r"^vision_model\.head\.", "visual.trunk.attn_pool."),
    (r"^vision_model\.encoder\.layers\.", "visual.trunk.blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.in_proj_", ".attn.qkv."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
]
