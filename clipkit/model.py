"""`load` a model from anywhere, or `create` one: both give the same `DualEncoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clipkit.architecture import Config, Towers, build, named_config, with_overrides
from clipkit.checkpoints import Tensors, config_for_tensors, load_weights, read_tensors
from clipkit.dual_encoder import DualEncoder
from clipkit.foreign_files import is_description, load_foreign
from clipkit.hf_conversion import belongs_to, convert_tensors
from clipkit.openai_weights import openai_weights
from clipkit.preprocess import PreprocessConfig
from clipkit.resolve import ModelSource, resolve
from clipkit.tokenizers import tokenizer_facts

__all__ = ["DualEncoder", "create", "load"]


def load(
    source: str | Path,
    *,
    model_name: str | None = None,
    towers: Towers = "both",
    device: str | torch.device = "cpu",
    image_size: int | tuple[int, int] | None = None,
    context_length: int | None = None,
    patch_dropout: float | None = None,
) -> DualEncoder:
    """Load a model, in fp32 and evaluation mode.

    Args:
        source: a clipkit model directory; an open_clip `name/tag`; `hf-hub:org/repo`; `local-dir:PATH` or a
            directory with `open_clip_config.json`; a transformers CLIP or SigLIP directory; a checkpoint file
            together with `model_name`, or OpenAI's own state dict; a JSON file that describes a checkpoint of
            another make (see docs/foreign-checkpoints.md), which takes none of the settings below but
            `device`.
        model_name: the architecture of a checkpoint file: an open_clip name, one of clipkit's, a JSON config,
            or "openai" to read it off the shapes.
        towers: "image" or "text" holds that tower alone; of the other nothing is read.
        device: where to put the model.
        image_size: another (height, width); position embeddings are interpolated.
        context_length: another text length; position embeddings are interpolated.
        patch_dropout: share of the patches left out in training, ViT only.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the source means nothing, is of another architecture, or was changed after saving.
        OSError: a download failed.
    """
    if towers not in ("both", "image", "text"):
        raise ValueError(f"towers must be both, image or text, got {towers!r}")
    if is_description(source):
        if towers != "both" or (model_name, image_size, context_length, patch_dropout) != (None,) * 4:
            raise ValueError(f"{source} describes a foreign checkpoint, which is loaded whole and as it is")
        return load_foreign(source, device=device)
    found = resolve(source, model_name)
    is_npz = found.weights.suffix == ".npz"
    tensors = {} if is_npz else _read(found, towers)
    model_cfg = config_for_tensors(found.model_cfg, tensors)
    if patch_dropout is not None:
        model_cfg = _with_patch_dropout(model_cfg, patch_dropout)
    if image_size is not None:
        model_cfg = _at_stored_size(model_cfg, tensors)
    model = build(_with_local_text_model(model_cfg, found.directory), "both" if is_npz else towers)
    if is_npz:
        _load_npz(model, found, towers)
    else:
        load_weights(model, tensors, found.origin)
    encoder = DualEncoder(
        model,
        model_cfg,
        _preprocess_config(found.preprocess_cfg, model_cfg),
        tokenizer_dir=found.directory,
        provenance={"source": found.origin},
        stored_id=found.record["model_id"] if found.record else None,
    )
    encoder.directory = found.directory
    if found.record and encoder.has_text:
        _check_tokenizer(encoder, found)
    if image_size is not None and encoder.has_image:
        encoder.resize_image_size(image_size)
    if context_length is not None and encoder.has_text:
        encoder.resize_context(context_length)
    if found.record and found.directory and encoder.has_image:
        from clipkit.regions.heads import read_region_head

        encoder.region_head = read_region_head(found.directory, encoder, model_id=found.record["model_id"])
    return encoder.to(device).eval()


def create(name: str | Path, **overrides: Any) -> DualEncoder:
    """A randomly initialised model, in fp32 and evaluation mode.

    Args:
        name: an architecture: open_clip's (`ViT-B-32`), one of ours (`tiny-vit`, `tiny-conv`), or a JSON file
            with a `model_cfg`.
        overrides: merged into the config: `embed_dim=`, `vision_cfg={...}`, `text_cfg={...}`,
            `init_logit_scale=` (a logarithm), `init_logit_bias=`; and `image_size=`, `context_length=`,
            `patch_dropout=`.

    Raises:
        ValueError: no such architecture or setting; the nearest is named.
    """
    model_cfg, preprocess_cfg = named_config(name)
    patch_dropout = overrides.pop("patch_dropout", None)
    model_cfg = with_overrides(model_cfg, overrides)
    if patch_dropout is not None:
        model_cfg = _with_patch_dropout(model_cfg, patch_dropout)
    model_cfg["vision_cfg"].pop("timm_model_pretrained", None)
    preprocess = _preprocess_config(preprocess_cfg, model_cfg)
    return DualEncoder(build(model_cfg), model_cfg, preprocess, provenance={"source": str(name)}).eval()


def _read(found: ModelSource, towers: Towers) -> Tensors:
    """The tensors of the wanted towers under open_clip's names."""
    if found.transformers:
        stored = read_tensors(found.weights, lambda name: belongs_to(name, towers))
        return convert_tensors(stored, found.model_cfg)

    def wanted(name: str) -> bool:
        is_image = name.startswith("visual.")
        return towers == "both" or name.startswith("logit_") or is_image == (towers == "image")

    return openai_weights(read_tensors(found.weights, wanted))


