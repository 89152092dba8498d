"""Regions on their way into training batches: true to the picture, drawn by hash, all losses counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_shards import encode, photo, write_tar
from clipkit.training.data.regions import check_regions
from loader_jobs import take
from rank_pool import RankPool
from region_train_jobs import (
    BAD_COUNTS,
    BAD_REGIONS,
    counts_on_ranks,
    open_regions,
    region_loader,
    write_regions,
)

from clipkit.augment import AugmentConfig
from clipkit.data.regions import read_regions
from clipkit.data.samples import RawSample, Source

FIELDS = ("image", "text", "boxes", "box_index", "region_text")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_regions(tmp_path_factory.mktemp("regions"))


@pytest.fixture
def source(path: Path) -> Source:
    return open_regions(path)


def _phrases(batch: dict[str, Any]) -> list[tuple[str, str]]:
    """Key of the image and phrase of each region, with a box of four numbers."""
    assert batch["boxes"].shape == (len(batch["box_index"]), 4)
    texts = [bytes(row[row > 0].tolist()).decode() for row in batch["region_text"]]
    return [
        (batch["key"][image], text) for image, text in zip(batch["box_index"].tolist(), texts, strict=True)
    ]


def test_a_batch_has_the_regions_of_its_images(source: Source) -> None:
    (batch,) = take(region_loader(source, batch=len(BAD_REGIONS)), 1)
    assert batch["boxes"].dtype == torch.float32
    assert batch["box_index"].dtype == torch.int64
    assert bool((batch["box_index"].diff() >= 0).all())
    found = _phrases(batch)
    usable = {("ok", "left half"), ("nan", "all"), ("order", "all"), ("words", "all"), ("object", "alone")}
    assert {pair for pair in found if pair[0] != "many"} == usable
    numbers = [text for key, text in found if key == "many"]
    assert len(set(numbers)) == 4
    assert numbers == sorted(numbers)
    row = found.index(("ok", "left half"))
    torch.testing.assert_close(batch["boxes"][row], torch.tensor([0.0, 0.0, 0.5, 1.0]))


def test_every_loss_is_counted_in_every_epoch(source: Source) -> None:
    steps = region_loader(source, batch=len(BAD_REGIONS))
    take(steps, 1)
    assert steps.lost_regions().counts == {"shapes": BAD_COUNTS}
    (example,) = steps.lost_regions().examples["shapes"]["box_in_wrong_convention"]
    assert "0.tar: pixels: boxes must be fractions in [0, 1], got [3.0, 2.0, 11.0, 12.0]" in example
    assert steps.skip_report().counts == {"shapes": {}}
    take(steps, 2)
    assert steps.lost_regions().counts["shapes"] == {name: 3 * count for name, count in BAD_COUNTS.items()}


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"start_step": 2}])
def test_regions_are_a_function_of_the_step(source: Source, options: dict[str, int]) -> None:
    augment = AugmentConfig(scale=(0.4, 1.0), horizontal_flip=0.5)
    whole = take(region_loader(source, batch=6, augment=augment), 8)
    start = options.get("start_step", 0)
    for expected, batch in zip(
        whole[start:],
        take(region_loader(source, batch=6, augment=augment, **options), 8 - start),
        strict=True,
    ):
        assert batch["key"] == expected["key"]
        assert all(torch.equal(batch[name], expected[name]) for name in FIELDS)


def test_ranks_share_the_regions_of_a_batch(source: Source) -> None:
    (whole,) = take(region_loader(source, batch=12), 1)
    parts = [take(region_loader(source, batch=3, rank=rank, world=4), 1)[0] for rank in range(4)]
    assert _phrases(whole) == [pair for part in parts for pair in _phrases(part)]
    assert torch.equal(whole["boxes"], torch.cat([part["boxes"] for part in parts]))


def test_other_regions_are_drawn_in_another_epoch(source: Source) -> None:
    batches = take(region_loader(source, batch=len(BAD_REGIONS)), 12)
    drawn = [tuple(text for key, text in _phrases(batch) if key == "many") for batch in batches]
    counts = {number: sum(str(number) in texts for texts in drawn) for number in range(1, 7)}
    assert len(set(drawn)) > 4
    assert min(counts.values()) > 2


def test_boxes_go_with_the_crop(source: Source) -> None:
    """The left half is white: however a picture is cut and mirrored, `left half` is where it is white."""
    augment = AugmentConfig(scale=(0.3, 0.8), horizontal_flip=0.5)
    lost = seen = 0
    steps = region_loader(source, batch=len(BAD_REGIONS), augment=augment)
    for batch in take(steps, 20):
        image = batch["image"][batch["key"].index("ok")].float().mean(dim=(0, 1)) / 255
        rows = [row for row, pair in enumerate(_phrases(batch)) if pair[0] == "ok"]
        lost += not rows
        for row in rows:
            seen += 1
            left, _, right, _ = (16 * batch["boxes"][row]).tolist()
            centres = torch.arange(16) + 0.5
            is_inside = (centres > left + 1) & (centres < right - 1)
            is_outside = (centres < left - 1) | (centres > right + 1)
            assert bool((image[is_inside] > 0.8).all())
            assert bool((image[is_outside] < 0.2).all())
    assert seen > 5
    assert steps.lost_regions().counts["shapes"].get("box_cut_off_by_the_crop", 0) >= lost


def test_counts_go_through_json(source: Source) -> None:
    whole = region_loader(source, batch=4)
    take(whole, 6)
    first = region_loader(source, batch=4)
    take(first, 3)
    first.gather_skips()
    rest = region_loader(source, batch=4, start_step=3)
    rest.load_lost_regions_state(json.loads(json.dumps(first.lost_regions_state())))
    take(rest, 3)
    assert rest.lost_regions() == whole.lost_regions()


@pytest.mark.parametrize("world", [1, 2])
def test_counts_over_ranks(ranks: RankPool, path: Path, tmp_path: Path, world: int) -> None:
    found = ranks.run(world, counts_on_ranks, str(path), str(tmp_path / "cache"))
    assert found == [{"shapes": BAD_COUNTS}] * world


def _tar(path: Path, regions: list[Any]) -> Source:
    members: dict[str, bytes] = {}
    for number, found in enumerate(regions):
        members |= {f"{number}.jpg": encode(photo(number)), f"{number}.txt": b"x"}
        members[f"{number}.json"] = json.dumps({"regions": found}).encode()
    return open_regions(write_tar(path, members))


def test_data_that_cannot_be_meant_is_refused_before_training(tmp_path: Path) -> None:
    good = _tar(tmp_path / "good.tar", [[{"box": [0.1, 0, 1, 1], "phrase": "x"}]])
    check_regions([good])
    none = _tar(tmp_path / "none.tar", [[], None])
    check_regions([good, none])
    with pytest.raises(ValueError, match=r"none of 2 samples looked at has `regions`"):
        check_regions([none])
    box = {"box": [3, 2, 11, 12], "phrase": "x"}
    pixels = _tar(tmp_path / "pixels.tar", [[box], [box], []])
    with pytest.raises(
        ValueError,
        match=r"source 'shapes': boxes must be x0, y0, x1, y1 in fractions .*look like pixels; write them",
    ):
        check_regions([good, pixels])
    empty = _tar(tmp_path / "empty.tar", [[{"box": [0.1, 0.1, 0.1, 0.5], "phrase": "x"}]])
    with pytest.raises(ValueError, match=r"most regions of source 'shapes' .*\(1 box_without_area\)"):
        check_regions([good, empty])


def _pairs(boxes: list[list[float]]) -> list[Any]:
    """Regions of samples that have one or two each, in turn."""
    regions = [{"box": box, "phrase": "x"} for box in boxes]
    found, size = [], 1
    while regions:
        found.append(regions[:size])
        regions, size = regions[size:], 3 - size
    return found


def test_another_convention_shows_in_samples_of_few_boxes(tmp_path: Path) -> None:
    corner = [[x / 10, y / 10, 0.3, 0.2] for x in range(7) for y in range(8)]
    with pytest.raises(
        ValueError, match=r"fractions of the image, but 50 of 56 .*like x, y, width, height in"
    ):
        check_regions([_tar(tmp_path / "xywh.tar", _pairs(corner))])
    good = [[x, y, x + width, y + height] for x, y, width, height in corner]
    bad = [[0.5, 0.5, 0.2, 0.1], [0.9, 0.9, 1.4, 1.4], [0.5, 0.5, 0.5, 0.5], [0, 0, 40, 30], [0, 0, 1]]
    check_regions([_tar(tmp_path / "xyxy.tar", _pairs(good + bad))])  # type: ignore[operator]


class _Sparse(Source):
    """Every `step`-th sample has a region."""

    def __init__(self, size: int, step: int) -> None:
        super().__init__("sparse")
        self.sizes_per_shard = (size,)
        self.num_read = 0
        self._step = step

    def read(self, index: int) -> RawSample:
        self.num_read += 1
        found = [{"box": [0, 0, 1, 1], "phrase": "x"}] if index % self._step == self._step - 1 else []
        return RawSample(str(index), b"", (), fields={"regions": found})

    def where(self, index: int) -> str:
        return str(index)


def test_rare_regions_are_found_by_a_longer_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.training.data.regions._NUM_LOOKED_AT_IF_RARE", 1_000)
    rare = _Sparse(1_000, 150)
    check_regions([rare])
    assert rare.num_read == 200 + 1_000
    often = _Sparse(100_000, 2)
    check_regions([often])
    assert often.num_read == 200
    never = _Sparse(100_000, 200_000)
    with pytest.raises(ValueError, match=r"none of 1,000 samples looked at has `regions`"):
        check_regions([never])


def test_unusable_fields_are_no_error() -> None:
    assert read_regions({}).phrases == ()
    assert read_regions({"regions": "a red star"}).lost == {"region_not_an_object": 1}
    assert read_regions({"regions": {"box": [10**400, 0, 1, 1], "phrase": "x"}}).lost == {
        "box_not_four_finite_numbers": 1
    }
    assert read_regions({"regions": [[0, 0, 1, 1]]}).lost == {"region_not_an_object": 1}
