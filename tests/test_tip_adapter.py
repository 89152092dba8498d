"""Tip-Adapter: its scores written out, the search, training, classes that are not in the cache."""

import dataclasses
import math

import pytest
import torch
from prompt_models import MODELS, make_model

from clipkit.adapters.tip_adapter import TipAdapter, TipAdapterConfig, cache_scores, search_scales
from clipkit.heads.features import LabelledFeatures, unit_features
from clipkit.heads.teacher import Teacher

NAMES = ("cat", "red fox", "fire truck")
TEMPLATES = ("a photo of a {c}.", "a drawing of a {c}.")


def shots_of(width, num_classes=3, each=2):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(num_classes * each, width, generator=generator, dtype=torch.float64).float()
    return LabelledFeatures(unit_features(features), torch.arange(num_classes * each) % num_classes)


def make_head(model, **settings):
    head = TipAdapter(model, TipAdapterConfig(**settings))
    head.prepare(model, NAMES, None, shots_of(model.embed_dim))
    return head


def queries(model, count=4):
    return unit_features(torch.randn(count, model.embed_dim, generator=torch.Generator().manual_seed(8)))


def test_cache_scores_by_hand():
    affinity = torch.tensor([[1.0, 0.5, 0.0]])
    values = torch.tensor([[1, 0], [0, 1], [0, 1]])
    expected = torch.tensor([[1.0, math.exp(-1) + math.exp(-2)]])
    torch.testing.assert_close(cache_scores(affinity, values, 2.0), expected)


@pytest.mark.parametrize("templates", [TEMPLATES[:1], TEMPLATES])
def test_scores_are_those_of_loops(templates):
    model = make_model()
    head = make_head(model, alpha=1.7, beta=2.5, templates=templates)
    x, shots = queries(model), shots_of(model.embed_dim)
    names = ("fire truck", "zebra", "cat")
    found = head.logits(model, x, head.class_texts(model, names))
    for row in range(len(x)):
        for column, name in enumerate(names):
            rows = [model.encode_text(model.tokenizer([text.replace("{c}", name)]))[0] for text in templates]
            mean = sum(row / row.norm() for row in rows)
            score = model.logit_scale.exp() * (x[row] @ mean) / mean.norm()
            for key, label in zip(shots.image_features, shots.labels.tolist(), strict=True):
                if NAMES[label] == name:
                    score += 1.7 * math.exp(-2.5 * (1 - float(x[row] @ key)))
            assert float(found[row, column]) == pytest.approx(float(score), abs=1e-4)


def test_without_weight_or_cached_class_it_is_the_zero_shot_classifier():
    model = make_model()
    head, x = make_head(model), queries(model)
    texts = head.class_texts(model, NAMES)
    zero_shot = model.logit_scale.exp() * x @ head.text_features(model, texts).T
    assert not torch.allclose(head.logits(model, x, texts), zero_shot)
    new = head.class_texts(model, ("zebra", "dog"))
    expected = model.logit_scale.exp() * x @ head.text_features(model, new).T
    torch.testing.assert_close(head.logits(model, x, new), expected)
    head.config = dataclasses.replace(head.config, alpha=0.0)
    torch.testing.assert_close(head.logits(model, x, texts), zero_shot)


def test_order_of_classes_and_images_does_not_matter():
    model = make_model()
    head, x, shots = make_head(model), queries(model), shots_of(model.embed_dim)
    scores = head.logits(model, x, head.class_texts(model, NAMES))
    backward = head.logits(model, x, head.class_texts(model, NAMES[::-1]))
    torch.testing.assert_close(backward.flip(1), scores)
    other = TipAdapter(model, TipAdapterConfig())
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    other.prepare(model, NAMES, None, LabelledFeatures(shots.image_features[order], shots.labels[order]))
    torch.testing.assert_close(other.logits(model, x, other.class_texts(model, NAMES)), scores)


def slow_search(zero_shot, affinity, values, labels, initial):
    def num_right(alpha, beta):
        scores = zero_shot + alpha * torch.exp(-beta * (1 - affinity)) @ values
        return sum(int(row.argmax() == label) for row, label in zip(scores, labels, strict=True))

    best, found = num_right(*initial), initial
    for i in range(200):
        for j in range(20):
            beta, alpha = 0.1 + i * 6.9 / 200, 0.1 + j * 2.9 / 20
            if num_right(alpha, beta) > best:
                best, found = num_right(alpha, beta), (alpha, beta)
    return found


