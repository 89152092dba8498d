"""Conditions on metadata as boolean expressions of Milvus.

A missing value makes a test neither true nor false. What `not` makes of missing values is different
in Milvus and in Milvus Lite, so `not` is moved inside to the tests, and each of them asks for a value first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pyarrow as pa

from .filters import Filter, Joined, Node, Test, Value

_NEVER, _ALWAYS = "id < 0", "id >= 0"
_OPPOSITE = {"and": "or", "or": "and"}
_BETWEEN_INTEGERS = {">": ">", ">=": ">", "<": "<=", "<=": "<="}
"""`x >= 1.5` is `x > 1` for integers."""


def milvus_expression(where: Filter, schema: pa.Schema, fields: Mapping[str, str]) -> str:
    """What `where` is for Milvus.

    Args:
        where: the condition.
        schema: columns and their types.
        fields: the field of each column.

    Raises:
        ValueError: an unknown column, or values that cannot be compared with a column.
    """
    where.check(schema.names)
    where.mask(schema.empty_table())
    return _expression(where.tree, True, schema, fields)


def _expression(node: Node, wanted: bool, schema: pa.Schema, fields: Mapping[str, str]) -> str:
    """An expression that is true where `node` is `wanted`, and not where it is unknown."""
    if isinstance(node, Test):
        return _test(node, wanted, schema.field(node.column).type, fields[node.column])
    if isinstance(node, Joined):
        word = node.word if wanted else _OPPOSITE[node.word]
        parts = [_expression(part, wanted, schema, fields) for part in node.parts]
        return "(" + f" {word} ".join(parts) + ")"
    return _expression(node.part, not wanted, schema, fields)


def _test(test: Test, wanted: bool, kind: pa.DataType, field: str) -> str:
    if test.test == "null":
        return f"({field} is null)" if wanted else f"({field} is not null)"
    if test.test == "in":
        comparison = " or ".join(f"({_compared(field, '=', value, kind)})" for value in test.values)
    else:
        comparison = _compared(field, test.test, test.values[0], kind)
    return f"({field} is not null and {'' if wanted else 'not '}({comparison}))"


def _compared(field: str, test: str, value: Value, kind: pa.DataType) -> str:
    if test in ("contains", "startswith", "endswith"):
        text = str(value).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        before = "" if test == "startswith" else "%"
        after = "" if test == "endswith" else "%"
        return f"{field} like {_literal(before + text + after)}"
    sign = "==" if test == "=" else test
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{field} cannot be compared with {value}: Milvus knows finite numbers only")
        if pa.types.is_integer(kind):
            whole = math.floor(value)
            if value != whole:
                if sign not in _BETWEEN_INTEGERS:
                    return _NEVER if sign == "==" else _ALWAYS
                sign = _BETWEEN_INTEGERS[sign]
            value = whole
    if pa.types.is_integer(kind) and not -(2**63) <= int(value) < 2**63:
        raise ValueError(f"{field} cannot be compared with {value}: Milvus keeps integers of 64 bits")
    return f"{field} {sign} {_literal(value)}"


def _literal(value: Value) -> str:
    return json.dumps(value, ensure_ascii=False)
