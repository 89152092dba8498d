"""Heads by name, in a model directory and out of it."""

import json
import subprocess
import sys

import pytest
import torch
from small_models import RESNET, images_for, small_model

import clipkit
from clipkit.heads.base import Head
from clipkit.heads.features import LabelledFeatures, unit_features
from clipkit.heads.files import head_names, read_head, write_head
from clipkit.heads.methods import METHODS, build_head, method_class
from clipkit.heads.teacher import Teacher

SETTINGS = {
    "coop": {"num_prompts": 3},
    "cocoop": {"num_prompts": 2, "init": ""},
    "tip-adapter": {"train_keys": True},
    "clip-adapter": {"templates": ["a photo of a {c}.", "a {c}."]},
    "lora": {"targets": ["q", "v", "mlp"]},
}
NAMES = ["cat", "dog"]
NEW = ["zebra", "red fox", "dog"]


def trained(method, model):
    head = build_head(method, model, SETTINGS.get(method, {"depth": 1}))
    shots = LabelledFeatures(
        unit_features(model.encode_image(images_for(model, 4))), torch.tensor([2, 0, 2, 1])
    )
    head.prepare(model, NEW, Teacher(model) if head.needs_teacher else None, shots)
    if method == "lora":
        for up in head.up.values():  # else it is the model without a head
            torch.nn.init.normal_(up, std=0.1)
    return head.eval()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads") / "model"
    model = small_model().requires_grad_(False)
    identity = model.save(folder)
    for method in METHODS:
        write_head(folder, method, trained(method, model), {"class_names": NAMES}, model_id=identity)
    return folder


@pytest.fixture(scope="module")
def model(model_dir):
    return clipkit.load(model_dir).requires_grad_(False)


@pytest.mark.parametrize("method", METHODS)
def test_read_head_scores_as_the_written_one(method, model, model_dir):
    adapted = model.with_head(method)
    images = images_for(model)
    with torch.no_grad():
        for names in (NEW, NEW[:2]):
            head = read_head(model_dir, method, model).head
            written = head.logits(model, head.image_features(model, images), head.class_texts(model, names))
            assert torch.equal(adapted.logits(images, names), written)
            assert written.shape == (3, len(names))
    assert adapted.class_names == tuple(NAMES)
    assert not any(parameter.requires_grad for parameter in adapted.head.parameters())
    if not adapted.head.is_conditional and type(adapted.head).logits is Head.logits:
        scale = model.logit_scale.exp()
        expected = scale * adapted.encode_image(images) @ adapted.class_features(NEW).T
        torch.testing.assert_close(adapted.logits(images, NEW), expected)


def test_tensors_come_back_as_they_were(tmp_path):
    model = small_model().requires_grad_(False)
    identity = model.save(tmp_path / "model")
    for method in METHODS:
        head = trained(method, model)
        write_head(tmp_path / "model", method, head, {"class_names": NAMES}, model_id=identity)
        again = read_head(tmp_path / "model", method, model).head.state_dict()
        assert again.keys() == head.state_dict().keys()
        assert all(torch.equal(again[key], value) for key, value in head.state_dict().items())


def test_fresh_process_gives_the_same_logits(model, model_dir, tmp_path):
    images = images_for(model)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch, clipkit; torch.set_num_threads(1)\n"
        "folder, images, out = sys.argv[1:]\n"
        "model = clipkit.load(folder).with_head('maple')\n"
        f"torch.save(model.logits(torch.load(images), {NEW!r}), out)"
    )
    paths = [str(model_dir), str(tmp_path / "images.pt"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    torch.testing.assert_close(
        torch.load(tmp_path / "logits.pt"), model.with_head("maple").logits(images, NEW), rtol=1e-6, atol=1e-6
    )


def test_heads_are_listed_and_stay_with_the_model(model, model_dir):
    record = json.loads((model_dir / "clipkit.json").read_text())
    assert record["heads"] == head_names(model_dir) == sorted(METHODS)
    model.save(model_dir)
    assert json.loads((model_dir / "clipkit.json").read_text())["heads"] == sorted(METHODS)
    assert not [path for path in (model_dir / "heads").iterdir() if path.name.startswith(".")]


def test_unknown_head(model):
    with pytest.raises(FileNotFoundError, match=r"no head 'mapel'.*did you mean 'maple'"):
        model.with_head("mapel")


def test_head_of_another_model_is_refused(model_dir):
    with pytest.raises(ValueError, match="belongs to the model"):
        small_model(seed=1).with_head("maple", model_dir=model_dir)


def test_damaged_files_are_refused(tmp_path):
    model = small_model()
    identity = model.save(tmp_path / "model")
    facts = {"class_names": NAMES}
    write_head(tmp_path / "model", "mine", trained("vpt", model), facts, model_id=identity)
    tensors, record = (tmp_path / "model" / "heads" / f"mine{end}" for end in (".safetensors", ".json"))
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="damaged or replaced"):
        read_head(tmp_path / "model", "mine", model)
    tensors.write_bytes(content)
    record.write_text("{")
    with pytest.raises(ValueError, match="does not parse"):
        read_head(tmp_path / "model", "mine", model)


def test_model_without_directory():
    with pytest.raises(ValueError, match="model directory"):
        small_model().with_head("maple")


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("mapel", {}, "did you mean 'maple'"),
        ("maple", {"dept": 1}, "did you mean 'depth'"),
        ("maple", {"depth": 1.5}, "needs an integer for depth, got 1.5"),
        ("coop", {"class_position": "left"}, "'end' or 'middle' or 'front'"),
        ("maple", {"shared_coupling": 1}, "true or false"),
    ],
)
def test_mistakes_are_told(model, method, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_head(method, model, settings)
    assert "\n" not in str(caught.value)


def test_resnet_is_refused():
    with pytest.raises(ValueError, match=r"maple|prompt|coop") as caught:
        build_head("maple", small_model(vision_cfg=RESNET), {"depth": 1})
    assert "\n" not in str(caught.value)


def test_names_are_those_of_the_classes():
    assert {name: method_class(name).method for name in METHODS} == {name: name for name in METHODS}