def test_search_is_that_of_loops(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    affinity = torch.rand(9, 4, generator=generator)
    values = torch.eye(2).repeat(2, 1)
    zero_shot, labels = torch.randn(9, 2, generator=generator), torch.arange(9) % 2
    found = search_scales(zero_shot, affinity, values, labels, (0.0, 5.5))
    assert found == pytest.approx(slow_search(zero_shot, affinity, values, labels, (0.0, 5.5)))
    assert found != (0.0, 5.5)
    assert search_scales(zero_shot, affinity, values, zero_shot.argmax(1), (0.0, 5.5)) == (0.0, 5.5)


def test_search_takes_the_least_that_suffices():
    """Zero-shot is wrong by 2; the only key is the image itself, so any beta does and alpha must exceed 2."""
    arguments = torch.tensor([[2.0, 0.0]]), torch.ones(1, 1), torch.tensor([[0.0, 1.0]]), torch.tensor([1])
    alpha, beta = search_scales(*arguments, (1.0, 5.5))
    assert (alpha, beta) == (pytest.approx(0.1 + 14 * 2.9 / 20), pytest.approx(0.1))


def test_tune_keeps_what_it_finds():
    model = make_model()
    head, x = make_head(model), queries(model, 12)
    texts, labels = head.class_texts(model, NAMES), torch.arange(12) % 3

    def num_right():
        return int((head.logits(model, x, texts).argmax(1) == labels).sum())

    before, keys = num_right(), head.keys.clone()
    head.tune(model, LabelledFeatures(x, labels), texts)
    assert num_right() >= before
    assert torch.equal(head.keys, keys)
    assert head.config.cache_classes == NAMES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bert")


@pytest.mark.parametrize("kind", MODELS)
def test_keys_train_beside_every_model(kind, folder):
    vision, text = MODELS[kind]
    model = make_model(vision, text, folder=folder, embed_dim=64)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for bf16 in (False, True):
        head = make_head(model, train_keys=True)
        texts = head.class_texts(model, NAMES)
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
        losses = []
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = head.loss(model, {"image": images, "label": labels}, texts)
            assert loss.dtype == torch.float32
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
        assert head.keys.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_learns_from_cached_features_as_from_images():
    model = make_model()
    head, images, labels = make_head(model), torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    texts = head.class_texts(model, NAMES)
    known = {"image_features": unit_features(model.encode_image(images)), "label": labels}
    assert torch.equal(
        head.loss(model, known, texts), head.loss(model, {"image": images, "label": labels}, texts)
    )


def test_keys_are_the_images_and_are_learned_only_if_asked():
    model = make_model()
    plain, trained = make_head(model), make_head(model, train_keys=True)
    assert list(plain.parameters()) == []
    assert [parameter.shape for parameter in trained.parameters()] == [(6, 20)]
    assert torch.equal(plain.keys, shots_of(20).image_features)
    assert set(plain.state_dict()) == set(trained.state_dict()) == {"keys", "labels"}
    again = TipAdapter(model, plain.config)
    again.load_state_dict(plain.state_dict())
    texts = plain.class_texts(model, NAMES)
    assert torch.equal(again.logits(model, queries(model), texts), plain.logits(model, queries(model), texts))


def test_what_it_cannot_do():
    model = make_model()
    with pytest.raises(ValueError, match=r"^tip-adapter is made of labelled images: prepare it"):
        TipAdapter(model, TipAdapterConfig()).prepare(model, NAMES)
    with pytest.raises(ValueError, match=r"^alpha must be >= 0 and beta > 0, got -1 and 5.5$"):
        TipAdapterConfig(alpha=-1)
    with pytest.raises(ValueError, match=r"^templates need \{c\} .* got 'a cat'$"):
        TipAdapterConfig(templates=("a {c}", "a cat"))
    with pytest.raises(ValueError, match=r"^templates need \{c\} .* got none$"):
        TipAdapterConfig(templates=())
    with pytest.raises(ValueError, match="which tip-adapter does not have"):
        Teacher(model, make_head(model))
