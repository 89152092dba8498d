import json
import os

import open_clip
import pytest
import safetensors.torch
import torch
from small_models import SMALL, small_model

import clipkit
from clipkit import model_dir


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = content
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(content))


def images_and_text(model):
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(3, 3, *model.image_size, generator=generator)
    return images, model.tokenizer(["a red circle", "a very long caption about nothing", ""])


@torch.no_grad()
@pytest.mark.parametrize(
    "create",
    [
        small_model,
        lambda: clipkit.create("tiny-conv", **SMALL),
        lambda: small_model(custom_text=True, init_logit_bias=-10.0, nonscalar_logit_scale=True),
        lambda: small_model(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}),
        lambda: small_model(image_size=(32, 48), quick_gelu=True),
    ],
    ids=["vit", "timm", "sigmoid", "resnet", "wide"],
)
def test_open_clip_loads_what_was_saved(create, tmp_path):
    model = create()
    model.save(tmp_path / "model")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'model'}").eval()
    ours = clipkit.load(tmp_path / "model")
    images, text = images_and_text(model)
    for encoder in (model, ours):
        found = encoder.encode_image(images, normalize=True), encoder.encode_text(text, normalize=True)
        torch.testing.assert_close(found[0], theirs.encode_image(images, normalize=True), atol=1e-6, rtol=0)
        torch.testing.assert_close(found[1], theirs.encode_text(text, normalize=True), atol=1e-6, rtol=0)
    size = theirs.visual.preprocess_cfg["size"]
    assert model.image_size == (tuple(size) if isinstance(size, list | tuple) else (size, size))
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")
    assert torch.equal(tokenizer(["a red circle"]), model.tokenizer(["a red circle"]))


def test_the_id_survives_saving_and_loading(tmp_path):
    model = small_model()
    saved = model.save(tmp_path / "a")
    again = clipkit.load(tmp_path / "a")
    assert saved == model.model_id == again.model_id == again.save(tmp_path / "b")
    with torch.no_grad():
        again.logit_scale.add_(1e-3)
    assert again.model_id != saved
    assert small_model(context_length=20).model_id != saved


def test_the_order_of_tensors_in_the_file_does_not_matter(tmp_path):
    identity = small_model().save(tmp_path)
    path = tmp_path / model_dir.WEIGHTS_NAME
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(dict(reversed(tensors.items())), path)
    assert clipkit.load(tmp_path).model_id == identity


@pytest.mark.parametrize("towers", ["both", "image", "text"])
def test_one_changed_byte_of_the_weights_is_refused(towers, tmp_path):
    small_model().save(tmp_path)
    path = tmp_path / model_dir.WEIGHTS_NAME
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"configs were changed after saving \(model id"):
        clipkit.load(tmp_path, towers=towers)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (model_dir.CONFIG_NAME, {"model_cfg__quick_gelu": True}, "were changed after saving"),
        (
            model_dir.CONFIG_NAME,
            {"model_cfg__embed_dim": 8},
            "says embed_dim 16, .* says 8",
        ),
        (
            model_dir.CONFIG_NAME,
            {"model_cfg__text_cfg__context_length": 9},
            "context_length 16, .* says 9",
        ),
        (model_dir.CONFIG_NAME, {"preprocess_cfg__mean": [0.5, 0.5, 0.5]}, r"says mean \[0.48"),
        (model_dir.RECORD_NAME, {"preprocessing__resize_mode": "squash"}, "says resize_mode squash"),
        (model_dir.RECORD_NAME, {"tokenizer__clean": "canonicalize"}, "were changed after saving"),
        (model_dir.RECORD_NAME, {"format_version": 2}, "format version 2, .* up to 1: upgrade clipkit"),
        (
            model_dir.CONFIG_NAME,
            {"model_cfg__vision_cfg__widht": 8},
            "key 'widht'; did you mean 'width'",
        ),
    ],
)
def test_changed_configs_are_refused(file, changes, message, tmp_path):
    small_model().save(tmp_path)
    edit_json(tmp_path / file, **changes)
    with pytest.raises(ValueError, match=message) as raised:
        clipkit.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_damaged_and_missing_files_are_refused(tmp_path):
    small_model().save(tmp_path)
    (tmp_path / model_dir.RECORD_NAME).write_text("{")
    with pytest.raises(ValueError, match=r"clipkit\.json does not parse as JSON"):
        clipkit.load(tmp_path)
    (tmp_path / model_dir.RECORD_NAME).write_text('{"format_version": 1}')
    with pytest.raises(ValueError, match="has no model_id, embed_dim"):
        clipkit.load(tmp_path)
    small_model().save(tmp_path)
    (tmp_path / model_dir.WEIGHTS_NAME).unlink()
    with pytest.raises(FileNotFoundError, match="no weights at"):
        clipkit.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"it has no open_clip_config\.json"):
        clipkit.load(tmp_path.parent)


