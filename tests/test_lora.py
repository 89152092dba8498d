"""LoRA: its weights written out, towers untouched, merging, training."""

import copy

import open_clip
import pytest
import torch
from prompt_models import ATTENTION, MODELS, TEXTS, VISION, VIT, make_model
from small_models import images_for, small_model

from clipkit import packed_texts
from clipkit.adapters.clip_adapter import ClipAdapter, ClipAdapterConfig
from clipkit.adapters.lora import Lora, LoraConfig, merged_state_dict
from clipkit.adapters.projections import projections
from clipkit.adapters.swapped_weights import swapped_weights
from clipkit.dual_encoder import DualEncoder
from clipkit.heads.base import frozen_text_features
from clipkit.heads.features import unit_features
from clipkit.prompts import class_texts as class_texts_module

NAMES = ("cat", "red fox", "fire truck", "foxglove")
ALL = ("q", "k", "v", "out", "mlp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bert")


@pytest.fixture(scope="module", params=MODELS)
def model(request, folder):
    vision, text = MODELS[request.param]
    return make_model(vision, text, folder=folder, embed_dim=64)


def make_head(model, *, trained=False, **settings):
    torch.manual_seed(2)
    head = Lora(model, LoraConfig(**settings))
    if trained:
        for up in head.up.values():
            torch.nn.init.normal_(up, std=0.2)
    return head


def pictures(count=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype)


def both(head, model, images):
    texts = head.class_texts(model, NAMES)
    return head.image_features(model, images), head.text_features(model, texts)


def plain(model, images):
    tokens = model.tokenizer([f"a photo of a {name}." for name in NAMES])
    return unit_features(model.encode_image(images)), unit_features(model.encode_text(tokens))


# Where the projections are.


def test_projections_of_open_clip():
    model = make_model({**VIT, **ATTENTION}).model
    found = projections(model, "image", ("v", "out", "mlp"))
    block = "visual.transformer.resblocks.0"
    assert [(p.weight, p.kind, p.first_row, p.num_rows, p.num_columns) for p in found[:4]] == [
        (f"{block}.attn.in_proj_weight", "v", 48, 24, 24),
        (f"{block}.attn.out_proj.weight", "out", 0, 24, 24),
        (f"{block}.mlp.c_fc.weight", "mlp", 0, 96, 24),
        (f"{block}.mlp.c_proj.weight", "mlp", 0, 24, 96),
    ]
    assert len(found) == 3 * 4


def test_every_tower_has_all_projections_once(model):
    """Each block has q, k, v and out once and two layers of mlp, of blocks alone and none of a pooler."""
    for tower in ("image", "text"):
        found = projections(model.model, tower, ALL)
        counts = {kind: sum(place.kind == kind for place in found) for kind in ALL}
        num_blocks = counts["q"]
        assert num_blocks >= 1
        assert counts == {**dict.fromkeys(ALL, num_blocks), "mlp": 2 * num_blocks}
        assert len(set(found)) == len(found)
        for place in found:
            rows, columns = model.model.get_parameter(place.weight).shape
            assert place.first_row + place.num_rows <= rows
            assert place.num_columns == columns
            assert "pool" not in place.weight


def test_numbers_of_parameters():
    head = make_head(make_model(), rank=2)
    assert sum(p.numel() for p in head.parameters()) == 3 * 3 * (2 * (24 + 24) + 2 * (16 + 16))
    assert sum(p.numel() for p in make_head(make_model(), towers="text", targets=("mlp",)).parameters()) == (
        3 * 2 * 2 * (16 + 64)
    )


# The weights.


@torch.no_grad()
def test_update_by_hand():
    model = make_model()
    head = make_head(model, rank=1, alpha=3.0, targets=("k",), towers="image")
    name = "visual.transformer.resblocks.1.attn.in_proj_weight"
    key = name.replace(".", "/") + "/k"
    head.down[key].fill_(0.0)
    head.down[key][0, 5] = 2.0
    head.up[key][7, 0] = 0.5
    expected = model.model.get_parameter(name).clone()
    expected[24 + 7, 5] += 3.0 * 0.5 * 2.0
    assert torch.equal(head.updated_weights(model, "image")[name], expected)
    assert head.updated_weights(model, "text") == {}


