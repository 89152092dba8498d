"""Retrieval both ways, with several captions an image."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from clipkit.zeroshot.suite import make_entry
from clipkit.zeroshot.tasks.captioned import Captioned
from clipkit.zeroshot.tasks.retrieval import SharedCaptions, ZeroshotRetrieval, shared_captions
from hand_features import at, labelled, made_features, random_rows
from pair_shards import write_pairs

TASK = ZeroshotRetrieval(data="some/data", recall_k=(1, 2))


def test_retrieval_by_hand() -> None:
    # Image 1 has no caption and is no candidate, although it is the nearest of all to "c".
    images = labelled(at(0, 62, 90), captions=[["a", "b"], [], ["c"]])
    texts = {"a": at(10)[0], "b": at(50)[0], "c": at(60)[0]}
    found = TASK.measure(made_features(images, texts=texts))
    # "a" and "c" find their image first, "b" second. Image 0 finds "a" first, image 2 finds "c" first.
    assert found.metrics == {
        "image_retrieval_recall@1": pytest.approx(2 / 3),
        "image_retrieval_recall@2": 1.0,
        "text_retrieval_recall@1": 1.0,
        "text_retrieval_recall@2": 1.0,
        "image_retrieval_mean_rank": pytest.approx(4 / 3),
        "image_retrieval_median_rank": 1.0,
        "text_retrieval_mean_rank": 1.0,
        "text_retrieval_median_rank": 1.0,
    }
    assert next(iter(found.metrics)) == "image_retrieval_recall@1"
    assert found.outcomes["image_retrieval_recall@1"].tolist() == [1.0, 0.0, 1.0]
    assert found.outcomes["text_retrieval_recall@1"].tolist() == [1.0, 1.0]
    assert set(found.outcomes) == {name for name in found.metrics if "recall" in name}
    assert set(found.plain) == {name for name in found.metrics if "rank" in name}
    assert found.notes == (
        "1 images without a caption are left out",
        "image_retrieval_recall@2 of 2 images is 1 for every model",
    )
    (table,) = found.tables
    assert table.rows[0] == ("text to image", "3", "2", "66.7 %", "100.0 %", "1.3", "1.0")
    assert table.rows[1] == ("image to text", "2", "3", "100.0 %", "100.0 %", "1.0", "1.0")


def test_equal_to_the_definition_of_clip_benchmark() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 6, (30,), generator=generator).tolist()
    captions = [[f"{image}/{number}" for number in range(count)] for image, count in enumerate(counts)]
    names = [text for own in captions for text in own]
    vectors = random_rows(len(names), 16, seed=1)
    images = labelled(random_rows(30, 16, seed=2), captions=captions)
    found = ZeroshotRetrieval(data="x").measure(
        made_features(images, texts=dict(zip(names, vectors, strict=True)))
    )
    owner = torch.tensor([int(name.partition("/")[0]) for name in names])
    scores = vectors @ images.features.T
    positives = owner[:, None] == torch.arange(30)
    for k in (1, 5, 10):
        for name, matrix, truth in (("image", scores, positives), ("text", scores.T, positives.T)):
            recall = truth.gather(1, matrix.topk(k, dim=1).indices).sum(dim=1) / truth.sum(dim=1)
            expected = float((recall > 0).double().mean())
            assert found.metrics[f"{name}_retrieval_recall@{k}"] == pytest.approx(expected)


def test_guessing_by_hand_and_by_guessing() -> None:
    images = labelled(random_rows(8, 4, seed=0), captions=[["a"] * 3, ["b"]] * 4)
    texts = {"a": at(0, 0)[0].repeat(2), "b": at(90)[0].repeat(2)}
    chance = (
        ZeroshotRetrieval(data="x", recall_k=(1, 5, 16)).measure(made_features(images, texts=texts)).chance
    )
    assert chance["image_retrieval_recall@1"] == 1 / 8
    assert chance["image_retrieval_recall@16"] == 1.0
    # One draw of 16 texts hits 3 or 1 of them.
    assert chance["text_retrieval_recall@1"] == pytest.approx((3 / 16 + 1 / 16) / 2)
    misses = [math.comb(16 - own, 5) / math.comb(16, 5) for own in (3, 1)]
    assert chance["text_retrieval_recall@5"] == pytest.approx(1 - sum(misses) / 2)
    assert chance["text_retrieval_recall@16"] == 1.0


def test_captions_of_an_image_are_drawn_together() -> None:
    # All five captions of an image agree, so there are 40 independent queries and not 200.
    angles = [0.0, 90.0] * 20
    captions = [[f"{image}.{number}" for number in range(5)] for image in range(40)]
    rows = torch.eye(40)
    texts = {
        text: rows[image if angle == 0 else (image + 2) % 40]
        for image, (own, angle) in enumerate(zip(captions, angles, strict=True))
        for text in own
    }
    found = TASK.measure(made_features(labelled(rows, captions=captions), texts=texts))
    assert found.metrics["image_retrieval_recall@1"] == 0.5
    low, high = found.intervals["image_retrieval_recall@1"]
    half = 1.96 * math.sqrt(0.25 / 40)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.03)
    assert "text_retrieval_recall@1" not in found.intervals


def test_equal_captions_of_several_images_are_told() -> None:
    captions = [["a dog", "one"], ["a dog", "a dog"], ["two"], ["a dog"]]
    owners = [0, 0, 1, 1, 2, 3]
    # Four captions "a dog": at best the two of image 1 find it, those of images 0 and 3 do not.
    assert shared_captions([text for own in captions for text in own], owners) == SharedCaptions(4, 2)
    images = labelled(at(0, 30, 60, 90), captions=captions)
    texts = {"a dog": at(30)[0], "one": at(0)[0], "two": at(60)[0]}
    found = TASK.measure(made_features(images, texts=texts))
    assert found.metrics["image_retrieval_recall@1"] == pytest.approx(4 / 6)
    assert found.notes == (
        "4 of 6 captions are those of several images, word for word; image_retrieval_recall@1 is 66.7 % at "
        "best",
    )
    assert shared_captions(["a", "a", "b"], [0, 0, 1]) == SharedCaptions(0, 0)


def test_collapsed_features_are_at_chance() -> None:
    captions = [[f"{image}"] for image in range(50)]
    images = labelled(at(0).expand(50, 2), captions=captions)
    texts = {str(image): at(0)[0] for image in range(50)}
    found = TASK.measure(made_features(images, texts=texts))
    for name, value in found.chance.items():
        assert found.metrics[name] == pytest.approx(value), name


def test_images_and_their_captions_in_order() -> None:
    images = labelled(at(0, 10, 20, 30), captions=[[], ["a", "b"], [], ["c"]])
    pairs = Captioned.of(images)
    assert pairs.texts == ("a", "b", "c")
    assert pairs.image_of_text.tolist() == [0, 0, 1]
    assert pairs.texts_per_image.tolist() == [2, 1]
    assert torch.equal(pairs.image_features, images.features[[1, 3]])
    assert pairs.num_left_out == 2
    with pytest.raises(ValueError, match="no image of images has a caption"):
        Captioned.of(labelled(at(0, 10)))


@pytest.mark.parametrize("ks", [(), (0,), (1, -5)])
def test_ranks_below_one_are_refused(ks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="recall_k must hold numbers of at least 1"):
        ZeroshotRetrieval(data="x", recall_k=ks)


def test_data_with_captions_is_opened(tmp_path: Path) -> None:
    tiles = write_pairs(tmp_path / "tiles", 12)
    task = make_entry("tiles", {"task": "zeroshot_retrieval", "data": tiles, "recall_k": [1]}).settings
    (images,) = task.sources().values()
    assert len(images) == 12
    assert len(images.read(0).captions) == 2
