"""Slots in towers, and the texts of classes with slots: the same as loops over blocks written out."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

import prompt_oracle
import pytest
import torch
from prompt_models import TEXTS, VISION, WordTokenizer, make_model
from small_models import small_model

from clipkit import packed_texts
from clipkit.packed_texts import Packed, repeated
from clipkit.prompts import class_texts as class_texts_module
from clipkit.prompts.class_texts import class_texts
from clipkit.prompts.class_tokens import start_column, word_ids
from clipkit.prompts.parts import checked_depth, image_parts, text_parts
from clipkit.prompts.slots import image_slots, text_slots

NAMES = ("cat", "red fox", "fire truck", "foxglove")
SENTENCES = ["a photo of a cat.", "a photo of a red fox.", "a fire truck"]
TEMPLATE = "a photo of a {c}."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):  # type: ignore[no-untyped-def]
    return tmp_path_factory.mktemp("bert")


def vectors(*shape, seed=3):  # type: ignore[no-untyped-def]
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(dtype=torch.float64):  # type: ignore[no-untyped-def]
    return vectors(2, 3, 32, 32, seed=1).to(dtype)


def close(found, expected, tolerance=1e-10):  # type: ignore[no-untyped-def]
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_text_slots_are_replaced_columns(text, depth, folder):  # type: ignore[no-untyped-def]
    model = make_model(text=text, folder=folder).double()
    tokens = model.tokenizer(SENTENCES)
    each = torch.tensor([[1, 3], [2, 1], [0, 2]])
    for prompts in (
        [vectors(2, 16, seed=s) for s in range(depth)],
        [vectors(3, 2, 16) for _ in range(depth)],
    ):
        expected = prompt_oracle.text_features(model, tokens, prompts, each)
        with text_slots(model.model, prompts, each):
            close(model.model.encode_text(tokens), expected)
        shared = each[1]
        expected = prompt_oracle.text_features(model, tokens, prompts, shared.expand(3, -1))
        with text_slots(model.model, prompts, shared):
            close(model.model.encode_text(tokens), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mt5", "xlm-roberta", "m2m_100"])
def test_slots_in_transformers_towers_are_embeddings(kind, tmp_path):  # type: ignore[no-untyped-def]
    """Prompts before the first block are what transformers makes of embeddings that hold them."""
    from transformers import AutoConfig

    sizes = {
        "mt5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
        "xlm-roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        "m2m_100": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2},
    }
    AutoConfig.for_model(kind, vocab_size=500, **sizes[kind]).save_pretrained(tmp_path)
    text_cfg = {"context_length": 16, "hf_model_name": str(tmp_path), "hf_proj_type": "linear"}
    model = make_model(text_cfg=text_cfg)
    tower, prompts = model.model.text, vectors(2, 16).float()
    padding = tower.config.pad_token_id
    model._tokenizer = WordTokenizer(5, 6, padding)
    tokens = model.tokenizer(SENTENCES)
    embeddings = tower.transformer.get_input_embeddings()(tokens)
    embeddings = torch.cat([embeddings[:, :1], prompts.expand(3, -1, -1), embeddings[:, 3:]], dim=1)
    more = {}
    if kind == "xlm-roberta":
        more["position_ids"] = torch.where(tokens == padding, padding, padding + 1 + torch.arange(16))
    mask = (tokens != padding).long()
    output = tower.transformer(inputs_embeds=embeddings, attention_mask=mask, **more)
    with text_slots(model.model, [prompts], torch.tensor([1, 2])):
        close(model.encode_text(tokens), tower.proj(tower.pooler(output, mask)), 1e-6)
    assert len(text_parts(model.model).blocks) == 2


@torch.no_grad()
@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_image_slots_are_tokens_behind_the_patches(vision, depth):  # type: ignore[no-untyped-def]
    model = make_model(vision).double()
    width = image_parts(model.model).width
    prompts = [vectors(2, width, seed=s) for s in range(depth)]
    expected = prompt_oracle.image_features(model, pictures(), prompts)
    with image_slots(model.model, prompts):
        close(model.encode_image(pictures()), expected)
    if depth:
        assert (expected - model.encode_image(pictures())).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    ("vision", "text"), [("class token", "causal"), ("timm attention", "full"), ("attention", "bert")]
)
def test_a_tower_is_as_it_was_after_its_slots(vision, text, folder):  # type: ignore[no-untyped-def]
    model = make_model(vision, text, folder=folder)
    tokens, images = model.tokenizer(SENTENCES), pictures(torch.float32)
    before = model.encode_image(images), model.encode_text(tokens)
    width = image_parts(model.model).width

    def fail_inside():  # type: ignore[no-untyped-def]
        with ExitStack() as stack:
            stack.enter_context(image_slots(model.model, [torch.ones(2, width)] * 2))
            stack.enter_context(text_slots(model.model, [torch.ones(2, 16)] * 2, torch.tensor([1, 2])))
            assert not torch.equal(model.encode_image(images), before[0])
            assert not torch.equal(model.encode_text(tokens), before[1])
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    assert torch.equal(model.encode_image(images), before[0])
    assert torch.equal(model.encode_text(tokens), before[1])
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    assert not any(forward or before_it for forward, before_it in hooks)


@pytest.mark.parametrize("vision", ["class token", "timm class token"])
def test_checkpointed_towers_give_the_same_gradients(vision):  # type: ignore[no-untyped-def]
    model = make_model(vision)
    width = image_parts(model.model).width
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        prompts = [vectors(2, width, seed=s).float().requires_grad_() for s in range(2)]
        words = [vectors(2, 16, seed=s).float().requires_grad_() for s in range(2)]
        with image_slots(model.model, prompts), text_slots(model.model, words, torch.tensor([1, 2])):
            images = model.encode_image(pictures(torch.float32))
            texts = model.encode_text(model.tokenizer(SENTENCES[:2]))
        (images * texts).sum().backward()
        gradients.append([vector.grad for vector in (*prompts, *words)])
        flags = [getattr(m, "grad_checkpointing", enable) for m in model.modules()]
        assert set(flags) == {enable}
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)
        assert first.abs().max() > 0


def test_towers_without_slots_are_refused():  # type: ignore[no-untyped-def]
    resnet = make_model({"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    with pytest.raises(ValueError, match=r"a ModifiedResNet: use coop, cocoop, tip-adapter") as error:
        image_parts(resnet.model)
    assert "\n" not in str(error.value)
    conv = make_model({"timm_model_name": "resnet10t", "timm_proj": "linear", "image_size": 64})
    with pytest.raises(ValueError, match="this image tower is a ResNet"):
        image_parts(conv.model)
    rotary = {"timm_model_name": "eva02_tiny_patch14_224", "timm_proj": "linear", "image_size": 28}
    with pytest.raises(ValueError, match="this image tower is a Eva"):
        image_parts(make_model(rotary).model)


def test_prompts_that_do_not_fit_are_refused():  # type: ignore[no-untyped-def]
    model = make_model()
    text, image = text_parts(model.model), image_parts(model.model)
    assert (text.width, image.width, len(text.blocks), len(image.blocks)) == (16, 24, 3, 3)
    assert checked_depth(3, text, image) == 3
    with pytest.raises(ValueError, match="depth must be 1 to 3 for the towers of this model, got 4"):
        checked_depth(4, text)
    with pytest.raises(ValueError, match="the image tower has 3 blocks, got prompts for 4"):
        image_slots(model.model, [torch.zeros(2, 24)] * 4).__enter__()
    with pytest.raises(ValueError, match=r"text prompts must all be M x 16, got \[\(2, 24\)\]"):
        text_slots(model.model, [torch.zeros(2, 24)], torch.tensor([1, 2])).__enter__()


def words_only(start, end, pad, **layout):  # type: ignore[no-untyped-def]
    """A model whose tokenizer has a chosen layout."""
    model = make_model(text="full")
    model._tokenizer = WordTokenizer(start, end, pad, **layout)
    return model


def ids(model, *words):  # type: ignore[no-untyped-def]
    return [int(model.tokenizer([word])[0, start_column(model)]) for word in words]


@pytest.mark.parametrize(
    ("layout", "head", "tail"),
    [
        ((2, 3, 0), [2], [3, 0, 0, 0, 0, 0, 0]),
        ((None, 3, 0), [], [3, 0, 0, 0, 0, 0, 0, 0]),
        ((None, 1, 1), [], [1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_slots_that_are_words_by_hand(layout, head, tail):  # type: ignore[no-untyped-def]
    model = words_only(*layout)
    texts = class_texts(model, ["red fox"], TEMPLATE, 2)
    a, photo, of, red, fox, dot, cat = ids(model, "a", "photo", "of", "red", "fox", ".", "cat")
    assert texts.tokens[0].tolist() == [*head, a, photo, of, a, red, fox, dot, *tail, *[tail[-1]]]
    assert texts.positions.tolist() == [[len(head), len(head) + 1]]
    assert word_ids(model, "a photo of a cat").tolist() == [a, photo, of, a, cat]


@pytest.mark.parametrize(
    ("class_position", "first", "second"),
    [
        ("end", [1, 2, 3], [1, 2, 3]),
        ("middle", [1, 3, 4], [1, 4, 5]),
        ("front", [2, 3, 4], [3, 4, 5]),
    ],
)
@pytest.mark.parametrize("template", ["{c}.", "{c}"])
def test_inserted_slots_by_hand(class_position, first, second, template):  # type: ignore[no-untyped-def]
    model = words_only(2, 3, 0)
    texts = class_texts(model, ["cat", "red fox"], template, 3, insert=True, class_position=class_position)
    assert texts.positions.tolist() == [first, second]
    cat, red, fox, dot, filler = ids(model, "cat", "red", "fox", ".", "a")
    ending = [dot, 3] if template == "{c}." else [3]
    for row, slots, words in ((0, first, [cat]), (1, second, [red, fox])):
        found = texts.tokens[row].tolist()
        assert [found[column] for column in slots] == [filler] * 3
        rest = [token for column, token in enumerate(found) if column not in slots]
        assert rest == [2, *words, *ending, *[0] * (13 - 1 - len(words) - len(ending))]


def test_a_sign_that_joins_the_name_belongs_to_it():  # type: ignore[no-untyped-def]
    """open_clip's tokenizer makes one token of "?." and cuts no other."""
    model = make_model()
    texts = class_texts(model, ["cat", "cat?"], "{c}.", 2, insert=True, class_position="front")
    assert texts.positions.tolist() == [[2, 3], [2, 3]]


