"""The plan of an embedding run, its metadata, and its account of time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from clipkit.retrieval import embed_towers
from clipkit.retrieval.embed_chunks import Item
from clipkit.retrieval.embed_clock import bottleneck, rates
from clipkit.retrieval.embed_metadata import metadata_table
from clipkit.retrieval.embed_plan import Plan
from torch.nn.functional import normalize


@pytest.mark.parametrize(("samples", "partition", "chunk"), [(23, 5, 2), (10, 5, 5), (1, 9, 4), (100, 9, 64)])
def test_a_plan_has_every_sample_once(samples: int, partition: int, chunk: int) -> None:
    plan = Plan(num_samples=samples, partition_size=partition, chunk_size=chunk)
    chunks = [plan.chunks(number) for number in range(plan.num_partitions)]
    for number, some in enumerate(chunks):
        inside = [sample for one in some for sample in plan.chunk_samples(one)]
        assert inside == list(plan.samples(number))
    assert [n for number in range(plan.num_partitions) for n in plan.samples(number)] == list(range(samples))
    everything = [one for some in chunks for one in some]
    assert len(everything) == len(set(everything))


def test_labels_sort_like_numbers_and_are_clip_retrievals() -> None:
    for num_partitions in (1, 9, 10, 11, 100, 1234):
        plan = Plan(num_samples=num_partitions, partition_size=1, chunk_size=1)
        labels = [plan.label(number) for number in range(num_partitions)]
        assert sorted(labels) == labels
        assert len(labels[0]) == int(np.log10(num_partitions)) + 1


def item(captions: tuple[str, ...] = ("a",), **fields: Any) -> Item:
    return Item({"image_path": "p"}, captions, fields)


def test_json_fields_are_flattened_and_typed() -> None:
    table = metadata_table(
        [
            item(
                url="u",
                width=3,
                score=1,
                deep={"a": {"b": True}},
                tags=["x"],
                mixed="t",
                key="k",
                caption="no",
            ),
            item(("b", "c"), width=None, score=0.5, deep={}, tags=None, mixed=[1], huge=2**70),
        ]
    )
    assert table.to_pydict() == {
        "image_path": ["p", "p"],
        "caption": ["a", "b"],
        "more_captions": [[], ["c"]],
        "url": ["u", None],
        "width": [3, None],
        "score": [1.0, 0.5],
        "deep.a.b": [True, None],
        "tags": ['["x"]', None],
        "mixed": ["t", "[1]"],
        "key": ["k", None],
        "huge": [None, str(2**70)],
    }
    assert table.schema.field("width").type == pa.int64()
    assert table.schema.field("deep.a.b").type == pa.bool_()
    assert metadata_table([item((), empty=None)]).to_pydict()["empty"] == [None]


def test_rates_are_of_all_ranks() -> None:
    facts = torch.tensor([[30.0, 10.0, 1.0, 8.0, 1.0], [10.0, 5.0, 0.5, 4.0, 0.5]], dtype=torch.float64)
    found = rates(facts)
    assert found == pytest.approx(
        {
            "seconds": 10.0,
            "samples_per_second": 4.0,
            "data_fraction": 0.1,
            "tower_fraction": 0.8,
            "writing_fraction": 0.1,
        }
    )
    assert bottleneck(found) == "the bottleneck was the towers (data 10%, tower 80%, writing 10% of the time)"
    slow = {**found, "data_fraction": 0.9}
    assert "try a larger --num-workers" in bottleneck(slow)


def test_rows_are_normalised_in_fp32() -> None:
    features = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)) * 1e6
    stored = embed_towers._stored(features)
    assert stored.dtype == torch.float16
    assert torch.equal(stored, normalize(features, dim=-1).half())
