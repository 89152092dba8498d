import open_clip
import pytest
import torch

from clipkit import text_towers, towers
from clipkit.architecture import build
from clipkit.text_towers import needed_columns, resolve_layers
from clipkit.towers import resample_tokens

TEXT = {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 2, "layers": 3}
VIT = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 32, "head_width": 16}
TIMM = {"timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
VISION = {
    "vit": VIT,
    "vit_avg": {**VIT, "pool_type": "avg"},
    "vit_attentional": {**VIT, "attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
    "vit_wide": {**VIT, "image_size": [32, 48]},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "timm_conv": {**TIMM, "timm_model_name": "resnet10t"},
    "timm_vit": {
        **TIMM,
        "timm_model_name": "test_vit",
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": 160,
    },
}


def make(vision, text=TEXT, seed=0, **settings):
    torch.manual_seed(seed)
    name = VISION[vision] if isinstance(vision, str) else vision
    model_cfg = {"embed_dim": 16, "vision_cfg": dict(name), "text_cfg": dict(text), **settings}
    return build(model_cfg).eval()


def images_for(model, batch=2):
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def hooked(modules, run):
    """What each module returned while `run` was called."""
    outputs = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, key=key: outputs.__setitem__(key, output.clone()))
        for key, module in enumerate(modules)
    ]
    run()
    for handle in handles:
        handle.remove()
    return outputs


def blocks_of(visual):
    """(modules in depth order, how many leading tokens are no patches)."""
    if hasattr(visual, "transformer"):
        return list(visual.transformer.resblocks), 1
    if hasattr(visual, "attnpool"):
        return [visual.avgpool, visual.layer1, visual.layer2, visual.layer3, visual.layer4], 0
    trunk = visual.trunk
    if hasattr(trunk, "blocks"):
        return list(trunk.blocks), trunk.num_prefix_tokens
    return [trunk.act1, trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4], 0


@torch.no_grad()
@pytest.mark.parametrize("vision", VISION)
def test_image_tokens_are_what_the_blocks_return(vision):
    model = make(vision)
    images = images_for(model)
    modules, prefix = blocks_of(model.visual)
    expected = hooked(modules, lambda: model.encode_image(images))
    for layer in range(-len(modules), len(modules)):
        found = towers.image_tokens(model, images, layers=(layer,))
        torch.testing.assert_close(found.pooled, model.encode_image(images), atol=1e-6, rtol=0)
        output = expected[layer % len(modules)]
        if output.ndim == 4:
            assert found.grid == tuple(output.shape[2:])
            output = output.flatten(2).transpose(1, 2)
        else:
            output = output[:, prefix:]
        assert found.tokens[0].shape[1] == found.grid[0] * found.grid[1]
        torch.testing.assert_close(found.tokens[0], output, atol=1e-6, rtol=0)


@torch.no_grad()
def test_several_layers_come_in_the_order_asked_for():
    model = make("vit")
    images = images_for(model)
    found = towers.image_tokens(model, images, layers=(-1, 0, 0))
    each = [towers.image_tokens(model, images, layers=(layer,)).tokens[0] for layer in (2, 0, 0)]
    assert all(torch.equal(a, b) for a, b in zip(found.tokens, each, strict=True))


def test_layers_outside_the_tower_are_refused():
    assert resolve_layers((-1, 0, -3), 3) == [2, 0, 0]
    for layers in ((3,), (-4,), ()):
        with pytest.raises(ValueError, match=r"layers must lie in \[-3, 2\]"):
            resolve_layers(layers, 3)


def test_layers_of_different_grids_are_refused():
    model = make("resnet")
    with pytest.raises(ValueError, match=r"have different grids \[\(2, 2\), \(4, 4\)\]"):
        towers.image_tokens(model, images_for(model), layers=(-1, -2))


def test_tokens_while_patches_are_dropped_are_refused():
    model = make({**VIT, "patch_dropout": 0.5}).train()
    with pytest.raises(ValueError, match="call eval"):
        towers.image_tokens(model, images_for(model))


