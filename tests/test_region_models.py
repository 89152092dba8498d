"""A model with a region head: trained rows, answers, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import CAPTIONS, images_for, small_model
from torch import Tensor

import clipkit
from clipkit import gradcache
from clipkit.regions.base import RegionBatch
from clipkit.regions.heads import REGION_HEADS, build_region_head, token_width

SETTINGS = {"query-decoder": {"num_layers": 1, "num_heads": 2, "mlp_width": 16, "dropout": 0.0}}
BOXES = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.0, 0.0, 1.0, 1.0], [0.5, 0.1, 0.9, 0.3], [0.2, 0.2, 0.4, 0.9]])
INDEX = torch.tensor([0, 0, 2, 4])
PHRASES = ["a red star", "sky", "a boat", "the moon"]


def _model(kind: str) -> clipkit.DualEncoder:
    model = small_model()
    torch.manual_seed(1)
    model.region_head = build_region_head(kind, model, SETTINGS.get(kind))
    return model


def _inputs(model: clipkit.DualEncoder) -> dict[str, Tensor]:
    return {
        "image": images_for(model, batch=6),
        "text": model.tokenizer(CAPTIONS * 2),
        "boxes": BOXES,
        "box_index": INDEX,
        "region_text": model.tokenizer(PHRASES),
    }


@pytest.mark.parametrize("kind", REGION_HEADS)
def test_one_forward_gives_both_towers_and_what_the_losses_need(kind: str) -> None:
    model = _model(kind)
    inputs = _inputs(model)
    num_forwards = 0

    def count(*_: object) -> None:
        nonlocal num_forwards
        num_forwards += 1

    with model.model.visual.conv1.register_forward_hook(count):
        found = model(**inputs)
    assert num_forwards == 1
    plain = model(inputs["image"], inputs["text"])
    for name, feature in plain.items():
        assert torch.equal(found[name], feature), name
    regions = RegionBatch(boxes=BOXES, box_index=INDEX, phrase_features=found["phrase_features"])
    assert model.region_head is not None
    losses = model.region_head.losses(found, regions, found["logit_scale"])
    assert all(loss.isfinite() for loss in losses.values())
    seen = model.tokens(inputs["image"])
    assert model.encode_regions(seen, BOXES, INDEX).shape == (4, model.embed_dim)


@pytest.mark.parametrize("kind", REGION_HEADS)
@pytest.mark.parametrize(
    ("boxes", "index", "message"),
    [
        ([[float("nan"), 0.1, 0.5, 0.5]], [0], "must be finite"),
        ([[0.0, 0.0, float("inf"), 1.0]], [0], "must be finite"),
        ([[0.0, 0.0, 1.0, 1.0]], [0, 1], r"got \(1, 4\) and \(2,\)"),
        ([[0.0, 0.0, 1.0, 1.0]], [6], r"must be in \[0, 6\), got 6 to 6"),
        ([[0.0, 0.0, 1.0, 1.0]], [-1], r"must be in \[0, 6\), got -1"),
    ],
)
def test_boxes_that_are_none_are_refused(
    kind: str, boxes: list[list[float]], index: list[int], message: str
) -> None:
    model = _model(kind).eval()
    seen = model.tokens(images_for(model, batch=6))
    with pytest.raises(ValueError, match=message):
        model.encode_regions(seen, torch.tensor(boxes), torch.tensor(index))
    nothing = model.encode_regions(seen, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert nothing.shape == (0, model.embed_dim)


@pytest.mark.parametrize("kind", REGION_HEADS)
def test_the_gradient_of_parts_with_any_number_of_regions_is_that_of_the_batch(kind: str) -> None:
    def loss(features: gradcache.Features) -> Tensor:
        regions = RegionBatch(boxes=BOXES, box_index=INDEX, phrase_features=features["phrase_features"])
        assert model.region_head is not None
        losses = model.region_head.losses(features, regions, features["logit_scale"])
        similarity = (features["image_features"] @ features["text_features"].T).diagonal().sum()
        return torch.stack(list(losses.values())).sum() - similarity

    gradients = []
    for num_chunks in (1, 3):
        model = _model(kind).train()
        inputs, size = _inputs(model), 6 // num_chunks
        chunks = []
        for start in range(0, 6, size):  # with 2, 1 and 1 regions; of one part, with 4
            own = (start <= INDEX) & (start + size > INDEX)
            part = {name: inputs[name][start : start + size] for name in ("image", "text")}
            part |= {name: inputs[name][own] for name in ("boxes", "region_text")}
            chunks.append({**part, "box_index": INDEX[own] - start})
        gradcache.backward(lambda chunk, model=model: model(**chunk), chunks, loss)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.startswith("region_head.") for name in gradients[0])
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", REGION_HEADS)
def test_it_is_saved_and_loaded_with_the_model(kind: str, tmp_path: Path) -> None:
    model = _model(kind)
    model.save(tmp_path / "model")
    loaded = clipkit.load(tmp_path / "model")
    assert loaded.model_id == model.model_id == small_model().model_id
    assert loaded.region_head is not None
    assert loaded.region_head.config == model.region_head.config
    images = images_for(model, batch=5)
    found = [one.encode_regions(one.tokens(images), BOXES, INDEX) for one in (model.eval(), loaded)]
    assert torch.equal(*found)
    assert clipkit.load(tmp_path / "model", towers="text").region_head is None
    loaded.save(tmp_path / "again")
    assert clipkit.load(tmp_path / "again").region_head is not None
    with pytest.raises(ValueError, match=f"is a {kind}, which does not classify"):
        loaded.with_head("regions")


def test_a_model_that_went_on_training_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    model = _model("prompter")
    model.save(tmp_path / "model")
    assert model.region_head is not None
    with torch.no_grad():
        model.logit_scale.add_(0.1)
        for parameter in model.region_head.parameters():
            parameter += 0.1
    model.save(tmp_path / "model")
    loaded = clipkit.load(tmp_path / "model").region_head
    assert loaded is not None
    assert all(
        torch.equal(tensor, loaded.state_dict()[name])
        for name, tensor in model.region_head.state_dict().items()
    )
    small_model(seed=3).save(tmp_path / "model")
    assert clipkit.load(tmp_path / "model").region_head is None


def test_a_damaged_head_is_refused(tmp_path: Path) -> None:
    _model("prompter").save(tmp_path / "model")
    path = tmp_path / "model" / "heads" / "regions.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"regions\.safetensors is not what regions\.json says"):
        clipkit.load(tmp_path / "model")


def test_phrases_are_grounded_image_by_image() -> None:
    model = _model("prompter")
    images = images_for(model, batch=2)
    every = model.ground(images, PHRASES[:3])
    assert every.shape == (6, 4)
    some = model.ground(images, [PHRASES[2], PHRASES[0]], torch.tensor([0, 1]))
    torch.testing.assert_close(some, every[[2, 3]], rtol=0, atol=1e-5)
    one = model.ground(images[1], PHRASES[2])
    torch.testing.assert_close(one, every[[5]], rtol=0, atol=1e-5)


def test_a_model_without_a_head_says_how_to_get_one() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"no region head.*--regions\.head prompter"):
        model.ground(images_for(model, batch=1), ["a"])


def test_heads_and_settings_are_named() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"no region head 'promter'.*did you mean 'prompter'"):
        build_region_head("promter", model)
    with pytest.raises(ValueError, match=r"prompter has no setting 'num_head'.*did you mean 'num_heads'"):
        build_region_head("prompter", model, {"num_head": 2})
    model.train()
    assert token_width(model) == model.tokens(images_for(model, batch=1)).tokens[0].shape[-1]
    assert model.training


def test_a_prompter_without_grounding_has_no_parts_for_it() -> None:
    model = small_model()
    head = build_region_head("prompter", model, {"with_grounding": False})
    assert not any(name.startswith(("phrase", "box")) for name, _ in head.named_parameters())
    model.region_head = head
    with pytest.raises(ValueError, match="without grounding"):
        model.ground(images_for(model, batch=1), ["a"])