def test_a_truncated_file_is_refused(tmp_path):
    small_model().save(tmp_path)
    path = tmp_path / model_dir.WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no readable safetensors file"):
        clipkit.load(tmp_path)


def test_a_directory_of_open_clip_needs_no_record(tmp_path):
    model = small_model()
    model.save(tmp_path)
    (tmp_path / model_dir.RECORD_NAME).unlink()
    assert clipkit.load(tmp_path).model_id == clipkit.load(f"local-dir:{tmp_path}").model_id


@pytest.mark.parametrize("failing", ["save_file", "model_card"])
def test_a_full_disk_leaves_the_old_model(failing, tmp_path, monkeypatch):
    identity = small_model().save(tmp_path / "model")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    owner = safetensors.torch if failing == "save_file" else model_dir
    monkeypatch.setattr(owner, failing, full)
    with pytest.raises(OSError, match="No space left"):
        small_model(seed=1).save(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]
    assert clipkit.load(tmp_path / "model").model_id == identity


def test_nothing_else_is_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and no model directory"):
        small_model().save(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        small_model().save(tmp_path / "thesis.txt")
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_heads_stay_with_their_weights(tmp_path):
    model = small_model()
    model.save(tmp_path / "model")
    head = tmp_path / "model" / "heads" / "prompts.json"
    head.parent.mkdir()
    head.write_text("{}")
    model.save(tmp_path / "model", metrics={"R@1": 0.5})
    assert head.read_text() == "{}"
    with pytest.raises(ValueError, match="heads made for other weights"):
        small_model(seed=1).save(tmp_path / "model")
    assert head.exists()


def test_the_record_and_the_card(tmp_path):
    model = small_model()
    identity = model.save(tmp_path, metrics={"text_to_image_R@1": 0.61}, provenance={"steps": 300})
    record = json.loads((tmp_path / "clipkit.json").read_text())
    assert record["format_version"] == 1
    assert record["model_id"] == identity
    assert record["embed_dim"] == 16
    assert record["heads"] == []
    assert record["tokenizer"]["context_length"] == 16
    assert record["tokenizer"]["clean"] == "lower"
    assert record["preprocessing"]["size"] == [32, 32]
    assert record["provenance"]["source"] == "test-vit"
    assert record["provenance"]["steps"] == 300
    assert set(record["provenance"]) >= {"clipkit", "torch", "open_clip"}
    card = (tmp_path / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: open_clip\npipeline_tag: zero-shot-image-classification\ntags:\n- clip" in front
    assert "| text_to_image_R@1 | 0.61 |" in card


def test_other_weights_can_be_saved_under_the_same_config(tmp_path):
    """Averaged weights, with the names that a wrapper gives them."""
    model, other = small_model(), small_model(seed=1)
    state = {f"module.{name}": tensor for name, tensor in other.state_dict().items()}
    identity = model.save(tmp_path, state_dict=state)
    assert identity == other.model_id != model.model_id


def test_one_tower_cannot_be_saved(tmp_path):
    small_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match="load both towers"):
        clipkit.load(tmp_path / "model", towers="image").save(tmp_path / "half")
