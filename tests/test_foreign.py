from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from clipkit.zeroshot.classifier import build_classifier, prompts_of_names
from clipkit.zeroshot.encoder import Encoder
from PIL import Image
from safetensors.torch import load_file, save_file
from small_models import images_for, small_model
from torch import Tensor, nn

from clipkit.byte_tokenizer import ByteTokenizer
from clipkit.data.image_files import ImageFiles
from clipkit.dual_encoder import DualEncoder
from clipkit.feature_cache import FeatureCache
from clipkit.foreign import ForeignEncoder
from clipkit.foreign_files import load_foreign
from clipkit.plain_towers import PlainTextTower, TextTower, quick_gelu, sincos_positions
from clipkit.preprocess import PreprocessConfig

VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"vocab_size": 49408, "width": 16, "layers": 2, "heads": 2, "context_length": 12}


def open_clip_blocks(tower: str, stored: str) -> dict[str, Any]:
    ours, theirs = f"{tower}.blocks.{{layer}}", f"{stored}transformer.resblocks.{{layer}}"
    return {
        f"{ours}.self_attn.in_proj_weight": f"{theirs}.attn.in_proj_weight",
        f"{ours}.self_attn.in_proj_bias": f"{theirs}.attn.in_proj_bias",
        f"{ours}.self_attn.out_proj": f"{theirs}.attn.out_proj",
        f"{ours}.linear1": f"{theirs}.mlp.c_fc",
        f"{ours}.linear2": f"{theirs}.mlp.c_proj",
        f"{ours}.norm1": f"{theirs}.ln_1",
        f"{ours}.norm2": f"{theirs}.ln_2",
        f"{tower}.positions": f"{stored}positional_embedding",
    }


OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "weights": "clip.safetensors",
    "image": {
        "image_size": [32, 32],
        "patch_size": 8,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "mlp_width": 128,
    },
    "text": {
        "vocab_size": 49408,
        "context_length": 12,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "mlp_width": 64,
        "causal": True,
        "mask_padding": False,
        "end": 49407,
    },
    "names": {
        **open_clip_blocks("image", "visual."),
        **open_clip_blocks("text", ""),
        "image.patch.weight": "visual.conv1.weight",
        "image.class_token": "visual.class_embedding",
        "image.input_norm": "visual.ln_pre",
        "image.final_norm": "visual.ln_post",
        "image.projection.weight": {"name": "visual.proj", "transpose": True},
        "text.embedding.weight": "token_embedding.weight",
        "text.final_norm": "ln_final",
        "text.projection.weight": {"name": "text_projection", "transpose": True},
        "logit_scale": "logit_scale",
    },
}


@pytest.fixture(scope="module")
def clip() -> DualEncoder:
    model = small_model(vision_cfg=VISION, text_cfg=TEXT)
    generator = torch.Generator().manual_seed(0)
    for (
        parameter
    ) in model.parameters():  # biases and norms start as 0 and 1, which would hide that one is lost
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def write(folder: Path, model: DualEncoder, **changes: Any) -> Path:
    save_file(model.model.state_dict(), folder / "clip.safetensors")
    path = folder / "clip.json"
    path.write_text(json.dumps({**OPEN_CLIP, **changes}))
    return path


def with_names(**changes: Any) -> dict[str, Any]:
    names = {**OPEN_CLIP["names"], **{key.replace("__", "."): value for key, value in changes.items()}}
    return {key: value for key, value in names.items() if value is not None}


CAPTIONS = ["a red circle", "two blue squares left of a star and a good deal more than fits", ""]


def features(model: DualEncoder, of: DualEncoder) -> tuple[Tensor, Tensor]:
    """Of the same inputs, whatever the tokenizer of `model`."""
    return model.encode_image(images_for(of)), model.encode_text(of.tokenizer(CAPTIONS))