def test_a_class_token_at_the_end_stays_there():  # type: ignore[no-untyped-def]
    model = words_only(2, 3, 0, last=5)
    texts = class_texts(model, ["cat"], "{c}", 2, insert=True)
    assert texts.tokens[0].tolist() == [2, *ids(model, "a", "a", "cat"), 3, *[0] * 10, 5]


@pytest.mark.parametrize("layout", [(2, 3, 0), (None, 3, 0), (None, 1, 1), (2, 1, 1)])
def test_the_longest_name_that_fits(layout):  # type: ignore[no-untyped-def]
    model = words_only(*layout)
    room = 16 - (layout[0] is not None) - 1 - 3
    fitting = " ".join(["word"] * room)
    texts = class_texts(model, ["cat", fitting], "{c}", 3, insert=True)
    assert texts.tokens[1, -1] == layout[1]
    with pytest.raises(ValueError, match=r"the text of class 'word.*' with 3 prompts is longer than the 16"):
        class_texts(model, ["cat", f"{fitting} word"], "{c}", 3, insert=True)


def test_templates_and_tokenizers_without_room_for_slots():  # type: ignore[no-untyped-def]
    model = make_model()
    with pytest.raises(ValueError, match=r"needs \{c\} where the class name goes, got 'a photo'"):
        class_texts(model, NAMES, "a photo", 1)
    with pytest.raises(ValueError, match=r"'a \{c\}' has 1 tokens before the class name, fewer than 2"):
        class_texts(model, NAMES, "a {c}", 2)
    with pytest.raises(ValueError, match="this one pads on the left: use tip-adapter"):
        class_texts(words_only(2, 3, 0, left=True), NAMES, TEMPLATE, 2)
    assert class_texts(words_only(2, 3, 0, left=True), NAMES, TEMPLATE, 0).positions.shape == (4, 0)


