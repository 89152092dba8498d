"""Recipes and the schedule of the learning rate."""

import math

import pytest
import torch
from clipkit.training.adapt.recipe import read_recipe, recipe_names, recipe_of
from clipkit.training.adapt.schedule import learning_rate

from clipkit.heads.methods import METHODS, checked_settings, method_class

LEAST = {"method": "maple", "lr": 0.1, "batch_size": 4, "epochs": 2}


def test_every_recipe_is_one_of_its_method():
    recipes = {name: read_recipe(name) for name in recipe_names()}
    assert set(METHODS) <= set(recipes)
    for recipe in recipes.values():
        method = method_class(recipe.method)
        method.Config(**checked_settings(method, recipe.settings))


def test_published_values():
    maple = read_recipe("maple")
    assert (maple.lr, maple.batch_size, maple.epochs, maple.weight_decay) == (0.0035, 4, 5, 5e-4)
    assert [read_recipe("coop").num_epochs(shots) for shots in (1, 2, 4, 8, 16, 0)] == [
        50,
        100,
        100,
        *[200] * 3,
    ]


def test_schedule_by_hand():
    rates = [learning_rate(epoch, 5, 0.0035, warmup_epochs=1) for epoch in range(5)]
    hand = [1e-5, 0.0035, 0.00316578, 0.00229078, 0.00120922]
    assert rates == pytest.approx(hand, rel=1e-5)


def test_schedule_is_that_of_torch_after_the_warm_up():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    for epoch in range(1, 7):
        assert math.isclose(learning_rate(epoch, 7, 0.3, warmup_epochs=1), optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lrr": 1}, "unknown field 'lrr'; did you mean 'lr'"),
        ({"lr": "fast"}, "lr must be float, got 'fast'"),
        ({"method": "mapel"}, "did you mean 'maple'"),
        ({"epochs": 0}, "at least 1"),
        ({"epochs": {"a": 1}}, "epochs must be"),
        ({"optimizer": "adam"}, "optimizer must be"),
        ({"shots": -1}, "must not be negative"),
    ],
)
def test_mistakes_are_told(change, message):
    with pytest.raises(ValueError, match=message):
        recipe_of({**LEAST, **change}, "mine")


def test_unknown_recipe():
    with pytest.raises(ValueError, match="did you mean 'promptsrc'"):
        read_recipe("promptscr")