@pytest.mark.parametrize("no_grad", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_open_clips_own_towers_by_a_description(
    tmp_path: Path, clip: DualEncoder, activation: str, no_grad: bool
) -> None:
    reference = clip
    if activation == "quick_gelu":
        reference = small_model(vision_cfg=VISION, text_cfg=TEXT, quick_gelu=True)
        reference.load_state_dict(clip.state_dict())
    image = {**OPEN_CLIP["image"], "activation": activation}
    text = {**OPEN_CLIP["text"], "activation": activation}
    found = load_foreign(write(tmp_path, clip, image=image, text=text), tokenizer=reference.tokenizer)
    assert not found.training
    assert found.tokenizer(CAPTIONS).equal(reference.tokenizer(CAPTIONS))
    assert found.logit_scale.item() == pytest.approx(reference.logit_scale.item(), abs=1e-6)
    with torch.inference_mode(no_grad):
        for mine, theirs in zip(features(found, reference), features(reference, reference), strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)
    assert (found.image_size, found.context_length, found.embed_dim) == ((32, 32), 12, 16)


@pytest.mark.parametrize(
    ("tower", "change"),
    [
        ("image", {"activation": "gelu_tanh"}),
        ("image", {"norm_eps": 1e-2}),
        ("image", {"norm_first": False}),
        ("image", {"pool": "mean"}),
        ("text", {"activation": "relu"}),
        ("text", {"causal": False}),
        ("text", {"pool": "first"}),
        ("text", {"pool": "mean"}),
        ("text", {"heads": 4}),
    ],
)
def test_every_word_of_a_description_counts(
    tmp_path: Path, clip: DualEncoder, tower: str, change: dict[str, Any]
) -> None:
    path = write(tmp_path, clip, **{tower: {**OPEN_CLIP[tower], **change}})
    found = features(load_foreign(path, tokenizer=clip.tokenizer), clip)
    for name, mine, theirs in zip(("image", "text"), found, features(clip, clip), strict=True):
        difference = (mine - theirs).abs().max()
        assert difference > 1e-4 if name == tower else difference < 2e-5, name


def test_heads_that_are_stored_one_by_one(tmp_path: Path, clip: DualEncoder) -> None:
    """Queries, keys and values of a head in tensors of their own, as textbook code has them."""
    path = write(tmp_path, clip)
    state = load_file(tmp_path / "clip.safetensors")
    for layer in range(2):
        prefix = f"visual.transformer.resblocks.{layer}.attn"
        for leaf in ("weight", "bias"):
            fused = state.pop(f"{prefix}.in_proj_{leaf}")
            for part, rows in zip("qkv", fused.chunk(3), strict=True):
                for head, own in enumerate(rows.chunk(2)):
                    state[f"{prefix}.{head}.{part}.{leaf}"] = own.contiguous()
    # Tables with a dimension for the batch, and in half precision.
    state["visual.positional_embedding"] = state["visual.positional_embedding"][None]
    state["visual.class_embedding"] = state["visual.class_embedding"][None, None].half()
    save_file(state, tmp_path / "clip.safetensors")
    theirs = "visual.transformer.resblocks.{layer}.attn.{head}"
    names = dict(OPEN_CLIP["names"])
    for leaf in ("weight", "bias"):
        names[f"image.blocks.{{layer}}.self_attn.in_proj_{leaf}"] = [
            f"{theirs}.{part}.{leaf}" for part in "qkv"
        ]
    path.write_text(json.dumps({**OPEN_CLIP, "names": names}))
    found = load_foreign(path, tokenizer=clip.tokenizer)
    assert found.model.visual.tower.class_token.dtype == torch.float32
    torch.testing.assert_close(features(found, clip)[0], features(clip, clip)[0], atol=1e-3, rtol=0)


BYTES: dict[str, Any] = {
    "embed_dim": 6,
    "image": {
        "image_size": 8,
        "patch_size": 4,
        "channels": 1,
        "width": 4,
        "layers": 1,
        "heads": 2,
        "mlp_width": 8,
        "pool": "mean",
    },
    "text": {
        "vocab_size": 260,
        "context_length": 16,
        "width": 6,
        "layers": 2,
        "heads": 2,
        "mlp_width": 8,
        "end": 2,
        "positions": "sincos",
    },
    "bytes": {"start": 1, "offset": 3},
    "logit_scale": 20.0,
}
WITHOUT_END = {key: value for key, value in BYTES["text"].items() if key != "end"}


def random_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint under our own names, with random numbers."""
    from clipkit.foreign_files import Description, _parse
    from clipkit.plain_towers import ImageTower

    content = {**copy.deepcopy(BYTES), **changes}
    described = _parse(Description, {**content, "names": {}})
    parts = ["projection.weight", "projection.bias", "patch.bias"]
    image = ImageTower(described.image, 6, parts)
    towers = nn.ModuleDict({"image": image, "text": TextTower(described.text, 6, ["final_norm"])})
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(value.shape, generator=generator)
        for name, value in sorted(towers.state_dict().items())
    }
    save_file(state, folder / f"{seed}.safetensors")
    path = folder / f"{seed}.json"
    content |= {"weights": f"{seed}.safetensors", "names": {name: name for name in state}}
    path.write_text(json.dumps(content))
    return path


def test_padding_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    for text in ({}, {"pool": "mean"}, {"causal": True}):
        model = load_foreign(random_model(tmp_path, text={**BYTES["text"], **text}))
        tokens = model.tokenizer(["a cat", "a cat and more"])
        short = model.encode_text(tokens[:1, :7])
        torch.testing.assert_close(model.encode_text(tokens)[:1], short, atol=1e-5, rtol=0)
    seen = load_foreign(random_model(tmp_path, text={**BYTES["text"], "mask_padding": False}))
    assert (seen.encode_text(tokens)[:1] - seen.encode_text(tokens[:1, :7])).abs().max() > 1e-3


def test_gradients_off_change_nothing(tmp_path: Path) -> None:
    """Without gradients torch computes a block by another path."""
    model = load_foreign(random_model(tmp_path))
    tokens = model.tokenizer(["a cat", "", "a cat and more"])
    with torch.inference_mode():
        found = model.encode_text(tokens)
    torch.testing.assert_close(found, model.encode_text(tokens).detach(), atol=1e-5, rtol=0)


def test_a_grey_tower_sees_the_luma_of_colours(tmp_path: Path) -> None:
    model = load_foreign(random_model(tmp_path, preprocess={"mean": 0, "std": 1}))
    pixels = torch.rand(2, 3, 8, 8)
    red, green, blue = pixels.unbind(dim=1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(model.encode_image(pixels), model.encode_image(luma), atol=1e-5, rtol=0)
    picture = Image.new("RGB", (8, 8), (10, 200, 30))
    grey = model.preprocess()(picture.convert("L"))
    found = model.encode_image(torch.stack([model.preprocess()(picture), grey]))
    torch.testing.assert_close(found[0], found[1], atol=0.01, rtol=0)


def test_images_of_uint8_are_normalised_as_described(tmp_path: Path) -> None:
    model = load_foreign(random_model(tmp_path, preprocess={"mean": 0.5, "std": 0.25}))
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = model.encode_image((pixels / 255 - 0.5) / 0.25)
    torch.testing.assert_close(model.encode_image(pixels), expected, atol=1e-5, rtol=0)


def test_it_classifies_as_any_model_does(tmp_path: Path) -> None:
    """Prompts, pictures, and a second time from the cache, under the id of the model."""
    model = load_foreign(random_model(tmp_path))
    paths = []
    for number, colour in enumerate(("red", "blue", "red")):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (9, 12), colour).save(paths[-1])
    cache = FeatureCache(tmp_path / f"{model.model_id}.sqlite", model.embed_dim)
    encoder = Encoder(model, cache)
    classifier = build_classifier(encoder, prompts_of_names(["red", "blue"], ["{c}"]))
    texts = model.encode_text(model.tokenizer(["red", "blue"]), normalize=True).detach()
    torch.testing.assert_close(classifier.weights, texts, atol=1e-5, rtol=0)
    images = encoder.images(ImageFiles(paths))
    assert not images.unreadable
    assert images.features[0].equal(images.features[2])
    again = Encoder(load_foreign(tmp_path / "0.json"), cache).images(ImageFiles(paths))
    assert again.num_from_cache == 3
    assert again.features.equal(images.features)


def test_the_id_follows_weights_description_and_tokenizer(tmp_path: Path) -> None:
    first = load_foreign(random_model(tmp_path)).model_id
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert load_foreign(random_model(elsewhere)).model_id == first
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"image": {**BYTES["image"], "activation": "relu"}},
        {"preprocess": {"mean": 0}},
        {"bytes": {"start": 2, "offset": 3}},
        {"logit_scale": 10.0},
    ]
    found = {first, *(load_foreign(random_model(tmp_path, **change)).model_id for change in changes)}
    assert len(found) == 6


def test_any_two_modules(tmp_path: Path) -> None:
    class MeanColour(nn.Module):
        """With attributes that open_clip's towers have."""

        transformer = token_embedding = trunk = None

        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

    class Table(nn.Module):
        token_embedding = None

        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(9, 3)

        def forward(self, text: Tensor) -> Tensor:
            return self.rows(text).sum(dim=1)

    def tokenizer(texts: list[str]) -> Tensor:
        return torch.tensor([[len(text) % 9, len(text.split()) % 9] for text in texts])

    def build(**changes: Any) -> ForeignEncoder:
        torch.manual_seed(0)
        settings = {
            "tokenizer": tokenizer,
            "embed_dim": 3,
            "preprocess_config": PreprocessConfig(size=(4, 4)),
            "logit_scale": 5.0,
            "description": {"code": "mean colour 1"},
        }
        return ForeignEncoder(MeanColour(), Table(), **{**settings, **changes})

    model = build()
    pixels = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(model.encode_image(pixels), pixels.mean(dim=(2, 3)))
    output = model(pixels, model.tokenizer("two words"))
    assert output["logit_scale"].item() == pytest.approx(5)
    torch.testing.assert_close(output["text_features"].norm(dim=1), torch.ones(1))
    assert Encoder(model, None).texts(["a", "two words"]).shape == (2, 3)
    assert model.context_length == 2
    assert build().model_id == model.model_id
    assert build(description={"code": "mean colour 2"}).model_id != model.model_id
    assert build(tokenizer=lambda texts: tokenizer(texts) * 0).model_id != model.model_id
    with pytest.raises(ValueError, match=r"gives \(5, L\) int64 for 5 texts, got \(5, 2\) float32"):
        build(tokenizer=lambda texts: tokenizer(texts).float())
    with pytest.raises(ValueError, match=r"got \(10,\) int64"):
        build(tokenizer=lambda texts: tokenizer(texts).flatten())
    with pytest.raises(ValueError, match="logit_scale must be > 0"):
        build(logit_scale=0.0)


@pytest.mark.parametrize(
    ("method", "arguments", "what"),
    [
        ("save", ("model",), "saved as a model directory"),
        ("resize_image_size", (8,), "resized"),
        ("resize_context", (8,), "resized"),
        ("lock_image", (), "frozen by groups"),
        ("lock_text", (), "frozen by groups"),
        ("set_grad_checkpointing", (), "trained with gradient checkpointing"),
        ("tokens", (torch.zeros(1, 3, 8, 8),), "asked for tokens"),
        ("text_tokens", (torch.zeros(1, 16, dtype=torch.int64),), "asked for tokens"),
        ("project_tokens", (torch.zeros(1, 4, 6),), "asked for tokens"),
    ],
)
def test_what_needs_knowledge_of_the_towers_is_refused(
    tmp_path: Path, method: str, arguments: tuple[Any, ...], what: str
) -> None:
    model = load_foreign(random_model(tmp_path))
    with pytest.raises(ValueError, match=f"a foreign model cannot be {what}"):
        getattr(model, method)(*arguments)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (with_names(image__final_norm=None), r"2 unexpected \(visual.ln_post.bias, visual.ln_post.weight\)"),
        (with_names(image__class_token=None), "pool 'class' needs a class_token"),
        (with_names(image__projection__weight=None), "width 32 needs a projection to embed_dim 16"),
        (with_names(text__embedding__weight=None), "names has no entry for text.embedding.weight"),
        (with_names(text__final_norm="ln_last"), r"2 missing \(ln_last.bias, ln_last.weight\); 2 unexpected"),
        (with_names(text__final_nrom="ln_final"), "'text.final_nrom', which is no parameter; .* 'text.f"),
        (with_names(image__patch__weight=3), "image.patch.weight must be a name, a list of names, .* got 3"),
        (with_names(image__patch__weight={"name": "a", "turn": 1}), "image.patch.weight must be a name"),
        (with_names(image__projection__weight="visual.proj"), r"weight is \(32, 16\), not \(16, 32\)"),
        (with_names(text__projection__weight="logit_scale"), r"1 unexpected \(text_projection\)"),
        (with_names(image__patch__weight=["visual.conv1.weight", "ln_final.bias"]), "differ in width"),
        (with_names(logit_scale=None), "expected either logit_scale, a number, or its name in names"),
        (with_names(logit_scale="ln_final.bias"), r"1 unexpected \(logit_scale\)"),
    ],
)
def test_every_tensor_has_its_place(
    tmp_path: Path, clip: DualEncoder, names: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, clip, names=names)
    with pytest.raises(ValueError, match=message) as raised:
        load_foreign(path, tokenizer=clip.tokenizer)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_tensors_that_are_left_unused_are_named_or_ignored(tmp_path: Path, clip: DualEncoder) -> None:
    path = write(tmp_path, clip)
    state = load_file(tmp_path / "clip.safetensors")
    save_file({**state, "visual.position_ids": torch.arange(3)}, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=r"1 unexpected \(visual.position_ids\)"):
        load_foreign(path, tokenizer=clip.tokenizer)
    path = tmp_path / "other.json"
    # A pattern does not take away what has a place.
    path.write_text(json.dumps({**OPEN_CLIP, "ignored": ["*.position_ids", "visual.*"]}))
    found = load_foreign(path, tokenizer=clip.tokenizer)
    torch.testing.assert_close(features(found, clip)[0], features(clip, clip)[0], atol=2e-5, rtol=0)