def _load_npz(model: torch.nn.Module, found: ModelSource, towers: Towers) -> None:
    """Weights of big_vision, which open_clip copies into the model itself."""
    import open_clip

    if towers != "both":
        raise ValueError(f"towers='{towers}': an npz checkpoint can only be loaded whole")
    open_clip.load_checkpoint(model, str(found.weights))


def _with_patch_dropout(model_cfg: Config, patch_dropout: float) -> Config:
    if not 0 <= patch_dropout < 1:
        raise ValueError(f"patch_dropout must be in [0, 1), got {patch_dropout}")
    if patch_dropout and isinstance(model_cfg["vision_cfg"].get("layers"), list | tuple):
        raise ValueError("patch_dropout: a ResNet has no patches to leave out")
    return with_overrides(model_cfg, {"patch_dropout": patch_dropout})


def _at_stored_size(model_cfg: Config, tensors: Tensors) -> Config:
    """The config at the image size of a checkpoint whose ViT was trained at another than the config's."""
    table = tensors.get("visual.positional_embedding")
    if table is None:
        return model_cfg
    patch_size = model_cfg["vision_cfg"].get("patch_size", 16)
    side = round((table.shape[0] - 1) ** 0.5)
    configured = _preprocess_config({}, model_cfg).size
    num_patches = (configured[0] // patch_size) * (configured[1] // patch_size)
    if table.shape[0] - 1 == num_patches or side * side != table.shape[0] - 1:
        return model_cfg
    return with_overrides(model_cfg, {"image_size": side * patch_size})


def _with_local_text_model(model_cfg: Config, directory: Path | None) -> Config:
    """Take the transformers config of the text tower from the model directory, where it is there."""
    text_cfg = model_cfg["text_cfg"]
    if directory is None or not text_cfg.get("hf_model_name") or not (directory / "config.json").is_file():
        return model_cfg
    return with_overrides(model_cfg, {"text_cfg": {"hf_model_name": str(directory)}})


def _preprocess_config(preprocess_cfg: Any, model_cfg: Config) -> PreprocessConfig:
    size = model_cfg["vision_cfg"].get("image_size", 224)
    return PreprocessConfig.from_dict({**preprocess_cfg, "size": size})


def _check_tokenizer(encoder: DualEncoder, found: ModelSource) -> None:
    assert found.record is not None
    facts = tokenizer_facts(encoder.tokenizer, encoder.config["text_cfg"])
    stored = found.record["tokenizer"]
    changed = [key for key in facts if facts[key] != stored.get(key)]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{found.origin}: the tokenizer changed, {key} is {facts[key]}, the model has {stored.get(key)}"
        )