def test_packed_texts_are_the_plain_ones(monkeypatch):  # type: ignore[no-untyped-def]
    """Features and gradients, in one batch and in several that are computed again in the backward pass."""
    model = make_model()
    names = [f"{size} {name}" for size in ("small", "large", "very old") for name in NAMES]
    target = vectors(len(names), 20, seed=9).float()
    results = []
    for tokens_per_batch, is_packed in ((4096, True), (4096, False), (40, True), (40, False)):
        monkeypatch.setattr(class_texts_module, "TOKENS_PER_BATCH", tokens_per_batch)
        texts = class_texts(model, names, TEMPLATE, 2)
        assert len(texts.packed) == 1 if tokens_per_batch == 4096 else len(texts.packed) > 1
        if not is_packed:
            texts = dataclasses.replace(texts, packed=())
        prompts = [vectors(2, 16, seed=s).float().requires_grad_() for s in range(2)]
        features = texts.encode(model, prompts)
        (features * target).sum().backward()
        results.append((features.detach(), *(vector.grad for vector in prompts)))
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", TEXTS)
def test_prompts_for_each_image(text, folder, monkeypatch):  # type: ignore[no-untyped-def]
    """As image by image, however few tokens are encoded at once; gradients too."""
    model = make_model(text=text, folder=folder)
    monkeypatch.setattr(packed_texts, "ROW_TOKENS", 12)
    first = vectors(3, 2, 16).float()
    target = vectors(3, len(NAMES), 20, seed=9).float()
    results = []
    for tokens_per_batch in (None, 4096, 60, 1):
        monkeypatch.setattr(class_texts_module, "TOKENS_PER_BATCH", tokens_per_batch or 4096)
        texts = class_texts(model, NAMES, "{c}.", 2, insert=True)
        assert all(len(rows.tokens) > 1 for rows in texts.packed if tokens_per_batch == 4096)
        prompts = first.clone().requires_grad_()
        if tokens_per_batch is None:
            features = torch.stack([texts.encode(model, [own]) for own in prompts])
        else:
            features = texts.encode_for_each(model, prompts)
        (features * target).sum().backward()
        results.append((features.detach(), prompts.grad))
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_more_tokens_at_once_than_stated(monkeypatch):  # type: ignore[no-untyped-def]
    model = make_model()
    sizes = []
    embedding = text_parts(model.model).entry
    embedding.register_forward_hook(lambda _, args, __: sizes.append(args[0].numel()))
    texts = class_texts(model, NAMES, "{c}.", 2, insert=True)
    sizes.clear()
    monkeypatch.setattr(class_texts_module, "TOKENS_PER_BATCH", 60)
    with torch.no_grad():
        texts.encode_for_each(model, torch.zeros(9, 2, 16))
    assert len(sizes) >= 3
    assert max(sizes) <= 60