def slow_copy(model, head):
    """A copy of the model whose weights got the updates entry by entry of the definition."""
    other = copy.deepcopy(model)
    scale = head.config.alpha / head.config.rank
    for key, up in head.up.items():
        *path, kind = key.split("/")
        weight = other.model.get_parameter(".".join(path))
        rows = weight.shape[0] // 3 if path[-1] == "in_proj_weight" or path[-2] == "qkv" else weight.shape[0]
        first = "qkv".index(kind) * rows if rows < weight.shape[0] else 0
        for rank in range(head.config.rank):
            update = torch.outer(up[:, rank], head.down[key][rank])
            weight[first : first + rows] += scale * update
    return other


@torch.no_grad()
@pytest.mark.parametrize("vision", VISION)
def test_features_are_those_of_updated_weights(vision):
    model = make_model(vision).double()
    head = make_head(model, trained=True, rank=3, targets=ALL).double()
    images = pictures(dtype=torch.float64)
    expected = plain(slow_copy(model, head), images)
    for found, wanted, frozen in zip(both(head, model, images), expected, plain(model, images), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
        assert not torch.allclose(found, frozen, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS)
def test_text_features_are_those_of_updated_weights(text, folder):
    model = make_model("class token", text, folder=folder).double()
    head = make_head(model, trained=True, targets=ALL, towers="text").double()
    images = pictures(dtype=torch.float64)
    found, expected = both(head, model, images), plain(slow_copy(model, head), images)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-10)
    assert torch.equal(found[0], plain(model, images)[0])


@torch.no_grad()
def test_an_untrained_head_and_a_detached_one_change_no_bit(model):
    names = [name for name, _ in model.named_parameters()]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    images = pictures()
    frozen = plain(model, images)
    untrained = make_head(model, targets=ALL)
    images_then, texts_then = both(untrained, model, images)
    assert torch.equal(images_then, frozen[0])
    texts = untrained.class_texts(model, NAMES)
    assert torch.equal(texts_then, frozen_text_features(model, texts))
    both(make_head(model, trained=True, targets=ALL), model, images)
    assert all(torch.equal(a, b) for a, b in zip(plain(model, images), frozen, strict=True))
    assert [name for name, _ in model.named_parameters()] == names
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_weights_come_back_after_an_error():
    layer = torch.nn.Linear(2, 2)
    own = layer.weight
    with swapped_weights(layer, {"weight": torch.zeros(2, 2)}):
        assert torch.equal(layer(torch.ones(1, 2))[0], layer.bias)
    with pytest.raises(RuntimeError, match="shapes"), swapped_weights(layer, {"weight": torch.zeros(3, 3)}):
        layer(torch.ones(1, 2))
    assert layer.weight is own


@torch.no_grad()
def test_the_fast_path_of_attention_takes_the_updates():
    """Without gradients a block may run as one kernel, which reads the weight by another way."""
    model = make_model()
    head = make_head(model, trained=True)
    without = both(head, model, pictures())
    with torch.enable_grad():
        with_gradients = both(head, model, pictures())
    for a, b in zip(without, with_gradients, strict=True):
        assert b.requires_grad
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# Gradients.


def gradients(head, model, *, checkpointing=False, num_batches=1):
    model.model.set_grad_checkpointing(checkpointing)
    texts = head.class_texts(model, NAMES)
    assert len(texts.packed or torch.split(texts.tokens, texts._texts_per_batch)) == num_batches
    loss = head.loss(model, {"image": pictures(), "label": torch.arange(4)}, texts)
    head.zero_grad()
    loss.backward()
    model.model.set_grad_checkpointing(False)
    return {name: parameter.grad.clone() for name, parameter in head.named_parameters()}


