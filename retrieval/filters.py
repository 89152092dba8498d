"""Conditions on metadata, such as `width >= 512 and caption contains "dog"`, without any code in them.

    condition   = both { "or" both }
    both        = one { "and" one }
    one         = "not" one | "(" condition ")" | COLUMN test
    test        = ("=" | "==" | "!=" | "<" | "<=" | ">" | ">=") VALUE
                | ("contains" | "startswith" | "endswith") TEXT
                | "in" "(" VALUE { "," VALUE } ")"
                | "is" ["not"] "null"
    VALUE       = TEXT | NUMBER | "true" | "false"
    COLUMN      = a name with letters, digits, "_" and ".", or any name in `backquotes`

A missing value makes a test neither true nor false, as in SQL; rows of which a condition is not true are left
out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Value = str | float | int | bool

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    |(?P<quoted>`[^`]+`)|(?P<word>[^\W\d][\w.]*)|(?P<sign><=|>=|!=|==|=|<|>|\(|\)|,))""",
    re.VERBOSE,
)
_COMPARISONS: dict[str, Callable[..., Any]] = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_TEXT_TESTS: dict[str, Callable[..., Any]] = {
    "contains": pc.match_substring,
    "startswith": pc.starts_with,
    "endswith": pc.ends_with,
}
_MAX_DEPTH = 50


@dataclass(frozen=True)
class Test:
    """A column compared with values; `test` is an operator or word of the language, or `null`."""

    column: str
    test: str
    values: tuple[Value, ...] = ()

    def on(self, table: pa.Table) -> Any:
        """True, false or null for each row."""
        if self.column not in table.column_names:
            values: Any = pa.nulls(table.num_rows)
        else:
            values = table[self.column]
        if self.test == "null":
            return pc.is_null(values)
        if pa.types.is_null(values.type):
            return pa.nulls(table.num_rows, pa.bool_())
        self._check(values.type)
        if self.test == "in":
            found = [pc.equal(values, value) for value in self.values]
            return _fold(pc.or_kleene, found)
        function = _TEXT_TESTS.get(self.test) or _COMPARISONS[self.test]
        return function(values, self.values[0])

    def _check(self, kind: pa.DataType) -> None:
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        named = "text" if is_text else "numbers" if is_number else str(kind)
        if not (is_text or is_number or pa.types.is_boolean(kind)):
            raise ValueError(f"column {self.column} holds {named}, which a condition cannot compare")
        for value in self.values:
            fits = (
                isinstance(value, str)
                if is_text
                else isinstance(value, bool)
                if pa.types.is_boolean(kind)
                else isinstance(value, int | float) and not isinstance(value, bool)
            )
            if not fits or (self.test in _TEXT_TESTS and not is_text):
                raise ValueError(f"column {self.column} holds {named}, it cannot be compared with {value!r}")


@dataclass(frozen=True)
class Not:
    """The opposite of a condition."""

    part: Node

    def on(self, table: pa.Table) -> Any:
        """True, false or null for each row."""
        return pc.invert(self.part.on(table))


@dataclass(frozen=True)
class Joined:
    """Conditions between which stands `and` or `or`."""

    word: str
    parts: tuple[Node, ...]

    def on(self, table: pa.Table) -> Any:
        """True, false or null for each row."""
        function = pc.and_kleene if self.word == "and" else pc.or_kleene
        return _fold(function, [part.on(table) for part in self.parts])


Node = Test | Not | Joined


