"""Small models for the tests of loading, saving and locking."""

import torch

import clipkit

SMALL = {"embed_dim": 16, "text_cfg": {"vocab_size": 49408, "width": 16, "layers": 1, "heads": 1}}
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
TIMM_CONV = {"timm_model_name": "resnet10t", "image_size": 64}
CAPTIONS = ["a red circle", "two blue squares left of a star", ""]


def small_model(seed=0, **overrides):
    torch.manual_seed(seed)
    return clipkit.create("test-vit", **{**SMALL, **overrides})


def images_for(model, batch=3):
    return torch.randn(batch, 3, *model.image_size, generator=torch.Generator().manual_seed(5))


def assert_same(first, second):
    with torch.no_grad():
        images, text = images_for(first), first.tokenizer(CAPTIONS)
        assert torch.equal(first.encode_image(images), second.encode_image(images))
        assert torch.equal(first.encode_text(text), second.encode_text(text))
