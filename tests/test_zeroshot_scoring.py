from __future__ import annotations

import pytest
import torch
from clipkit.zeroshot import scoring
from clipkit.zeroshot.scoring import (
    class_means,
    explain,
    max_scores,
    mean_scores,
    region_scores,
    weighted_scores,
)
from torch import Tensor
from torch.nn.functional import normalize

IMAGES = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
PROMPTS = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.8, 0.6]])
CLASSES = torch.tensor([1, 0, 0])


def random_unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def random_case(num_images: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    classes = torch.cat([torch.arange(5), torch.randint(5, (18,), generator=generator)])
    return random_unit(num_images, 16), random_unit(23, 16, seed=2), classes[torch.randperm(23)]


def by_class(images: Tensor, prompts: Tensor, classes: Tensor) -> list[list[list[float]]]:
    """Cosines one by one, as [image][class]."""
    table: list[list[list[float]]] = [[[] for _ in range(5)] for _ in images]
    for i, image in enumerate(images):
        for prompt, index in zip(prompts, classes.tolist(), strict=True):
            table[i][index].append(float(sum(a * b for a, b in zip(image, prompt, strict=True))))
    return table


def test_mean_and_max_scores_by_hand() -> None:
    # Image 0 has the cosines 1 and 0.8 with class 0 and 0 with class 1; image 1 has 0.6, 0.96 and 0.8.
    torch.testing.assert_close(
        mean_scores(IMAGES, PROMPTS, CLASSES, 2), torch.tensor([[0.9, 0.0], [0.78, 0.8]])
    )
    torch.testing.assert_close(
        max_scores(IMAGES, PROMPTS, CLASSES, 2), torch.tensor([[1.0, 0.0], [0.96, 0.8]])
    )


def test_mean_and_max_scores_equal_a_slow_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_SCORES_PER_BLOCK", 50)  # three blocks of images, and a part of one
    images, prompts, classes = random_case()
    table = by_class(images, prompts, classes)
    means = torch.tensor([[sum(cosines) / len(cosines) for cosines in row] for row in table])
    largest = torch.tensor([[max(cosines) for cosines in row] for row in table])
    torch.testing.assert_close(mean_scores(images, prompts, classes, 5), means)
    torch.testing.assert_close(max_scores(images, prompts, classes, 5), largest)


def test_mean_of_cosines_is_the_product_with_the_unnormalised_mean() -> None:
    images, prompts, classes = random_case()
    means = torch.stack([prompts[classes == index].mean(dim=0) for index in range(5)])
    assert float(means.norm(dim=1).max()) < 0.99
    torch.testing.assert_close(class_means(prompts, classes, 5), means)
    torch.testing.assert_close(mean_scores(images, prompts, classes, 5), images @ means.T)


@pytest.mark.parametrize("scores", [mean_scores, max_scores])
def test_the_order_of_prompts_says_nothing(scores) -> None:  # type: ignore[no-untyped-def]
    images, prompts, classes = random_case()
    order = torch.randperm(23)
    torch.testing.assert_close(
        scores(images, prompts[order], classes[order], 5), scores(images, prompts, classes, 5)
    )


@pytest.mark.parametrize("scores", [mean_scores, max_scores])
def test_prompts_and_classes_that_do_not_fit_are_refused(scores) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="class 2 has none"):
        scores(IMAGES, PROMPTS, CLASSES, 3)
    with pytest.raises(ValueError, match="classes 0 to 0, got 0 to 1"):
        scores(IMAGES, PROMPTS, CLASSES, 1)
    with pytest.raises(ValueError, match="class of each of 3 rows"):
        scores(IMAGES, PROMPTS, CLASSES[:2], 2)


def test_weighted_scores_by_hand() -> None:
    names, descriptions = torch.tensor([[0.2, 0.3]]), torch.tensor([[0.5, 0.1]])
    torch.testing.assert_close(weighted_scores(names, descriptions, 2.0), torch.tensor([[0.9, 0.7]]))
    assert torch.equal(weighted_scores(names, descriptions, 0.0), descriptions)
    with pytest.raises(ValueError, match="must be >= 0, got -1"):
        weighted_scores(names, descriptions, -1)


def test_region_scores_by_hand() -> None:
    regions = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    # Class 0: the best of 1 and 0.8 is 1, of 0 and 0.6 is 0.6, so 0.8 in the mean. Class 1: 0 and 1, so 0.5.
    scores = region_scores(torch.tensor([[0.2, 0.6]]), regions, PROMPTS, CLASSES, alpha=0.25)
    torch.testing.assert_close(scores, torch.tensor([[0.05 + 0.6, 0.15 + 0.375]]))


def test_region_scores_equal_a_slow_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_SCORES_PER_BLOCK", 60)
    _, prompts, classes = random_case()
    regions = random_unit(7, 4, 16, seed=5)
    image_scores = torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    best = torch.tensor(
        [
            [sum(max(row[index]) for row in by_class(image, prompts, classes)) / 4 for index in range(5)]
            for image in regions
        ]
    )
    found = region_scores(image_scores, regions, prompts, classes, alpha=0.3)
    torch.testing.assert_close(found, 0.3 * image_scores + 0.7 * best)
    assert torch.equal(region_scores(image_scores, regions, prompts, classes, alpha=1.0), image_scores)


@pytest.mark.parametrize(("alpha", "num_regions"), [(1.1, 2), (-0.1, 2), (0.5, 0)])
def test_region_scores_refuse(alpha: float, num_regions: int) -> None:
    with pytest.raises(ValueError, match="expected alpha in"):
        region_scores(torch.ones(1, 2), torch.ones(1, num_regions, 2), PROMPTS, CLASSES, alpha)


def test_an_explanation_by_hand() -> None:
    winner, second = explain(IMAGES[1], PROMPTS, CLASSES, ["two legs", "a comb", "red"], ["hen", "cow"])
    assert winner.class_name == "cow"
    assert winner.score == pytest.approx(0.8)
    assert winner.descriptors == (("two legs", pytest.approx(0.8)),)
    assert second.class_name == "hen"
    assert second.score == pytest.approx(0.78)
    assert second.descriptors == (("red", pytest.approx(0.96)), ("a comb", pytest.approx(0.6)))


def test_explanations_agree_with_the_scores() -> None:
    images, prompts, classes = random_case()
    names, texts = list("abcde"), [str(index) for index in range(23)]
    for image, row in zip(images, mean_scores(images, prompts, classes, 5), strict=True):
        found = explain(image, prompts, classes, texts, names, top=9)
        assert [item.class_name for item in found] == [
            names[i] for i in row.argsort(descending=True).tolist()
        ]
        for item in found:
            cosines = [cosine for _, cosine in item.descriptors]
            assert cosines == sorted(cosines, reverse=True)
            assert sum(cosines) / len(cosines) == pytest.approx(item.score, abs=1e-6)
        assert sorted(text for item in found for text, _ in item.descriptors) == sorted(texts)


def test_explanations_follow_given_scores_and_the_order_of_ties() -> None:
    texts = ["a", "b", "c"]
    found = explain(
        IMAGES[0], PROMPTS, CLASSES, texts, ["hen", "cow"], scores=torch.tensor([0.5, 0.5]), top=1
    )
    assert [(item.class_name, item.score) for item in found] == [("hen", 0.5)]
    with pytest.raises(ValueError, match="a text for each of 3 prompts, got 1"):
        explain(IMAGES[0], PROMPTS, CLASSES, ["a"], ["hen", "cow"])
