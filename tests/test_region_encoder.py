"""Answers about parts of images, from the cache or from one forward, and on any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from clipkit.zeroshot.region_encoder import RegionEncoder
from clipkit.zeroshot.region_source import (
    ANSWERS,
    GROUNDED,
    HEAD,
    PEAKS,
    QUERIES,
    TOKENS,
    Asked,
    RegionSource,
)
from PIL import Image
from rank_pool import RankPool
from region_jobs import answers_of_rank
from region_shards import COLOURS, draw, made_regions, random_model

import clipkit
from clipkit.data.image_files import ImageFiles
from clipkit.data.prompted_images import Region
from clipkit.feature_cache import FeatureCache
from clipkit.regions.answers import grid_of
from clipkit.regions.dense import dense_map, pool_tokens


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = []
    for number, own in enumerate(made_regions(5)):
        paths.append(folder / f"{number}.png")
        draw(own).save(paths[-1])
    return paths


def _source(files: Sequence[Path], wanted: Sequence[str], *, phrases: Sequence[str] = ()) -> RegionSource:
    asked = [
        Asked(boxes=tuple(Region(tuple(one["box"])) for one in own), phrases=tuple(phrases))
        for own in made_regions(len(files))
    ]
    return RegionSource(ImageFiles(files), range(len(files)), asked, wanted=wanted)


def _inputs(model: clipkit.DualEncoder, files: Sequence[Path]) -> torch.Tensor:
    return torch.stack([model.preprocess()(Image.open(path)) for path in files])


def test_features_of_boxes_are_those_of_the_model(files: list[Path]) -> None:
    model = random_model("prompter")
    encoded, found = RegionEncoder(model, None).regions(_source(files, [HEAD, TOKENS]), batch_size=2)
    boxes = torch.tensor([one["box"] for own in made_regions(5) for one in own])
    index = torch.arange(5).repeat_interleave(2)
    with torch.no_grad():
        seen = model.tokens(_inputs(model, files))
        expected = {
            HEAD: model.encode_regions(seen, boxes, index),
            TOKENS: pool_tokens(model, seen, boxes, index),
        }
        pooled = model.encode_image(_inputs(model, files), normalize=True)
    torch.testing.assert_close(encoded.features, pooled, rtol=0, atol=1e-5)
    assert found.index.tolist() == [0, 1, 2, 3, 4]
    assert (found.head, found.lacking, found.problems) == ("prompter", {}, {})
    for method, rows in expected.items():
        own = torch.cat([image.features[method] for image in found.images])
        torch.testing.assert_close(own, rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([image.boxes for image in found.images]), boxes)


def test_phrases_are_grounded_as_by_the_model_and_peaks_are_those_of_the_map(files: list[Path]) -> None:
    model = random_model("prompter")
    source = _source(files, [GROUNDED, PEAKS], phrases=COLOURS[:3])
    _, found = RegionEncoder(model, None).regions(source, batch_size=2)
    images = _inputs(model, files)
    expected = model.ground(images, COLOURS[:3]).reshape(5, 3, 4)
    maps = dense_map(model, images, COLOURS[:3])
    for place, image in enumerate(found.images):
        assert image.grounded is not None
        torch.testing.assert_close(image.grounded, expected[place], rtol=0, atol=1e-5)
        assert image.peaks is not None
        for phrase, (x, y) in enumerate(image.peaks.tolist()):
            row, column = int(y * 4), int(x * 4)
            assert (x, y) == ((column + 0.5) / 4, (row + 0.5) / 4)
            assert float(maps[place, phrase, row, column]) == pytest.approx(
                float(maps[place, phrase].max()), abs=1e-5
            )


def test_queries_of_a_decoder(files: list[Path]) -> None:
    model = random_model("query-decoder")
    _, found = RegionEncoder(model, None).regions(_source(files, [QUERIES]), batch_size=2)
    with torch.no_grad():
        seen = model.tokens(_inputs(model, files))
        expected = model.region_head.find(seen.tokens[0], grid_of(seen))  # type: ignore[union-attr, operator]
    for place, image in enumerate(found.images):
        assert image.queries is not None
        torch.testing.assert_close(image.queries.boxes, expected.boxes[place], rtol=0, atol=1e-5)
        torch.testing.assert_close(image.queries.features, expected.features[place], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            image.queries.image_feature, expected.image_features[place], rtol=0, atol=1e-5
        )


def test_boxes_are_those_of_what_the_tower_sees_and_the_others_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (128, 64), "red").save(path)
    regions = (
        Region((0.0, 0.0, 0.1, 1.0)),  # cut off by the centre crop, which shows the middle half
        Region((0.25, 0.0, 0.5, 0.5)),
        Region((32, 0, 64, 32), in_pixels=True),
        Region((130, 0, 140, 10), in_pixels=True),
        Region((0.15, 0.0, 0.45, 1.0)),  # two thirds of it are shown
    )
    source = RegionSource(ImageFiles([path]), [0], [Asked(boxes=regions)], wanted=[HEAD])
    _, found = RegionEncoder(random_model("roi-align"), None).regions(source)
    (image,) = found.images
    assert image.kept.tolist() == [1, 2, 4]
    expected = [[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.4, 1.0]]
    torch.testing.assert_close(image.boxes, torch.tensor(expected))
    assert len(image.features[HEAD]) == 3
    assert found.problems == {"box_cut_off_by_the_crop": 1, "box_outside_the_image": 1}


def test_what_is_known_costs_no_forward(files: list[Path], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache.sqlite", 16)
    model = random_model("prompter")
    first, found = RegionEncoder(model, cache).regions(_source(files, [HEAD, TOKENS]))
    again = random_model("prompter")
    again.tokens = _blank_only(model)  # type: ignore[method-assign]
    second, known = RegionEncoder(again, cache).regions(_source(files, [HEAD, TOKENS]))
    assert (first.num_from_cache, second.num_from_cache) == (0, 5)
    assert torch.equal(first.features, second.features)
    for one, other in zip(found.images, known.images, strict=True):
        assert torch.equal(one.features[HEAD], other.features[HEAD])
        assert torch.equal(one.features[TOKENS], other.features[TOKENS])
    # The features of whole images are shared with other tasks.
    assert RegionEncoder(model, cache).images(ImageFiles(files)).num_from_cache == 5


def _blank_only(model: clipkit.DualEncoder):  # type: ignore[no-untyped-def]
    def tokens(images: torch.Tensor):  # type: ignore[no-untyped-def]
        assert not images.any(), "a picture was encoded again"
        return model.tokens(images)

    return tokens


def test_another_head_and_another_box_meet_no_old_features(files: list[Path], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache.sqlite", 16)
    _, first = RegionEncoder(random_model("prompter"), cache).regions(_source(files, [HEAD]))
    encoded, other = RegionEncoder(random_model("prompter", seed=1), cache).regions(_source(files, [HEAD]))
    assert encoded.num_from_cache == 0
    assert not torch.allclose(first.images[0].features[HEAD], other.images[0].features[HEAD], atol=1e-3)
    moved = RegionSource(
        ImageFiles(files), [0], [Asked(boxes=(Region((0.1, 0.2, 0.3, 0.4)),))], wanted=[HEAD]
    )
    assert RegionEncoder(random_model("prompter"), cache).regions(moved)[0].num_from_cache == 0


def test_what_a_model_lacks_is_said(files: list[Path]) -> None:
    source = _source(files, ANSWERS, phrases=["red"])
    _, plain = RegionEncoder(random_model(None), None).regions(source)
    assert set(plain.lacking) == {HEAD, GROUNDED, QUERIES}
    assert set(plain.images[0].features) == {TOKENS}
    _, pooled = RegionEncoder(random_model("roi-align"), None).regions(source)
    assert set(pooled.lacking) == {GROUNDED, QUERIES}
    assert "cannot ground" in pooled.lacking[GROUNDED]
    assert "is a roi-align" in pooled.lacking[QUERIES]


def test_images_that_cannot_be_read_and_images_without_boxes(files: list[Path]) -> None:
    files[1].write_bytes(b"no picture")
    files[2].write_bytes(files[2].read_bytes()[:60])
    asked = [Asked(boxes=(Region((0.1, 0.1, 0.6, 0.6)),)) if n != 3 else Asked() for n in range(5)]
    source = RegionSource(ImageFiles(files), range(5), asked, wanted=[HEAD])
    encoded, found = RegionEncoder(random_model("prompter"), None).regions(source, batch_size=2)
    assert encoded.index.tolist() == found.index.tolist() == [0, 3, 4]
    assert encoded.unreadable == {1: "not an image", 2: "corrupt image"}
    assert [len(image.features[HEAD]) for image in found.images] == [1, 0, 1]


def test_ranks_share_the_work_and_all_get_all_of_it(ranks: RankPool, files: list[Path]) -> None:
    paths = [str(path) for path in files]
    alone = ranks.run(1, answers_of_rank, paths)[0]
    for of_rank in ranks.run(2, answers_of_rank, paths):
        assert of_rank["index"].tolist() == [0, 1, 2, 3, 4]
        for name, values in alone.items():
            assert of_rank[name] == pytest.approx(values, abs=1e-5), name
