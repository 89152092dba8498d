"""CLIP-Adapter: its features written out, training, any class list."""

import pytest
import torch
from prompt_models import MODELS, make_model

from clipkit.adapters.clip_adapter import ClipAdapter, ClipAdapterConfig
from clipkit.heads.features import unit_features
from clipkit.heads.teacher import Teacher

NAMES = ("cat", "red fox", "fire truck")


def make_head(model, **settings):
    torch.manual_seed(2)
    return ClipAdapter(model, ClipAdapterConfig(**settings))


@torch.no_grad()
def test_features_by_hand():
    head = make_head(make_model(embed_dim=2), reduction=2, ratio=0.5)
    head.down.weight.copy_(torch.tensor([[1.0, -1.0]]))
    head.up.weight.copy_(torch.tensor([[2.0], [-1.0]]))
    x = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    # (0.8, 0.6): down 0.2, up (0.4, -0.2) -> (0.4, 0); half of it and of x: (0.6, 0.3). The other: down < 0.
    expected = torch.tensor([[2.0, 1.0], [0.0, 0.0]]) / 5**0.5
    expected[1] = x[1]
    torch.testing.assert_close(head.from_frozen(x), expected)


@torch.no_grad()
def test_features_are_those_of_loops():
    head = make_head(make_model()).double()
    x = unit_features(torch.randn(3, 20, dtype=torch.float64))
    found = head.from_frozen(x)
    for row, result in zip(x, found, strict=True):
        hidden = [max(0.0, float(weights @ row)) for weights in head.down.weight]
        assert len(hidden) == 5
        mixed = [
            0.2 * max(0.0, sum(float(w) * h for w, h in zip(weights, hidden, strict=True))) + 0.8 * float(own)
            for weights, own in zip(head.up.weight, row, strict=True)
        ]
        norm = sum(value**2 for value in mixed) ** 0.5
        assert result.tolist() == pytest.approx([value / norm for value in mixed], abs=1e-12)


@torch.no_grad()
def test_length_of_features_does_not_matter_and_no_ratio_is_no_adapter():
    model, x = make_model(), torch.randn(3, 20)
    head = make_head(model)
    torch.testing.assert_close(head.from_frozen(7 * x), head.from_frozen(x))
    torch.testing.assert_close(make_head(model, ratio=0.0).from_frozen(x), unit_features(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head.from_frozen(x), make_head(model).from_frozen(x))
    torch.testing.assert_close(head.from_frozen(x).norm(dim=1), torch.ones(3))


def test_numbers_of_parameters():
    assert sum(p.numel() for p in make_head(make_model(embed_dim=64)).parameters()) == 2 * 64 * 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bert")


@pytest.mark.parametrize("kind", MODELS)
def test_it_trains_beside_every_model(kind, folder):
    vision, text = MODELS[kind]
    model = make_model(vision, text, folder=folder, embed_dim=64)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for bf16 in (False, True):
        head = make_head(model)
        texts = head.class_texts(model, NAMES)
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
        losses = []
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = head.loss(model, {"image": images, "label": labels}, texts)
            assert loss.dtype == torch.float32
            optimizer.zero_grad()
            loss.backward()
            assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in model.parameters())


@torch.no_grad()
def test_cached_features_are_adapted_once():
    model, images = make_model(), torch.randn(2, 3, 32, 32)
    head = make_head(model, templates=("a {c}.", "the {c}."))
    frozen = unit_features(model.encode_image(images))
    assert torch.equal(
        head.batch_features(model, {"image_features": frozen}), head.batch_features(model, {"image": images})
    )
    assert not torch.allclose(head.image_features(model, images), frozen)
    texts = head.class_texts(model, ("zebra", "dog"))
    logits = head.logits(model, head.image_features(model, images), texts)
    teacher = Teacher(model, head)
    torch.testing.assert_close(teacher.logits(images, teacher.text_features(("zebra", "dog"))), logits)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"^ratio must be 0 to 1, got 1.5$"):
        ClipAdapterConfig(ratio=1.5)
    with pytest.raises(ValueError, match=r"^reduction must be at least 1, got 0$"):
        ClipAdapterConfig(reduction=0)
    with pytest.raises(ValueError, match=r"^reduction must be at most 20, .* got 21$"):
        make_head(make_model(), reduction=21)
