"""Phrases packed and encoded once give what each gives alone."""

from __future__ import annotations

import pytest
import torch
from small_models import small_model

from clipkit.packed_texts import Packed
from clipkit.regions import phrases as module
from clipkit.regions.phrases import encode_phrases, prepare_phrases

PHRASES = [
    "a red star",
    "the small blue ring at the top",
    "sky",
    "a red star",
    "",
    "sky",
    "one two three four",
]


def _model():  # type: ignore[no-untyped-def]
    return small_model(text_cfg={"vocab_size": 49408, "width": 16, "layers": 3, "heads": 4}).double()


@pytest.mark.parametrize("row_tokens", [1, 12, 1000])
def test_features_and_gradients_are_those_of_each_alone(
    row_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROW_TOKENS", row_tokens)
    model = _model()
    tokens = model.tokenizer(PHRASES)
    direction = torch.randn(len(PHRASES), model.embed_dim, dtype=torch.float64)
    found, gradients = [], []
    for is_packed in (False, True):
        prepared = prepare_phrases(model.model, tokens)
        assert isinstance(prepared.texts, Packed)
        features = encode_phrases(model, prepared) if is_packed else model.encode_text(tokens, normalize=True)
        model.zero_grad()
        (features * direction).sum().backward()
        found.append(features.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_the_tower_sees_each_phrase_once_and_no_padding() -> None:
    model = _model()
    packed = prepare_phrases(model.model, model.tokenizer(PHRASES * 9)).texts
    assert isinstance(packed, Packed)
    assert len(packed.texts) == len(set(PHRASES))
    num_words = sum(len(phrase.split()) for phrase in set(PHRASES))
    assert packed.tokens.shape == (1, 1 + num_words + len(set(PHRASES)))  # a start, and an end of each


def test_rows_are_of_like_length() -> None:
    model = small_model()
    words = ("red", "green", "blue", "small", "big", "old", "new", "wet", "dry", "odd")
    phrases = [f"a {word} thing" for word in words]
    many = [f"{phrase} number {number}" for phrase in phrases for number in range(10)]
    packed = prepare_phrases(model.model, model.tokenizer(many)).texts
    assert isinstance(packed, Packed)
    num_tokens = 100 * (5 + 1) + len(packed.tokens)
    assert packed.tokens.numel() <= num_tokens + 6 * len(packed.tokens)


def test_towers_that_cannot_be_packed_and_no_regions_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    tokens = model.tokenizer(PHRASES)
    none = encode_phrases(model, prepare_phrases(model.model, tokens[:0]))
    assert none.shape == (0, model.embed_dim)
    none.sum().backward()
    monkeypatch.setattr(module, "can_pack", lambda _: False)
    prepared = prepare_phrases(model.model, tokens)
    assert isinstance(prepared.texts, torch.Tensor)
    assert prepared.texts.shape == (5, 9)
    found = encode_phrases(model, prepared)
    torch.testing.assert_close(found, model.encode_text(tokens, normalize=True), rtol=0, atol=1e-9)
