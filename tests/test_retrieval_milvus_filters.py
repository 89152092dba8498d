"""Conditions for Milvus leave the rows that they leave in a flat index."""

from __future__ import annotations

import pyarrow as pa
import pytest
from clipkit.retrieval.filters import Filter
from clipkit.retrieval.index import SearchIndex
from clipkit.retrieval.index_build import IndexSettings, build_index
from clipkit.retrieval.milvus_build import build_milvus
from clipkit.retrieval.milvus_filters import milvus_expression
from clipkit.retrieval.milvus_index import MilvusIndex
from hypothesis import given, settings
from hypothesis import strategies as st
from index_folders import images_of, write_embeddings
from milvus_columns import METADATA, NUM_ROWS, queries_of

pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install 'clipkit[milvus]'")
pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: pip install 'clipkit[milvus]'")


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    folder = tmp_path_factory.mktemp("flat")
    write_embeddings(folder / "emb", images_of(NUM_ROWS), columns=METADATA)
    build_index(folder / "emb", folder / "idx", IndexSettings(kind="flat"))
    return SearchIndex.open(folder / "idx")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> MilvusIndex:
    folder = tmp_path_factory.mktemp("milvus")
    emb = write_embeddings(folder / "emb", images_of(NUM_ROWS), columns=METADATA)
    return build_milvus(emb, str(folder / "m.db"), "photos")


TESTS = st.sampled_from(
    [
        *(
            f"size {sign} {value}"
            for sign in ("=", "!=", "<", "<=", ">", ">=")
            for value in (20, 20.5, 20.0, -1)
        ),
        *(f"score {sign} {value}" for sign in ("=", "!=", "<", ">=") for value in (0, -0.25, 1e300)),
        "safe = true",
        "safe != true",
        "size in (1, 2.5, 3, 30)",
        "score in (0, 1.25)",
        "`a note` in (\"it's\", 'a_b')",
        "size is null",
        "tags is null",
        "tags is not null",
        "empty is null",
        "empty = ''",
        "vector = 2",
        "`a note` contains '%'",
        "`a note` contains '_'",
        "`a note` contains '\\\\'",
        "`a note` contains '\"dog'",
        "`a note` contains 'dog'",
        "`a note` startswith '100%'",
        "`a note` startswith '00'",
        '`a note` endswith "\'s"',
        "`a note` endswith 'a_'",
        "`a note` > 'b'",
        "`a note` = 'DOG\tx'",
        "caption contains 'dog'",
    ]
)
CONDITIONS = st.recursive(
    TESTS,
    lambda part: st.one_of(
        part.map(lambda one: f"not ({one})"),
        st.tuples(part, st.sampled_from(["and", "or"]), part).map(lambda three: f"({' '.join(three)})"),
    ),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(text=CONDITIONS)
def test_conditions_leave_the_rows_that_they_leave_in_a_flat_index(
    kept: MilvusIndex, flat: SearchIndex, text: str
) -> None:
    where, query = Filter.parse(text), queries_of(1)
    assert kept.search(query, NUM_ROWS, where=where).ids.tolist() == (
        flat.search(query, NUM_ROWS, where=where).ids.tolist()
    ), text


def test_each_condition_alone(kept: MilvusIndex, flat: SearchIndex) -> None:
    seen = set()
    for text in TESTS.elements:  # type: ignore[attr-defined]
        for whole in (text, f"not {text}"):
            where = Filter.parse(whole)
            ids = kept.search(queries_of(1), NUM_ROWS, where=where).ids
            assert ids.tolist() == flat.search(queries_of(1), NUM_ROWS, where=where).ids.tolist(), whole
            seen.add(int((ids >= 0).sum()))
    assert len(seen) > 10


def test_an_expression_by_hand() -> None:
    schema = pa.schema({"width": pa.int64(), "a b": pa.string()})
    fields = {"width": "width", "a b": "column_1"}

    def of(text: str) -> str:
        return milvus_expression(Filter.parse(text), schema, fields)

    assert of("width >= 2.5") == "(width is not null and (width > 2))"
    assert of("not (width = 1 or `a b` is null)") == (
        "((width is not null and not (width == 1)) and (column_1 is not null))"
    )
    assert of("`a b` startswith '5%\"'") == r'(column_1 is not null and (column_1 like "5\\%\"%"))'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing = 1", "no column 'nothing' to filter by"),
        ("tags = 'x'", "column tags holds list"),
        ("size = 'x'", "column size holds numbers, it cannot be compared with 'x'"),
        ("size contains 'x'", "column size holds numbers"),
        ("score < 1e999", "cannot be compared with inf"),
        ("size < 1e30", "integers of 64 bits"),
    ],
)
def test_conditions_that_are_refused(kept: MilvusIndex, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kept.search(queries_of(1), 3, where=Filter.parse(text))