def test_repeated_rows_by_hand():  # type: ignore[no-untyped-def]
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    mask = torch.arange(18.0).reshape(2, 3, 3)
    rows = Packed(tokens, tokens + 10, mask, torch.tensor([2, 0, 1]), torch.tensor([[0, 1], [0, 2], [1, 2]]))
    assert repeated(rows, 1) is rows
    twice = repeated(rows, 2)
    assert torch.equal(twice.tokens, torch.cat([tokens, tokens]))
    assert torch.equal(twice.positions, torch.cat([tokens, tokens]) + 10)
    assert torch.equal(twice.mask, torch.cat([mask, mask]))
    assert twice.texts.tolist() == [2, 0, 1, 5, 3, 4]
    assert twice.last.tolist() == [[0, 1], [0, 2], [1, 2], [2, 1], [2, 2], [3, 2]]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_towers_in_half_precision_take_prompts_in_full(dtype):  # type: ignore[no-untyped-def]
    full, half = make_model(), make_model().to(dtype)
    prompts = [vectors(2, 24, seed=s).float() for s in range(2)]
    words = [vectors(2, 16, seed=s).float() for s in range(2)]
    found = []
    for model in (full, half):
        with image_slots(model.model, prompts):
            images = model.encode_image(pictures(model.logit_scale.dtype))
        texts = class_texts(model, NAMES, TEMPLATE, 2).encode(model, words)
        assert texts.dtype == torch.float32
        found.append((torch.nn.functional.normalize(images.float(), dim=-1), texts))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0.05)


def test_prompts_that_are_not_those_of_the_slots_are_refused() -> None:
    model = small_model()
    texts = class_texts(model, ["cat", "dog"], "a photo of a {c}.", 2)
    for shape in ((3, 16), (1, 16), (3, 2, 16)):
        with pytest.raises(ValueError, match="2 classes have 2 slots each, got prompts of shape"):
            texts.encode(model, [torch.zeros(shape)])
    with pytest.raises(ValueError, match="at least one class"):
        class_texts(model, [], "a photo of a {c}.", 2)