@pytest.mark.parametrize("text", ["causal", "full"])
def test_gradients_are_right_where_activations_are_computed_again(monkeypatch, text):
    model = make_model("class token", text, embed_dim=64)
    head = make_head(model, trained=True, targets=ALL)
    expected = gradients(head, model)
    monkeypatch.setattr(class_texts_module, "TOKENS_PER_BATCH", 12)
    monkeypatch.setattr(packed_texts, "ROW_TOKENS", 8)  # a row holds one text
    for checkpointing in (False, True):
        again = gradients(head, model, checkpointing=checkpointing, num_batches=4)
        for name, gradient in expected.items():
            torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_differences():
    model = make_model().double()
    head = make_head(model, trained=True, rank=1).double()
    batch = {"image": pictures(2, torch.float64), "label": torch.tensor([1, 3])}
    texts = head.class_texts(model, NAMES)
    head.loss(model, batch, texts).backward()
    for name in ("down", "up"):
        for tower in ("visual/transformer", "transformer"):
            parameter = getattr(head, name)[f"{tower}/resblocks/1/attn/in_proj_weight/v"]
            place = (0, 3) if name == "down" else (3, 0)
            losses = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter[place] += step
                    losses.append(float(head.loss(model, batch, texts)))
                    parameter[place] -= step
            slope = (losses[0] - losses[1]) / 2e-5
            assert float(parameter.grad[place]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_it_trains_beside_every_model(model):
    for bf16 in (False, True):
        head = make_head(model, targets=ALL).train()
        texts = head.class_texts(model, NAMES)
        optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
        losses = []
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = head.loss(model, {"image": pictures(), "label": torch.arange(4)}, texts)
            assert loss.dtype == torch.float32
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
        lost = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert lost == []
    assert all(parameter.grad is None for parameter in model.parameters())


def test_beside_towers_in_half_it_stays_in_full_precision():
    results = []
    for dtype in (torch.float32, torch.float16):
        model = make_model(embed_dim=64).to(dtype)
        head = make_head(model, trained=True)
        texts = head.class_texts(model, NAMES)
        loss = head.loss(model, {"image": pictures(dtype=dtype), "label": torch.arange(4)}, texts)
        loss.backward()
        assert {parameter.grad.dtype for parameter in head.parameters()} == {torch.float32}
        results.append(float(loss.detach()))
    assert results[1] == pytest.approx(results[0], rel=0.05)


def test_updates_are_added_in_full_precision_under_autocast():
    model = make_model()
    head = make_head(model, trained=True)
    expected = head.updated_weights(model, "image")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head.updated_weights(model, "image")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# Merged.


@torch.no_grad()
def test_merged_weights_give_the_features_of_the_head(model):
    head = make_head(model, trained=True, targets=ALL)
    tensors = merged_state_dict(model, head)
    assert tensors.keys() == model.model.state_dict().keys()
    other = copy.deepcopy(model)
    other.model.load_state_dict(tensors)
    for found, expected in zip(plain(other, pictures()), both(head, model, pictures()), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_merged_model_loads_in_open_clip(tmp_path):
    model = small_model().requires_grad_(False)
    head = make_head(model, trained=True, targets=ALL)
    identity = model.model_id
    merged = model.save(tmp_path / "merged", state_dict=merged_state_dict(model, head))
    assert model.model_id == identity != merged
    other = open_clip.create_model(f"local-dir:{tmp_path / 'merged'}").eval()
    images = images_for(model)
    tokens = model.tokenizer([f"a photo of a {name}." for name in NAMES])
    found = other.encode_image(images, normalize=True), other.encode_text(tokens, normalize=True)
    for merged_features, expected in zip(found, both(head, model, images), strict=True):
        torch.testing.assert_close(merged_features, expected, rtol=0, atol=1e-5)


def test_other_heads_cannot_be_merged():
    model = make_model()
    with pytest.raises(ValueError, match=r"^a head of clip-adapter cannot be merged into weights, only"):
        merged_state_dict(model, ClipAdapter(model, ClipAdapterConfig()))


# Refused.


def test_a_tower_without_attention_is_refused():
    resnet: DualEncoder = make_model({"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    with pytest.raises(
        ValueError, match=r"projections q, k, v in the image tower, a ModifiedResNet: set tow"
    ) as e:
        Lora(resnet, LoraConfig())
    assert "\n" not in str(e.value)
    head = make_head(resnet, towers="text")
    batch = {"image": torch.randn(2, 3, 64, 64), "label": torch.tensor([0, 1])}
    assert head.loss(resnet, batch, head.class_texts(resnet, NAMES)) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"^rank must be at least 1, got 0$"),
        ({"alpha": 0}, r"^alpha must be > 0, got 0$"),
        ({"targets": ("q", "w")}, r"^targets must be some of q, k, v, out, mlp, got w$"),
        ({"targets": ()}, r"got none$"),
        ({"rank": 17}, r"^rank must be 1 to 16 for the towers of this model, got 17$"),
    ],
)
def test_mistakes_are_told(settings, message):
    with pytest.raises(ValueError, match=message):
        Lora(make_model(), LoraConfig(**settings))