def texts(seed=0, lengths=(3, 5, 4)):
    """Padded token ids that end with 99, the highest id."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.zeros(len(lengths), TEXT["context_length"], dtype=torch.long)
    for row, length in enumerate(lengths):
        text[row, :length] = torch.randint(1, 90, (length,), generator=generator)
        text[row, length - 1] = 99
    return text


@torch.no_grad()
@pytest.mark.parametrize("custom_text", [False, True])
def test_text_tokens_are_what_the_blocks_return(custom_text):
    model = make("vit", custom_text=custom_text)
    tower = model.text if custom_text else model
    expected = hooked(list(tower.transformer.resblocks), lambda: model.encode_text(texts()))
    found = towers.text_tokens(model, texts(), layers=(0, -1))
    torch.testing.assert_close(found.tokens[0], expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.tokens[1], expected[2], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.pooled, model.encode_text(texts()), atol=1e-6, rtol=0)
    assert found.grid is None


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("pool", [{}, {"pool_type": "eos", "eos_id": 99}, {"proj_bias": True}])
def test_fewer_columns_give_the_same_features_and_gradients(custom_text, pool):
    model = make("vit", {**TEXT, **pool}, custom_text=custom_text).double()
    text = texts()
    assert needed_columns(model, text) == 5
    outputs, gradients = [], []
    for columns in (12, 5):
        model.zero_grad()
        features = text_towers.encode_text(model, text[:, :columns])
        features.square().sum().backward()
        outputs.append(features.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert torch.equal(outputs[0], model.encode_text(text).detach())
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-12, rtol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    "text_cfg",
    [
        {"no_causal_mask": True},
        {"no_causal_mask": True, "pool_type": "last"},
        {"pool_type": "last"},
        {"embed_cls": True},
    ],
)
def test_towers_where_every_column_matters_are_not_cut(text_cfg):
    model = make("vit", {**TEXT, **text_cfg}, custom_text=True)
    assert needed_columns(model, texts()) == 12


def test_a_text_without_end_keeps_every_feature():
    """Then 'eos' pools at column 0, and so it does on fewer columns."""
    model = make("vit", {**TEXT, "pool_type": "eos", "eos_id": 77}).double()
    assert needed_columns(model, texts()) == 1
    found = text_towers.encode_text(model, texts()[:, :1])
    torch.testing.assert_close(found, model.encode_text(texts()), atol=1e-12, rtol=0)


def test_too_many_columns_are_refused():
    model = make("vit")
    with pytest.raises(ValueError, match="the text has 13 columns, the model reads 12"):
        text_towers.encode_text(model, torch.ones(1, 13, dtype=torch.long))


def test_resampling_by_hand():
    tokens = torch.tensor([[[0.0], [2.0], [4.0], [6.0]]])
    assert torch.equal(resample_tokens(tokens, (2, 2), (2, 2)), tokens)
    assert resample_tokens(tokens, (2, 2), (1, 1)).item() == 3.0
    wide = resample_tokens(tokens, (2, 2), (2, 4)).flatten()
    torch.testing.assert_close(wide, torch.tensor([0.0, 0.5, 1.5, 2.0, 4.0, 4.5, 5.5, 6.0]))
    half = resample_tokens(tokens.half(), (2, 2), (3, 3))
    assert half.dtype == torch.float16
    with pytest.raises(ValueError, match="4 tokens do not fill a grid of 2 x 3"):
        resample_tokens(tokens, (2, 3), (1, 1))


@torch.no_grad()
@pytest.mark.parametrize("vision", ["vit_avg", "timm_conv"])
def test_projected_tokens_average_to_the_pooled_features(vision):
    model = make(vision)
    images = images_for(model)
    output = towers.image_tokens(model, images)
    projected = towers.project_tokens(model, output.tokens[0])
    torch.testing.assert_close(projected.mean(1), output.pooled, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("vision", ["vit", "timm_vit"])
def test_the_class_token_projects_to_the_pooled_features(vision):
    model = make(vision)
    images = images_for(model)
    modules, _ = blocks_of(model.visual)
    last = hooked(modules, lambda: model.encode_image(images))[len(modules) - 1]
    projected = towers.project_tokens(model, last)
    torch.testing.assert_close(projected[:, 0], model.encode_image(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("vision", ["resnet", "vit_attentional"])
def test_attention_pooling_has_no_projection_of_tokens(vision):
    model = make(vision)
    with pytest.raises(ValueError, match="no projection into the joint space"):
        towers.project_tokens(model, torch.zeros(1, 4, 32))


@torch.no_grad()
@pytest.mark.parametrize("vision", ["vit", "resnet", "timm_conv", "timm_vit"])
def test_resizing_reads_the_new_size(vision):
    model = make(vision)
    old = images_for(model)
    before = model.encode_image(old)
    size = towers.resize_image_size(model, 96 if vision != "timm_vit" else 192)
    images = torch.randn(2, 3, *size)
    output = towers.image_tokens(model, images)
    torch.testing.assert_close(output.pooled, model.encode_image(images), atol=1e-6, rtol=0)
    towers.resize_image_size(model, old.shape[-1])
    if vision == "timm_conv":
        assert torch.equal(model.encode_image(old), before)


@torch.no_grad()
def test_resized_position_embeddings_are_open_clips(tmp_path):
    """What `open_clip.load_checkpoint` makes of the same weights at the larger size."""
    small, big = make("vit"), make({**VIT, "image_size": 64}, seed=1)
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    open_clip.load_checkpoint(big, str(tmp_path / "weights.pt"))
    towers.resize_image_size(small, (64, 64))
    assert torch.equal(small.visual.positional_embedding, big.visual.positional_embedding)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(small.encode_image(images), big.encode_image(images))


def test_resizing_keeps_fixed_embeddings_fixed():
    model = make({**VIT, "pos_embed_type": "sin_cos_2d"})
    towers.resize_image_size(model, 64)
    assert not model.visual.positional_embedding.requires_grad


@pytest.mark.parametrize(
    ("vision", "size", "message"),
    [
        ("vit", 30, "no multiple of the patch"),
        ("resnet", (64, 96), "square and a multiple of 32"),
        ("vit", 0, "must be positive"),
        ("vit_wide", 64, "not square"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(vision, size, message):
    with pytest.raises(ValueError, match=message):
        towers.resize_image_size(make(vision), size)


@torch.no_grad()
@pytest.mark.parametrize("custom_text", [False, True])
def test_a_longer_context_keeps_the_ends_of_the_table(custom_text):
    model = make("vit", custom_text=custom_text)
    tower = model.text if custom_text else model
    before = tower.positional_embedding.clone()
    text_towers.resize_context(model, 24)
    after = tower.positional_embedding
    assert after.shape == (24, 32)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[-1], before[-1])
    text = torch.zeros(1, 24, dtype=torch.long)
    text[0, :3] = torch.tensor([5, 6, 99])
    full = model.encode_text(text)
    torch.testing.assert_close(text_towers.encode_text(model, text[:, :3]), full, atol=1e-6, rtol=0)
