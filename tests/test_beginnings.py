"""The distinct beginnings of texts, by hand and by taking them apart again."""

from __future__ import annotations

import numpy as np

from clipkit.beginnings import beginnings


def test_by_hand() -> None:
    plan = beginnings(
        np.array([[1, 5, 6, 9], [1, 7, 9, 0], [1, 5, 9, 0], [1, 5, 6, 9]]), np.array([4, 3, 3, 4])
    )
    assert plan.order.tolist() == [0, 3, 2, 1]
    # 1; 1 5; 1 5 6; 1 5 6 9; the same text again; 1 5 9; 1 7; 1 7 9.
    assert plan.tokens.tolist() == [1, 5, 6, 9, 9, 7, 9]
    assert plan.positions.tolist() == [0, 1, 2, 3, 2, 1, 2]
    assert plan.paths[0].tolist() == plan.paths[1].tolist() == [0, 1, 2, 3]
    assert plan.paths[2, :3].tolist() == [0, 1, 4]
    assert plan.paths[3, :3].tolist() == [0, 5, 6]
    assert plan.first.tolist() == [0, 1, 2, 3, 10, 13, 14]
    assert plan.last.tolist() == [3, 7, 10, 14]


def test_every_text_can_be_read_back_and_every_beginning_is_there_once() -> None:
    rng = np.random.default_rng(0)
    for num_texts, num_columns in ((1, 1), (1, 9), (50, 6), (200, 4)):
        tokens = rng.integers(3, size=(num_texts, num_columns))
        lengths = rng.integers(1, num_columns + 1, size=num_texts)
        plan = beginnings(tokens, lengths)
        width = plan.paths.shape[1]
        for row, text in enumerate(plan.order.tolist()):
            length = int(lengths[text])
            path = plan.paths[row, :length]
            np.testing.assert_array_equal(plan.tokens[path], tokens[text, :length])
            np.testing.assert_array_equal(plan.positions[path], np.arange(length))
            assert plan.last[row] == row * width + length - 1
        distinct = {
            tuple(row[:end])
            for row, n in zip(tokens.tolist(), lengths, strict=True)
            for end in range(1, n + 1)
        }
        assert len(plan.tokens) == len(distinct)
        np.testing.assert_array_equal(plan.paths.ravel()[plan.first], np.arange(len(plan.tokens)))


def test_a_text_that_goes_on_with_what_another_is_padded_with() -> None:
    plan = beginnings(np.array([[1, 9, 0, 0], [1, 9, 0, 4]]), np.array([2, 4]))
    assert plan.tokens.tolist() == [1, 9, 0, 4]
    assert plan.paths[1].tolist() == [0, 1, 2, 3]