@dataclass(frozen=True)
class Filter:
    """A condition that was understood; see the module for the language. Equal texts are equal filters."""

    text: str
    columns: tuple[str, ...]
    """Names that occur in it."""
    tree: Node
    """What it says."""

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Understand a condition.

        Raises:
            ValueError: it is none; the place where reading ended is shown.
        """
        parser = _Parser(text)
        tree = parser.condition(0)
        parser.end()
        return cls(text, tuple(dict.fromkeys(parser.columns)), tree)

    def mask(self, table: pa.Table) -> Any:
        """(N,) bool numpy array: the rows for which the condition is true.

        Args:
            table: N rows; a column that it lacks counts as missing values.

        Raises:
            ValueError: a column holds something that cannot be compared so.
        """
        found = self.tree.on(table)
        if isinstance(found, pa.ChunkedArray):
            found = found.combine_chunks()
        return pc.fill_null(found, False).to_numpy(zero_copy_only=False)

    def check(self, columns: Sequence[str]) -> None:
        """Refuse names that are no columns.

        Raises:
            ValueError: the first one, with those that there are.
        """
        for name in self.columns:
            if name not in columns:
                raise ValueError(f"there is no column {name!r} to filter by, there are: {', '.join(columns)}")


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._kind, self._token = "", ""
        self.columns: list[str] = []
        self._next()

    def condition(self, depth: int) -> Node:
        return self._join("or", lambda: self._join("and", lambda: self._one(depth)))

    def end(self) -> None:
        if self._kind:
            raise self._wrong("and, or, or the end")

    def _join(self, word: str, read: Callable[[], Node]) -> Node:
        parts = [read()]
        while self._take(word):
            parts.append(read())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _one(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise ValueError(f"the condition nests more than {_MAX_DEPTH} deep")
        if self._take("not"):
            return Not(self._one(depth + 1))
        if self._take("("):
            inside = self.condition(depth + 1)
            self._expect(")")
            return inside
        return self._test()

    def _test(self) -> Node:
        if self._kind not in ("word", "quoted"):
            raise self._wrong("the name of a column")
        column = self._token.strip("`")
        self.columns.append(column)
        self._next()
        test = self._token.lower()
        if self._kind == "sign" and test in _COMPARISONS:
            self._next()
            return Test(column, test, (self._value(),))
        if self._take("is"):
            negated = self._take("not")
            self._expect("null")
            return Not(Test(column, "null")) if negated else Test(column, "null")
        if self._take("in"):
            self._expect("(")
            values = [self._value()]
            while self._take(","):
                values.append(self._value())
            self._expect(")")
            return Test(column, "in", tuple(values))
        if self._kind == "word" and test in _TEXT_TESTS:
            self._next()
            if self._kind != "text":
                raise self._wrong("a text in quotes")
            return Test(column, test, (self._value(),))
        raise self._wrong(f"one of {' '.join((*_COMPARISONS, *_TEXT_TESTS, 'in', 'is'))}")

    def _value(self) -> Value:
        kind, token = self._kind, self._token
        value: Value
        if kind == "text":
            value = re.sub(r"\\(.)", r"\1", token[1:-1])
        elif kind == "number":
            value = int(token) if re.fullmatch(r"[+-]?\d{1,18}", token) else float(token)
        elif kind == "word" and token.lower() in ("true", "false"):
            value = token.lower() == "true"
        else:
            raise self._wrong("a text in quotes, a number, true or false")
        self._next()
        return value

    def _take(self, word: str) -> bool:
        if self._kind in ("word", "sign") and self._token.lower() == word:
            self._next()
            return True
        return False

    def _expect(self, word: str) -> None:
        if not self._take(word):
            raise self._wrong(word)

    def _next(self) -> None:
        if not self._text[self._place :].strip():
            self._kind, self._token = "", ""
            return
        match = _TOKEN.match(self._text, self._place)
        if match is None:
            self._kind, self._token = "other", self._text[self._place :].split()[0]
            return
        self._kind = str(match.lastgroup)
        self._token = match[self._kind]
        self._place = match.end()

    def _wrong(self, expected: str) -> ValueError:
        found = self._token or "nothing more"
        return ValueError(f"the condition {self._text!r} has {found!r} where {expected} was expected")


def _fold(function: Callable[..., Any], arrays: Sequence[Any]) -> Any:
    result = arrays[0]
    for array in arrays[1:]:
        result = function(result, array)
    return result
