"""Texts that share their beginning in one row: the same features as one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import small_model

from clipkit import packed_texts
from clipkit.evaluation import encode_texts
from clipkit.packed_texts import Row, batches, pack, plan_rows
from clipkit.text_towers import needed_lengths

CPU = torch.device("cpu")
TEMPLATES = ("a photo of a {c}.", "a bad photo of the {c}.", "{c}", "art of {c}, in black and white.")
NAMES = ("cat", "red fox", "fire truck", "foxglove", "a very long name of a class that has many words", "")


def texts() -> list[str]:
    return [template.replace("{c}", name) for name in NAMES for template in TEMPLATES]


def tokenized(model):  # type: ignore[no-untyped-def]
    tokens = model.tokenizer(texts())
    return tokens.numpy(), needed_lengths(model.model, tokens).numpy()


def test_features_are_those_of_the_texts_alone() -> None:
    model = small_model(text_cfg={"vocab_size": 49408, "width": 16, "layers": 3, "heads": 4}).double().eval()
    assert packed_texts.can_pack(model.model)
    with torch.inference_mode():
        together = encode_texts(model, texts(), device=CPU)
        alone = torch.cat([model.encode_text(model.tokenizer([text])) for text in texts()])
    torch.testing.assert_close(together.double(), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("row_tokens", [1, 12, 40, 1000])
def test_rows_of_any_size_give_the_same(row_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model().eval()
    with torch.inference_mode():
        expected = encode_texts(model, texts(), device=CPU)
        monkeypatch.setattr(packed_texts, "ROW_TOKENS", row_tokens)
        found = encode_texts(model, texts(), device=CPU, batch_size=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_rows_hold_every_text_once_and_count_their_tokens() -> None:
    tokens, lengths = tokenized(small_model())
    rows = plan_rows(tokens, lengths)
    assert sorted(text for row in rows for text in row.texts) == list(range(len(texts())))
    for row in rows:
        own = sum(int(lengths[text]) - row.prefix_length for text in row.texts)
        assert row.num_tokens == row.prefix_length + own
        assert row.num_tokens <= packed_texts.ROW_TOKENS
        for text in row.texts:
            np.testing.assert_array_equal(
                tokens[text, : row.prefix_length], tokens[row.texts[0], : row.prefix_length]
            )
    assert sum(row.num_tokens for row in rows) < 0.9 * lengths.sum()


def test_the_plan_by_hand() -> None:
    tokens = np.array([[1, 5, 6, 9, 0], [1, 7, 9, 0, 0], [1, 5, 8, 8, 9], [1, 5, 6, 9, 0]])
    lengths = np.array([4, 3, 5, 4])
    rows = plan_rows(tokens, lengths)
    # With the last text the row would have 1 + 3 + 3 + 4 + 2 tokens, 4 more, and alone it has 3.
    assert rows == [
        Row(texts=(0, 3, 2), prefix_length=2, num_tokens=2 + 2 + 2 + 3),
        Row(texts=(1,), prefix_length=3, num_tokens=3),
    ]
    packed = pack(rows, tokens, lengths)
    assert packed.tokens.tolist() == [[1, 5, 6, 9, 6, 9, 8, 8, 9], [1, 7, 9, 0, 0, 0, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 3, 2, 3, 4], [0, 1, 2, 0, 0, 0, 0, 0, 0]]
    assert packed.texts.tolist() == [0, 3, 2, 1]
    assert packed.last.tolist() == [[0, 3], [0, 5], [0, 8], [1, 2]]
    sees = (packed.mask[0] == 0).int()
    assert sees[0].tolist() == [1] + [0] * 8
    assert sees[5].tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 0]
    assert sees[8].tolist() == [1, 1, 0, 0, 0, 0, 1, 1, 1]


def test_a_text_that_is_the_beginning_of_another() -> None:
    tokens = np.array([[1, 5, 9, 0], [1, 5, 9, 7]])
    rows = plan_rows(tokens, np.array([3, 4]))
    assert rows == [Row(texts=(0, 1), prefix_length=3, num_tokens=4)]
    assert pack(rows, tokens, np.array([3, 4])).last.tolist() == [[0, 2], [0, 3]]


def test_batches_hold_what_fits_when_padded() -> None:
    rows = [Row((number,), 0, size) for number, size in enumerate((7, 3, 90, 5, 4))]
    assert [[row.num_tokens for row in batch] for batch in batches(rows, 14)] == [[3, 4], [5, 7], [90]]


def test_towers_that_are_not_causal_are_left_alone() -> None:
    text_cfg = {"vocab_size": 49408, "width": 16, "layers": 1, "heads": 1, "no_causal_mask": True}
    model = small_model(text_cfg=text_cfg).eval()
    assert not packed_texts.can_pack(model.model)
    with torch.inference_mode():
        found = encode_texts(model, texts(), device=CPU, batch_size=4)
        alone = torch.cat([model.encode_text(model.tokenizer([text])) for text in texts()])
    torch.testing.assert_close(found, alone, rtol=0, atol=2e-6)
