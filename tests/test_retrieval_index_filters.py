"""The language of conditions on metadata."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from clipkit.retrieval.filters import Filter
from hypothesis import given
from hypothesis import strategies as st

TABLE = pa.table(
    {
        "width": pa.array([100, 200, None, 400]),
        "score": [0.5, 1.5, 2.5, -1.0],
        "caption": ["a dog", "a 'cat'", None, 'the "dog" \\ and'],
        "safe": [True, False, None, True],
        "a b": ["x", "y", "z", "x"],
        "size.width": [1, 2, 3, 4],
        "tags": [["a"], [], None, ["b"]],
        "empty": pa.nulls(4),
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("width >= 200", [1, 3]),
        ("width = 100 or width == 400", [0, 3]),
        ("width != 100", [1, 3]),  # an unknown width is not known to differ
        ("not width = 100", [1, 3]),
        ("NOT (width < 300 AND score > 1)", [0, 3]),  # 2: unknown and true is unknown
        ("not (width > 0 and score < 0)", [0, 1, 2]),  # unknown and false is false
        ("width < 300 or score > 2", [0, 1, 2]),  # unknown or true is true
        ("width is null", [2]),
        ("width is not null", [0, 1, 3]),
        ("score < -.5", [3]),
        ("score >= 15e-1", [1, 2]),
        ("width > 150.5", [1, 3]),
        ('caption contains "dog"', [0, 3]),
        ("""caption contains "'cat'" """, [1]),
        (r'caption contains "\"dog\" \\"', [3]),
        ("caption startswith 'the'", [3]),
        ("caption endswith 'dog'", [0]),
        ("safe = true", [0, 3]),
        ("not safe = true", [1]),
        ("`a b` in ('x', 'z')", [0, 2, 3]),
        ("size.width in (4)", [3]),
        ("empty = 1", []),
        ("empty is null", [0, 1, 2, 3]),
        ("absent = 1", []),
        ("absent is null", [0, 1, 2, 3]),
        ("width = 100 or width = 200 and score = 0", [0]),  # and binds closer
        ("(width = 100 or width = 200) and score = 0", []),
    ],
)
def test_conditions(text: str, rows: list[int]) -> None:
    assert np.flatnonzero(Filter.parse(text).mask(TABLE)).tolist() == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 'nothing more' where the name of a column was expected"),
        ("width", "has 'nothing more' where one of = == != < <= > >= contains"),
        ("width >=", "where a text in quotes, a number, true or false was expected"),
        ("width >= height", "has 'height' where a text in quotes"),
        ("width > 1 height > 2", "has 'height' where and, or, or the end was expected"),
        ("(width > 1", r"has 'nothing more' where \) was expected"),
        ("width in 3", r"has '3' where \( was expected"),
        ("caption contains 3", "has '3' where a text in quotes was expected"),
        ("width = __import__('os')", "has '__import__' where"),
        ("width = 1; drop", "has ';' where and, or, or the end"),
        ('caption = "open', "where a text in quotes"),
        ("width = 12px", "has '12px' where"),
        ("(" * 60 + "width = 1" + ")" * 60, "nests more than 50 deep"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filter.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width = 'x'", "column width holds numbers, it cannot be compared with 'x'"),
        ("caption > 3", "column caption holds text, it cannot be compared with 3"),
        ("safe = 1", "column safe holds bool, it cannot be compared with 1"),
        ("width = true", "column width holds numbers, it cannot be compared with True"),
        ("width contains '1'", "column width holds numbers"),
        ("tags = 'a'", "column tags holds list<.*>, which a condition cannot compare"),
    ],
)
def test_values_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filter.parse(text).mask(TABLE)


def test_unknown_columns_are_named() -> None:
    condition = Filter.parse("width > 1 and (a = 1 or width < 9)")
    assert condition.columns == ("width", "a")
    condition.check(["a", "width"])
    with pytest.raises(ValueError, match="no column 'a' to filter by, there are: width, caption"):
        condition.check(["width", "caption"])


def test_equal_texts_are_equal_filters() -> None:
    assert Filter.parse("a = 1") == Filter.parse("a = 1") != Filter.parse("a = 2")
    assert len({Filter.parse("a in (1, 2)"), Filter.parse("a in (1, 2)")}) == 1


@given(st.text(max_size=40))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        mask = Filter.parse(text).mask(TABLE)
    except ValueError:
        return
    assert mask.shape == (4,)


@given(st.text(max_size=20))
def test_any_text_can_be_quoted(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    table = pa.table({"a": [value, value + "x", None]})
    assert Filter.parse(f'a = "{quoted}"').mask(table).tolist() == [True, False, False]
