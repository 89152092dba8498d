"""The state of an unfinished adaptation: tensors and JSON, read back exactly."""

import copy
import math

import pytest
import torch
from clipkit.training.adapt.state import Snapshot, TrainState, load_optimizer_tensors, optimizer_tensors

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
}
KEY = {"epochs": {1: 50, 4: 100}, "settings": {"templates": ("a {c}",)}, "seed": 1}


def snapshot(**changes):
    empty = {"head": {}, "training": {}, "optimizer": {}, "scaler": {}}
    return Snapshot(**{"key": KEY, "step": 3, "seconds": 0.1, "loss": 2.5, **empty, **changes})


def train(layer, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        (layer(torch.arange(3.0) + step) ** 2).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path, name):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = OPTIMIZERS[name](layer.parameters())
    train(layer, optimizer, range(3))
    state = TrainState(tmp_path, "h")
    state.write(snapshot(head=layer.state_dict(), optimizer=optimizer_tensors(optimizer)))
    stopped = copy.deepcopy(layer.state_dict())
    train(layer, optimizer, range(3, 6))

    read = state.read(KEY)
    assert all(torch.equal(read.head[key], stopped[key]) for key in stopped)
    again = torch.nn.Linear(3, 2)
    again.load_state_dict(read.head)
    resumed = OPTIMIZERS[name](again.parameters())
    load_optimizer_tensors(resumed, read.optimizer)
    train(again, resumed, range(3, 6))
    for key, value in layer.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
        assert not torch.equal(stopped[key], value)
    assert resumed.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_what_is_written_is_read(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3).T  # not contiguous, and under two names
    tensors = {"a.b": shared, "c": shared, "half": torch.ones(2, dtype=torch.bfloat16)}
    weight = {"total_weight": torch.tensor(math.pi, dtype=torch.float64)}
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7}
    state = TrainState(tmp_path, "h")
    assert state.read(KEY) is None
    state.write(snapshot(step=1))
    state.write(snapshot(head=tensors, training=weight, scaler=scaler, loss=float("nan"), seconds=0.1 + 0.2))
    assert [path.name for path in state.folder.iterdir()] == ["state.safetensors"]
    read = state.read(KEY)
    assert (read.step, read.seconds, read.scaler) == (3, 0.1 + 0.2, scaler)
    assert math.isnan(read.loss)
    for own, expected in ((read.head, tensors), (read.training, weight)):
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[key], expected[key]) for key in expected)
        assert all(own[key].dtype == expected[key].dtype for key in expected)
    state.remove()
    assert state.read(KEY) is None


def test_a_state_of_other_settings_or_a_damaged_one_is_refused(tmp_path):
    state = TrainState(tmp_path, "h")
    state.write(snapshot())
    with pytest.raises(ValueError, match=r"unfinished training with epochs .*'4': 100.*, got .*'4': 99"):
        state.read({**KEY, "epochs": {1: 50, 4: 99}})
    with pytest.raises(ValueError, match="unfinished training with new None, got 5"):
        state.read({**KEY, "new": 5})
    path = state.folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"state.safetensors is damaged .*: --overwrite begins again"):
        state.read(KEY)
