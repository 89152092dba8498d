"""`clipkit adapt`: training, resuming, ranks, mistakes."""

import json
import multiprocessing
import shutil
from pathlib import Path

import adapt_jobs
import pytest
import torch
from clipkit.training.adapt.pictures import readable_shots
from PIL import Image
from safetensors.torch import load_file
from small_models import RESNET, images_for, small_model

import clipkit
from clipkit.cli import main
from clipkit.data.class_splits import draw_order, open_class_splits
from clipkit.prompts.vpt import Vpt

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt") / "colours"
    generator = torch.Generator().manual_seed(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(6):
            noise = torch.randint(-30, 31, (3,), generator=generator).tolist()
            shade = tuple(min(255, max(0, value + shift)) for value, shift in zip(colour, noise, strict=True))
            Image.new("RGB", (40, 36), shade).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt") / "model"
    small_model().save(folder)
    return folder


def tensors(model, name):
    return load_file(model / "heads" / f"{name}.safetensors")


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def context():
    """Processes that begin with the imports done, and without the threads of this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["adapt_jobs"])
    return context


@pytest.mark.parametrize(("method", "kills"), [("maple", (2, 3)), ("promptsrc", (3,))])
def test_killed_and_resumed_is_the_same(model, data, context, method, kills):
    adapt_jobs.run(model, data, f"{method}-whole", method)
    for states in kills:
        arguments = (model, data, f"{method}-cut", method, states)
        process = context.Process(target=adapt_jobs.run_and_kill, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == -9
    assert (model / "heads" / f".{method}-cut.train" / "state.safetensors").is_file()
    facts = adapt_jobs.run(model, data, f"{method}-cut", method)
    assert facts["training"]["steps"] == 6
    assert_equal(tensors(model, f"{method}-whole"), tensors(model, f"{method}-cut"))
    assert not (model / "heads" / f".{method}-cut.train").exists()


def test_other_settings_do_not_go_on(model, data, context):
    process = context.Process(target=adapt_jobs.run_and_kill, args=(model, data, "mixed", "vpt", 1))
    process.start()
    process.join()
    with pytest.raises(ValueError, match="unfinished training with seed 1, got 2"):
        adapt_jobs.run(model, data, "mixed", "vpt", seed=2)
    adapt_jobs.run(model, data, "mixed", "vpt", seed=2, overwrite=True)
    with pytest.raises(ValueError, match="has a head 'mixed'"):
        adapt_jobs.run(model, data, "mixed", "vpt")


def test_a_loss_that_is_not_finite_is_no_head(model, data, monkeypatch):
    monkeypatch.setattr(Vpt, "loss", lambda *arguments: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(RuntimeError, match="the loss is nan in epoch 1: lower --lr"):
        adapt_jobs.run(model, data, "nan", "vpt")
    assert not (model / "heads" / "nan.json").exists()


@pytest.mark.parametrize("method", ["maple", "coop"])
def test_two_ranks_are_as_one(model, data, ranks, method):
    ranks.run(2, adapt_jobs.run, model, data, f"{method}-two", method)
    adapt_jobs.run(model, data, f"{method}-one", method)
    one, two = tensors(model, f"{method}-one"), tensors(model, f"{method}-two")
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["tip-adapter", "lora"])
def test_adapters_killed_and_resumed_are_the_same(model, data, context, method):
    facts = adapt_jobs.run(model, data, f"{method}-whole", method)
    assert facts["training"]["steps"] == 6
    process = context.Process(target=adapt_jobs.run_and_kill, args=(model, data, f"{method}-cut", method, 3))
    process.start()
    process.join()
    assert process.exitcode == -9
    again = adapt_jobs.run(model, data, f"{method}-cut", method)
    assert_equal(tensors(model, f"{method}-whole"), tensors(model, f"{method}-cut"))
    assert again["config"] == facts["config"]


def test_tip_adapter_needs_no_training(model, data):
    facts = adapt_jobs.run(model, data, "cache", "tip-adapter", settings={"alpha": 0.0}, split="base")
    assert (facts["training"]["steps"], facts["training"]["parameters"], facts["training"]["loss"]) == (
        0,
        0,
        None,
    )
    assert facts["config"]["num_keys"] == 6
    assert facts["config"]["cache_classes"] == ("blue", "green")
    stored = json.loads((model / "heads" / "cache.json").read_text())
    assert stored["config"]["alpha"] == facts["config"]["alpha"] > 0  # chosen on the validation images


def test_lora_is_merged_into_a_model_of_its_own(model, data, tmp_path, capsys):
    flags = ["--data", str(data), "--epochs", "2", "--lr", "0.01", "--shots", "2", "--name", "low", "--quiet"]
    merged = tmp_path / "merged"
    assert main(["adapt", str(model), *flags, "--method", "maple", "--merge-into", str(merged)]) == 2
    assert "maple cannot be merged into weights" in capsys.readouterr().err
    assert main(["adapt", str(model), *flags, "--method", "lora", "--merge-into", str(merged)]) == 0
    adapted, plain = clipkit.load(model).with_head("low"), clipkit.load(merged)
    images = images_for(plain)
    with torch.no_grad():
        found = plain.encode_image(images, normalize=True)
    torch.testing.assert_close(found, adapted.encode_image(images), rtol=0, atol=1e-5)
    assert not torch.equal(found, clipkit.load(model).encode_image(images, normalize=True))
    assert json.loads((merged / "clipkit.json").read_text())["provenance"]["merged head"] == "low"


def test_command_tells_before_and_after(model, data, capsys):
    arguments = ["adapt", str(model), "--data", str(data), "--set", "depth=1", "--name", "told", "--json"]
    assert main([*arguments, "--epochs", "1", "--classes", "base"]) == 0
    facts = json.loads(capsys.readouterr().out)
    stored = json.loads((model / "heads" / "told.json").read_text())
    assert stored["class_names"] == facts["class_names"] == ["blue", "green"]
    assert (stored["method"], stored["shots"], stored["seed"], stored["split"]) == ("maple", 16, 1, "base")
    assert set(facts["accuracy"]["base"]) == {"before", "after"}


@pytest.mark.parametrize(
    ("shots", "told"), [("2", "6 images, "), ("16", "9 images (3, not 16, of the smallest class), ")]
)
def test_command_tells_the_images_that_there_were(model, data, capsys, shots, told):
    flags = ["--data", str(data), "--method", "tip-adapter", "--name", f"told-{shots}", "--shots", shots]
    assert main(["adapt", str(model), *flags, "--quiet"]) == 0
    assert f"head told-{shots}: tip-adapter, 3 classes, {told}" in capsys.readouterr().out
    stored = json.loads((model / "heads" / f"told-{shots}.json").read_text())
    assert stored["training"]["fewest_images_of_a_class"] == min(int(shots), 3)


def colours_with_broken(data, folder, broken):
    """A copy of the colours in which some images, by class and number, hold no picture."""
    shutil.copytree(data, folder)
    for name, number in broken:
        (folder / name / f"{number}.png").write_bytes(b"broken")
    return open_class_splits(str(folder)).train


def test_unreadable_shots_are_replaced(data, tmp_path):
    whole = colours_with_broken(data, tmp_path / "whole", [])
    order = [rows.tolist() for rows in draw_order(whole.labels, 1)]
    shots = readable_shots(whole, 2, 1)
    assert [shots.files.where(row) for row in range(6)] == [
        whole.where(row) for own in order for row in own[:2]
    ]
    assert shots.unreadable == {}

    first, number = Path(whole.where(order[1][0])).parent.name, Path(whole.where(order[1][0])).stem
    files = colours_with_broken(data, tmp_path / "one", [(first, number)])
    found = readable_shots(files, 2, 1)
    expected = [order[0][:2], order[1][1:3], order[2][:2]]
    assert [found.files.where(row) for row in range(6)] == [
        files.where(row) for own in expected for row in own
    ]
    assert found.files.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert list(found.unreadable) == [files.where(order[1][0])]
    assert len(readable_shots(files, 0, 1).files) == len(files) - 1  # there is no other

    files = colours_with_broken(data, tmp_path / "all", [("red", number) for number in range(6)])
    with pytest.raises(ValueError, match="no image of class 'red' can be read, such as"):
        readable_shots(files, 1, 1)


def test_unreadable_shots_are_counted(model, data, tmp_path):
    broken = [("red", number) for number in range(4)]
    files = colours_with_broken(data, tmp_path / "colours", broken)
    facts = adapt_jobs.run(model, tmp_path / "colours", "broken", "coop", shots=0, epochs=1)
    there = {str(tmp_path / "colours" / name / f"{number}.png") for name, number in broken}
    assert set(facts["unreadable"]) == there & {files.where(row) for row in range(len(files))}
    assert facts["training"]["unreadable"] == len(facts["unreadable"]) > 0
    assert facts["training"]["images"] == len(files) - len(facts["unreadable"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "mapel"], "did you mean 'maple'"),
        (["--recipe", "mapel"], "did you mean 'maple'"),
        (["--recipe", "coop", "--method", "maple"], "is one of coop"),
        (["--set", "depth"], "KEY=VALUE"),
        (["--set", "dept=2"], "did you mean 'depth'"),
        (["--name", "a/b"], "a head's name"),
        (["--method", "promptkd"], "needs --teacher"),
        (["--sots", "2"], "--sots"),
    ],
)
def test_mistakes_are_told_in_a_line(model, data, capsys, flags, message):
    assert main(["adapt", str(model), "--data", str(data), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_resnet_is_refused(data, tmp_path, capsys):
    small_model(vision_cfg=RESNET).save(tmp_path / "model")
    assert main(["adapt", str(tmp_path / "model"), "--data", str(data), "--set", "depth=1"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "model" / "heads").exists()
