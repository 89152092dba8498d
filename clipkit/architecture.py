"""What an architecture config means: find it by name, check it, change it, build its towers.

A config is open_clip's `model_cfg`: `embed_dim`, `vision_cfg`, `text_cfg` and a few switches. The towers
themselves are open_clip's; nothing is registered with open_clip on the way.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from clipkit import configs
from clipkit.json_files import read_json
from clipkit.suggestions import did_you_mean

Config = dict[str, Any]
Towers = Literal["both", "image", "text"]

_TOP_KEYS = (
    *("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "custom_text", "quick_gelu"),
    *("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"),
)
# Short names of `create` for settings that sit deeper in the config.
_SHORT_NAMES = {
    "image_size": ("vision_cfg", "image_size"),
    "patch_dropout": ("vision_cfg", "patch_dropout"),
    "context_length": ("text_cfg", "context_length"),
}
# The tower that is not wanted is built with these sizes (a few hundred bytes) and dropped.
_STUB_VISION = {"layers": 1, "width": 1, "head_width": 1, "patch_size": 1, "image_size": 1}
_STUB_TEXT = {"layers": 1, "width": 1, "heads": 1, "context_length": 1, "vocab_size": 1}


def named_config(name: str | Path) -> tuple[Config, Config]:
    """The `(model_cfg, preprocess_cfg)` of an open_clip name, one of our own names, or a JSON file.

    Raises:
        ValueError: no such architecture (the nearest is named), or the file is no architecture config.
    """
    import open_clip

    text = str(name)
    if text.endswith(".json"):
        return split_config(read_json(Path(text)), text)
    if text in configs.names():
        return split_config(read_json(configs.path(text)), text)
    model_cfg = open_clip.get_model_config(text.replace("/", "-"))
    if model_cfg is None:
        nearest = did_you_mean(text, known_names())
        raise ValueError(f"no architecture is called '{text}'{nearest or '; see open_clip.list_models()'}")
    return model_cfg, {}


def known_names() -> list[str]:
    """All architecture names: our own, then open_clip's."""
    import open_clip

    return [*configs.names(), *open_clip.list_models()]


def split_config(content: Mapping[str, Any], origin: str) -> tuple[Config, Config]:
    """Take a bare `model_cfg`, or an object that holds `model_cfg` and maybe `preprocess_cfg`, apart.

    Raises:
        ValueError: it is neither; `origin` is named.
    """
    model_cfg = content.get("model_cfg", content)
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model_cfg]
    if missing:
        raise ValueError(f"{origin} is no architecture config: it has no {', '.join(missing)}")
    check_config(model_cfg, origin)
    return copy.deepcopy(dict(model_cfg)), dict(content.get("preprocess_cfg", {}))


def check_config(model_cfg: Mapping[str, Any], origin: str) -> None:
    """Refuse keys that open_clip does not know, naming the nearest one it does."""
    import open_clip

    _check_keys(model_cfg, _TOP_KEYS, origin)
    for part, owner in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        if not isinstance(model_cfg[part], Mapping):
            raise ValueError(f"{origin}: {part} must be an object, got {model_cfg[part]!r}")
        _check_keys(model_cfg[part], [f.name for f in dataclasses.fields(owner)], f"{origin}: {part}")


def _check_keys(found: Mapping[str, Any], known: Iterable[str], origin: str) -> None:
    known = list(known)
    for key in found:
        if key not in known:
            raise ValueError(f"{origin} has the unknown key '{key}'{did_you_mean(key, known)}")


def with_overrides(model_cfg: Config, overrides: Mapping[str, Any]) -> Config:
    """A copy of the config with `overrides` merged in, nested objects key by key.

    Args:
        model_cfg: the config to start from.
        overrides: `model_cfg` keys, or the short names `image_size`, `context_length`, `patch_dropout`.

    Raises:
        ValueError: an override that no config knows.
    """
    merged = copy.deepcopy(model_cfg)
    _check_keys(overrides, (*_TOP_KEYS, *_SHORT_NAMES), "the overrides")
    for key, value in overrides.items():
        if key in _SHORT_NAMES:
            part, short = _SHORT_NAMES[key]
            merged[part][short] = value
        elif isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key].update(value)
        else:
            merged[key] = value
    check_config(merged, "the overridden config")
    return merged


def build(model_cfg: Config, towers: Towers = "both") -> nn.Module:
    """The open_clip model of a config, randomly initialised, in fp32 on the CPU.

    Args:
        model_cfg: the config. Pretrained weights of single towers (`timm_model_pretrained`,
            `hf_model_pretrained`) are never fetched.
        towers: "image" or "text" builds that tower alone. Parameter names are those of the whole model.

    Raises:
        ValueError: open_clip cannot build it; the reason is one line.
    """
    arguments = copy.deepcopy(model_cfg)
    if arguments["vision_cfg"].get("timm_model_name"):
        arguments["vision_cfg"]["timm_model_pretrained"] = False
    if arguments["text_cfg"].get("hf_model_name"):
        arguments["text_cfg"]["hf_model_pretrained"] = False
    if towers != "both" and "multimodal_cfg" in arguments:
        raise ValueError(f"towers='{towers}': the two towers of a CoCa model cannot be loaded apart")
    if towers == "image":
        arguments.update(text_cfg=_STUB_TEXT, custom_text=True)
    elif towers == "text":
        arguments.update(vision_cfg=_STUB_VISION)
    try:
        model = _construct(arguments)
    except (TypeError, AssertionError, RuntimeError, KeyError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"open_clip cannot build this architecture: {reason}") from error
    if towers == "image":
        del model.text
    elif towers == "text":
        del model.visual
    return model


def _construct(arguments: Config) -> nn.Module:
    """Choose the class as `open_clip.create_model` does, and fit a timm tower to the configured size."""
    import open_clip

    custom_text = arguments.pop("custom_text", False) or bool(arguments["text_cfg"].get("hf_model_name"))
    if "multimodal_cfg" in arguments:
        model = open_clip.CoCa(**arguments)
    else:
        model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**arguments)
    image_size = arguments["vision_cfg"].get("image_size", 224)
    if timm_input_size(model.visual) not in (None, _pair(image_size)):
        model.visual.set_input_size(_pair(image_size))
    assert isinstance(model, nn.Module)
    return model


def timm_input_size(visual: nn.Module) -> tuple[int, int] | None:
    """The (height, width) a timm tower was built for, None where any size will do."""
    patch_embed = getattr(getattr(visual, "trunk", None), "patch_embed", None)
    size = getattr(patch_embed, "img_size", None)
    return None if size is None else _pair(size)


def _pair(size: int | Iterable[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
