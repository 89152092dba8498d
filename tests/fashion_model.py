"""A small dual encoder that somebody trained on Fashion-MNIST with code of their own, and 900 images."""

import json

import numpy as np
import torch
from PIL import Image
from shared_data import shared_data

from clipkit.foreign_files import load_foreign

NAMES = [
    "t-shirt/top",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]


def blocks(tower, stored):
    ours, theirs = f"{tower}.blocks.{{layer}}", f"{stored}.encoder.{{layer}}"
    heads = [f"{theirs}.mha.heads.{{head}}.{part}" for part in ("query", "key", "value")]
    return {
        f"{ours}.self_attn.in_proj_weight": [f"{name}.weight" for name in heads],
        f"{ours}.self_attn.in_proj_bias": [f"{name}.bias" for name in heads],
        f"{ours}.self_attn.out_proj": f"{theirs}.mha.W_o",
        f"{ours}.linear1": f"{theirs}.mlp.0",
        f"{ours}.linear2": f"{theirs}.mlp.2",
        f"{ours}.norm1": f"{theirs}.ln1",
        f"{ours}.norm2": f"{theirs}.ln2",
        f"{tower}.positions": f"{stored}.positional_embedding.pe",
        f"{tower}.projection.weight": {"name": f"{stored}.projection", "transpose": True},
    }


DESCRIPTION = {
    "embed_dim": 32,
    "image": {
        "image_size": 28,
        "patch_size": 14,
        "channels": 1,
        "width": 9,
        "layers": 3,
        "heads": 3,
        "mlp_width": 36,
    },
    "text": {
        "vocab_size": 256,
        "context_length": 32,
        "width": 32,
        "layers": 4,
        "heads": 8,
        "mlp_width": 128,
        "pad": 0,
        "end": 3,
    },
    "bytes": {"start": 2},
    "preprocess": {"mean": 0, "std": 1},
    "names": {
        **blocks("image", "image_encoder"),
        **blocks("text", "text_encoder"),
        "image.patch": "image_encoder.linear_project",
        "image.class_token": "image_encoder.cls_token",
        "text.embedding.weight": "text_encoder.encoder_embedding.weight",
        "logit_scale": "temperature",
    },
}


def load(folder, **changes):
    path = folder / "fashion.json"
    weights = shared_data("tiny_clip_fashion") / "caohuythinh2005.safetensors"
    path.write_text(json.dumps({**DESCRIPTION, "weights": str(weights), **changes}))
    return load_foreign(path)


def images_and_labels():
    stored = np.load(shared_data("tiny_clip_fashion") / "fashion900.npz")
    return [Image.fromarray(image) for image in stored["images"]], torch.from_numpy(stored["labels"]).long()