def test_the_inverse_temperature(tmp_path: Path, clip: DualEncoder) -> None:
    stored = clip.logit_scale.item()
    found = load_foreign(write(tmp_path, clip, logit_scale_is_log=False), tokenizer=clip.tokenizer)
    assert found.logit_scale.exp().item() == pytest.approx(stored)
    names = with_names(logit_scale=None)
    path = write(tmp_path, clip, names=names, ignored=["logit_scale"], logit_scale=7.0)
    assert load_foreign(path, tokenizer=clip.tokenizer).logit_scale.exp().item() == pytest.approx(7)
    path = write(tmp_path, clip, names=with_names(logit_scale="ln_final.bias"), ignored=["logit_scale"])
    with pytest.raises(ValueError, match=r"one number, ln_final\.bias has 16"):
        load_foreign(path, tokenizer=clip.tokenizer)
    path = write(tmp_path, clip, names=with_names(logit_scale=["logit_scale"]))
    with pytest.raises(ValueError, match="names: logit_scale must be the name of a tensor"):
        load_foreign(path, tokenizer=clip.tokenizer)


def test_the_example_of_the_documentation_is_complete(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "foreign-checkpoints.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "mine.json"
    path.write_text(example)
    # All that is wrong with it is that there are no such weights.
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*mine\.safetensors"):
        load_foreign(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imagge": {}}, "unknown key 'imagge'; did you mean 'image'"),
        ({"image": 3}, "image must be an object, got 3"),
        ({"image": {**BYTES["image"], "head": 2}}, "unknown key 'image.head'; did you mean 'heads'"),
        ({"text": {**BYTES["text"], "heads": 4}}, "text: width must be a multiple of heads, got 6 and 4"),
        ({"text": WITHOUT_END}, "the key 'text.end' is missing"),
        ({"text": {**BYTES["text"], "pool": "last"}}, "pool must be one of end, first, mean, got 'last'"),
        ({"text": {**BYTES["text"], "activation": "swish"}}, "activation must be one of gelu, .*got 'swish'"),
        ({"text": {**BYTES["text"], "width": "6"}}, "text: "),
        ({"text": {**BYTES["text"], "vocab_size": 256}}, "the id 258 needs a text.vocab_size above it"),
        ({"text": {**BYTES["text"], "layers": 0}}, "layers must be >= 1, got 0"),
        ({"image": {**BYTES["image"], "image_size": 9}}, r"multiple of patch_size, got \(9, 9\) and 4"),
        ({"image": {**BYTES["image"], "channels": 2}}, "channels must be 1 or 3, got 2"),
        ({"preprocess": {"mena": 0}}, "unknown key 'preprocess.mena'; did you mean 'mean'"),
        ({"bytes": None}, "bytes must be an object, got None"),
        ({"weights": ""}, "it names no weights"),
    ],
)
def test_descriptions_are_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = random_model(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message) as raised:
        load_foreign(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_files_and_tokenizers_that_are_missing(tmp_path: Path, clip: DualEncoder) -> None:
    path = random_model(tmp_path)
    with pytest.raises(ValueError, match="expected either bytes, or a tokenizer"):
        load_foreign(path, tokenizer=clip.tokenizer)
    with pytest.raises(ValueError, match="expected either bytes, or a tokenizer"):
        load_foreign(write(tmp_path, clip))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*no\.pt"):
        load_foreign(path, weights=tmp_path / "no.pt")
    with pytest.raises(FileNotFoundError):
        load_foreign(tmp_path / "no.json")
    torch.save(load_file(tmp_path / "0.safetensors"), tmp_path / "same.pt")
    other = load_foreign(path, weights=tmp_path / "same.pt")
    assert other.model_id == load_foreign(path).model_id


def test_sincos_positions_by_hand() -> None:
    found = sincos_positions(3, 3)
    slow = 10_000 ** (-2 / 3)
    angles = torch.arange(3.0)
    expected = torch.stack([angles.sin(), angles.cos(), (angles * slow).sin()], dim=1)
    torch.testing.assert_close(found, expected)


def test_quick_gelu_by_hand() -> None:
    assert quick_gelu(torch.tensor(1.0)).item() == pytest.approx(1 / (1 + 2.718281828**-1.702))
    assert quick_gelu(torch.tensor(0.0)).item() == 0


def test_bytes_by_hand() -> None:
    tokenizer = ByteTokenizer(context_length=6, start=2, end=3, pad=0)
    assert tokenizer(["ab", "", "abcdefg"]).tolist() == [
        [2, 97, 98, 3, 0, 0],
        [2, 3, 0, 0, 0, 0],
        [2, 97, 98, 99, 100, 3],
    ]
    assert tokenizer("\u00fc").tolist() == [[2, 0xC3, 0xBC, 3, 0, 0]]
    # What would end the text, or be taken for padding, is left out.
    assert tokenizer("a\x03b\x00c").tolist() == [[2, 97, 98, 99, 3, 0]]
    without = ByteTokenizer(context_length=4, start=None, end=1, pad=0, offset=3)
    assert without(["\x00a", "abcdef"]).tolist() == [[3, 100, 1, 0], [100, 101, 102, 1]]


def test_a_text_longer_than_the_tower_reads_is_refused() -> None:
    config = PlainTextTower(
        vocab_size=9, context_length=4, end=1, width=4, layers=1, heads=1, mlp_width=4, positions="none"
    )
    tower = TextTower(config, 4, [])
    assert tower(torch.ones(1, 4, dtype=torch.int64)).shape == (1, 4)
    with pytest.raises(ValueError, match="the text has 5 columns, the model reads 4"):
        tower(torch.ones(1, 5, dtype=torch.int64))
