"""Captions and phrases that are packed and encoded once give what each gives alone."""

from __future__ import annotations

import pytest
import torch
from small_models import small_model

from clipkit.packed_texts import Packed
from clipkit.regions import phrases as module
from clipkit.regions.phrases import encode_texts, prepare_texts

CAPTIONS = ["a photo of a red star above the small blue ring", "sky", "two boats on a lake"]
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
    captions, phrases = model.tokenizer(CAPTIONS), model.tokenizer(PHRASES)
    direction = torch.randn(len(CAPTIONS) + len(PHRASES), model.embed_dim, dtype=torch.float64)
    found, gradients = [], []
    for is_packed in (False, True):
        prepared = prepare_texts(model.model, captions, phrases)
        assert isinstance(prepared.parts[0], Packed)
        each = (
            encode_texts(model, prepared)
            if is_packed
            else [model.encode_text(tokens, normalize=True) for tokens in (captions, phrases)]
        )
        features = torch.cat(list(each))
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
    (packed,) = prepare_texts(model.model, model.tokenizer(["sky"]), model.tokenizer(PHRASES * 9)).parts
    assert isinstance(packed, Packed)
    assert len(packed.texts) == 1 + len(set(PHRASES))
    num_words = 1 + sum(len(phrase.split()) for phrase in set(PHRASES))
    assert packed.tokens.shape == (1, 1 + num_words + len(packed.texts))  # a start, and an end of each


def test_rows_are_of_like_length() -> None:
    model = small_model()
    words = ("red", "green", "blue", "small", "big", "old", "new", "wet", "dry", "odd")
    many = [f"a {word} thing number {number}" for word in words for number in range(10)]
    (packed,) = prepare_texts(model.model, model.tokenizer(["a thing"]), model.tokenizer(many)).parts
    assert isinstance(packed, Packed)
    num_rows = len(packed.tokens)
    assert packed.tokens.shape[1] == pytest.approx(64, abs=10)
    assert packed.tokens.numel() <= 100 * (5 + 1) + 3 + num_rows + 6 * num_rows


def test_towers_that_cannot_be_packed_and_no_regions_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    captions, phrases = model.tokenizer(CAPTIONS), model.tokenizer(PHRASES)
    for can_pack in (True, False):
        monkeypatch.setattr(module, "can_pack", lambda _, can_pack=can_pack: can_pack)
        features, none = encode_texts(model, prepare_texts(model.model, captions, phrases[:0]))
        assert none.shape == (0, model.embed_dim)
        (features.sum() + none.sum()).backward()
    prepared = prepare_texts(model.model, captions, phrases)
    assert [tuple(part.shape) for part in prepared.parts if isinstance(part, torch.Tensor)] == [
        (3, 13),
        (5, 9),
    ]
    for found, tokens in zip(encode_texts(model, prepared), (captions, phrases), strict=True):
        torch.testing.assert_close(found, model.encode_text(tokens, normalize=True), rtol=0, atol=1e-9)
