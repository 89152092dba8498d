"""Every method of prompts: its forward written out, its number of parameters, its loss, its training."""

from __future__ import annotations

import dataclasses
import math

import prompt_oracle
import pytest
import torch
from prompt_models import MODELS, make_model

from clipkit.architecture import build, named_config
from clipkit.dual_encoder import DualEncoder
from clipkit.evaluation import class_features
from clipkit.heads.base import frozen_text_features
from clipkit.heads.features import cosine_logits
from clipkit.heads.teacher import Teacher
from clipkit.preprocess import PreprocessConfig
from clipkit.prompts import class_texts as class_texts_module
from clipkit.prompts import cocoop as cocoop_module
from clipkit.prompts.cocoop import Cocoop, CocoopConfig
from clipkit.prompts.coop import Coop, CoopConfig
from clipkit.prompts.ivlp import Ivlp, IvlpConfig
from clipkit.prompts.maple import Maple, MapleConfig
from clipkit.prompts.promptkd import PromptKd, PromptKdConfig, distillation_loss
from clipkit.prompts.promptsrc import (
    PromptSrc,
    PromptSrcConfig,
    epoch_weights,
    score_divergence,
    template_features,
)
from clipkit.prompts.vpt import Vpt, VptConfig
from clipkit.templates import load_templates

NAMES = ("cat", "red fox", "fire truck", "foxglove")
METHODS = {
    "coop": (Coop, CoopConfig(num_prompts=4)),
    "coop middle": (Coop, CoopConfig(num_prompts=3, class_position="middle")),
    "coop specific": (Coop, CoopConfig(num_prompts=2, class_position="front", class_specific=True)),
    "cocoop": (Cocoop, CocoopConfig()),
    "vpt": (Vpt, VptConfig(num_prompts=3, depth=2)),
    "ivlp": (Ivlp, IvlpConfig(num_text_prompts=2, num_image_prompts=3, depth=3)),
    "maple": (Maple, MapleConfig(depth=3)),
    "maple shared": (Maple, MapleConfig(num_prompts=5, depth=3, shared_coupling=True)),
    "promptsrc": (PromptSrc, PromptSrcConfig(depth=2)),
    "promptkd": (PromptKd, PromptKdConfig(depth=3)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):  # type: ignore[no-untyped-def]
    return tmp_path_factory.mktemp("bert")


@pytest.fixture(scope="module", params=MODELS)
def model(request, folder):  # type: ignore[no-untyped-def]
    vision, text = MODELS[request.param]
    return make_model(vision, text, folder=folder, embed_dim=64)


def make_head(name, model):  # type: ignore[no-untyped-def]
    method, config = METHODS[name]
    torch.manual_seed(2)
    head = method(model, config)
    head.prepare(model, NAMES, Teacher(model) if head.needs_teacher else None)
    return head


def batch_of(dtype=torch.float32, size=4):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype)
    return {"image": images, "label": torch.arange(size) % len(NAMES)}


def unit(features):  # type: ignore[no-untyped-def]
    return features / features.square().sum(-1, keepdim=True).sqrt()


# The forward of each method, written out on sequences that are put together by hand.


def inserted(model, vectors, class_position):  # type: ignore[no-untyped-def]
    """Features of "name." with vectors (C, M, width) around it: tokens and columns by counting."""
    rows, columns = [], []
    count = vectors.shape[1]
    before = {"end": count, "middle": count // 2, "front": 0}[class_position]
    for name, length in zip(NAMES, (1, 2, 2, 2), strict=True):
        tokens = model.tokenizer([f"{name}."])[0].tolist()
        words = tokens[1 : 1 + length]
        row = [tokens[0], *[320] * before, *words, *[320] * (count - before), *tokens[1 + length :]]
        rows.append(row[: len(tokens)])
        after = range(1 + before + length, 1 + length + count)
        columns.append([*range(1, 1 + before), *after])
    return prompt_oracle.text_features(model, torch.tensor(rows), [vectors], torch.tensor(columns))


def written_out(name, head, model, images):  # type: ignore[no-untyped-def]
    """(image features, text features), unit vectors; text features (B, C, D) where images decide them."""
    plain = model.tokenizer([f"a photo of a {name}." for name in NAMES])
    picture, words, vectors = [], None, None
    if name.startswith("coop"):
        vectors = head.context if head.context.ndim == 3 else head.context.expand(4, -1, -1)
    elif name == "cocoop":
        first, _, second = head.meta_net
        hidden = (unit(model.encode_image(images)) @ first.weight.T + first.bias).clamp(min=0)
        shift = hidden @ second.weight.T + second.bias
        each = [inserted(model, (head.context + row).expand(4, -1, -1), "end") for row in shift]
        return unit(model.encode_image(images)), unit(torch.stack(each))
    elif name == "vpt":
        picture, words = list(head.prompts), []
    elif name in ("ivlp", "promptsrc"):
        picture, words = list(head.of_image), list(head.of_text)
    elif name == "maple":
        words = list(head.prompts)
        layers = [head.first_coupling, *head.couplings]
        picture = [p @ layer.weight.T + layer.bias for p, layer in zip(words, layers, strict=True)]
    image_features = unit(prompt_oracle.image_features(model, images, picture))
    if vectors is not None:
        text_features = inserted(model, vectors, head.config.class_position)
    else:
        columns = torch.arange(1, 1 + len(words[0]) if words else 1).expand(4, -1)
        text_features = prompt_oracle.text_features(model, plain, words, columns)
    return image_features, unit(text_features)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("maple shared", "promptkd")])
@pytest.mark.parametrize("vision", ["class token", "average", "attention"])
def test_the_forward_of_each_method(name, vision):  # type: ignore[no-untyped-def]
    model = make_model(vision).double()
    head = make_head(name, model).double()
    images = batch_of(torch.float64)["image"]
    expected_images, expected_texts = written_out(name, head, model, images)
    texts = head.class_texts(model, NAMES)
    image_features = head.image_features(model, images)
    torch.testing.assert_close(image_features, expected_images, rtol=0, atol=1e-10)
    if not head.is_conditional:
        torch.testing.assert_close(head.text_features(model, texts), expected_texts, rtol=0, atol=1e-10)
    cosines = (expected_images[:, None] * expected_texts).sum(-1)
    found = head.logits(model, image_features, texts)
    torch.testing.assert_close(found, model.logit_scale.exp() * cosines, rtol=0, atol=1e-8)


@torch.no_grad()
def test_the_forward_of_promptkd():  # type: ignore[no-untyped-def]
    model, other = make_model().double(), make_model(seed=4, embed_dim=28).double()
    head = PromptKd(model, PromptKdConfig(depth=3)).double()
    head.prepare(model, NAMES, Teacher(other))
    head.double().eval()
    images = batch_of(torch.float64)["image"]
    first, norm, _, second = head.projector
    norm.running_mean.fill_(0.25)
    norm.running_var.fill_(2.0)
    raw = prompt_oracle.image_features(model, images, list(head.prompts))
    hidden = (raw @ first.weight.T + first.bias - 0.25) / math.sqrt(2 + 1e-5)
    projected = unit(hidden.clamp(min=0) @ second.weight.T + second.bias)
    torch.testing.assert_close(head.image_features(model, images), projected, rtol=0, atol=1e-10)
    classes = unit(other.encode_text(other.tokenizer([f"a photo of a {name}." for name in NAMES])))
    found = head.logits(model, projected, head.class_texts(model, NAMES[::-1]))
    expected = model.logit_scale.exp() * projected @ classes.flip(0).T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # the stored features are fp32


# Parameters.


@pytest.fixture(scope="module")
def vit_b_16():  # type: ignore[no-untyped-def]
    """The architecture with weights that are never initialised, nor read but for a few rows."""
    config, _ = named_config("ViT-B-16")
    with torch.device("meta"):
        towers = build(config)
    towers = towers.to_empty(device="cpu")
    return DualEncoder(towers, config, PreprocessConfig.from_dict({"size": 224})).requires_grad_(False)


@pytest.mark.parametrize(
    ("method", "config", "expected"),
    [
        (Maple, MapleConfig(), 9 * (512 * 768 + 768) + 9 * 2 * 512),
        (Maple, MapleConfig(depth=1), 512 * 768 + 768 + 2 * 512),
        (Maple, MapleConfig(shared_coupling=True), 2 * (512 * 768 + 768) + 9 * 2 * 512),
        (Ivlp, IvlpConfig(), 9 * 2 * (512 + 768)),
        (PromptSrc, PromptSrcConfig(), 9 * 4 * (512 + 768)),
        (Vpt, VptConfig(), 9 * 8 * 768),
        (Vpt, VptConfig(depth=1), 8 * 768),
        (Coop, CoopConfig(), 16 * 512),
        (Coop, CoopConfig(class_specific=True, class_names=NAMES), 4 * 16 * 512),
        (Cocoop, CocoopConfig(), 4 * 512 + (512 * 32 + 32) + (32 * 512 + 512)),
    ],
)
def test_numbers_of_parameters(method, config, expected, vit_b_16):  # type: ignore[no-untyped-def]
    head = method(vit_b_16, config)
    assert sum(parameter.numel() for parameter in head.parameters()) == expected
    assert all(parameter.dtype == torch.float32 for parameter in head.parameters())
    if (method, config) == (Maple, MapleConfig()):
        assert expected == 3_555_072


def test_number_of_parameters_of_promptkd(vit_b_16):  # type: ignore[no-untyped-def]
    head = PromptKd(vit_b_16, PromptKdConfig(class_names=NAMES, teacher_width=768))
    projector = (512 * 768 + 768) + 2 * 768 + (768 * 768 + 768)
    assert sum(parameter.numel() for parameter in head.parameters()) == 9 * 4 * 768 + projector


# Training.


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("coop middle", "maple shared")])
def test_every_method_trains_on_every_model(name, model):  # type: ignore[no-untyped-def]
    """The loss falls in a few steps, in fp32 and bf16; gradients reach all parameters and no tower."""
    for precision in (torch.float32, torch.bfloat16):
        head = make_head(name, model).train()
        texts = head.class_texts(model, NAMES)
        optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
        losses = []
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
                loss = head.loss(model, batch_of(), texts)
            assert loss.dtype == torch.float32
            optimizer.zero_grad()
            loss.backward()
            lost = [key for key, p in head.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
            assert lost == []
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_heads_stay_in_full_precision_beside_towers_in_half(name):  # type: ignore[no-untyped-def]
    losses = []
    for dtype in (torch.float32, torch.float16):
        model = make_model(embed_dim=64).to(dtype)
        head = make_head(name, model)
        texts = head.class_texts(model, NAMES)
        loss = head.loss(model, batch_of(dtype), texts)
        loss.backward()
        assert loss.dtype == torch.float32
        assert {parameter.grad.dtype for parameter in head.parameters()} == {torch.float32}
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_image_prompts_on_a_resnet_are_refused():  # type: ignore[no-untyped-def]
    resnet = make_model({"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    for name in ("vpt", "ivlp", "maple", "promptsrc", "promptkd"):
        method, config = METHODS[name]
        with pytest.raises(ValueError, match=r"^image prompts need .* use coop, cocoop, tip-adapter"):
            method(resnet, config)
    for name in ("coop", "cocoop"):
        head = make_head(name, resnet)
        batch = {"image": torch.randn(2, 3, 64, 64), "label": torch.tensor([0, 1])}
        assert head.loss(resnet, batch, head.class_texts(resnet, NAMES)) > 0


def test_a_model_on_another_device_gets_its_cached_features():  # type: ignore[no-untyped-def]
    """`meta` stands for an accelerator."""
    model = make_model()
    head = make_head("vpt", model)
    texts = head.class_texts(model, NAMES)
    with torch.inference_mode():
        assert head.text_features(model, texts).device.type == "cpu"
    head.loss(model, batch_of(), texts).backward()
    model.to("meta")
    assert frozen_text_features(model, texts).device.type == "meta"


# CoOp and CoCoOp.


def test_context_begins_as_words():  # type: ignore[no-untyped-def]
    model = make_model()
    ids = model.tokenizer(["a photo of a"])[0, 1:5]
    words = model.model.token_embedding.weight[ids]
    assert torch.equal(Coop(model, CoopConfig(num_prompts=4, init="a photo of a")).context, words)
    assert torch.equal(Cocoop(model, CocoopConfig()).context, words)
    own = Coop(model, CoopConfig(num_prompts=4, init="a photo of a", class_specific=True))
    own.prepare(model, NAMES)
    assert torch.equal(own.context, words.expand(4, -1, -1))
    stored = Coop(model, own.config)
    stored.load_state_dict(own.state_dict())
    assert stored.config.class_names == NAMES
    assert torch.equal(Maple(model, MapleConfig(depth=2)).prompts[0], words[:2])


@pytest.mark.parametrize(
    ("count", "init", "found"), [(4, "a photo of", 3), (3, "a photo of a", 4), (2, " ", 0)]
)
def test_words_of_another_number_are_refused(count, init, found):  # type: ignore[no-untyped-def]
    message = (
        rf"init must be num_prompts = {count} tokens, {init!r} is {found}: .* set num_prompts to {found}"
    )
    with pytest.raises(ValueError, match=message):
        Coop(make_model(), CoopConfig(num_prompts=count, init=init))


def test_class_specific_vectors_follow_their_class():  # type: ignore[no-untyped-def]
    model = make_model()
    head = make_head("coop specific", model)
    features = head.text_features(model, head.class_texts(model, NAMES))
    some = head.text_features(model, head.class_texts(model, (NAMES[2], NAMES[0])))
    torch.testing.assert_close(some, features[[2, 0]])
    with pytest.raises(ValueError, match="there are none for 'dog': name classes that were trained"):
        head.class_texts(model, ("cat", "dog"))
    with pytest.raises(ValueError, match="set class_specific, or leave them out"):
        CoopConfig(class_names=NAMES)


def test_cocoop_in_chunks_is_cocoop_at_once(monkeypatch):  # type: ignore[no-untyped-def]
    model = make_model()
    results = []
    for features_at_once, tokens_per_batch in ((2**24, 4096), (2 * 4 * 20, 4096), (1, 30)):
        monkeypatch.setattr(cocoop_module, "FEATURES_AT_ONCE", features_at_once)
        monkeypatch.setattr(class_texts_module, "TOKENS_PER_BATCH", tokens_per_batch)
        head = make_head("cocoop", model)
        loss = head.loss(model, batch_of(size=5), head.class_texts(model, NAMES))
        loss.backward()
        results.append((loss.detach(), *(parameter.grad for parameter in head.parameters())))
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_cocoop_has_no_features_of_classes_alone():  # type: ignore[no-untyped-def]
    model = make_model()
    head = make_head("cocoop", model)
    with pytest.raises(ValueError, match="ask for logits"):
        head.text_features(model, head.class_texts(model, NAMES))


# PromptSRC.


def test_score_divergence_by_hand():  # type: ignore[no-untyped-def]
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    frozen = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    expected = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 4
    assert float(score_divergence(logits, frozen)) == pytest.approx(expected, rel=1e-6)
    assert float(score_divergence(logits + 5, frozen - 2)) == pytest.approx(expected, rel=1e-5)
    assert float(score_divergence(frozen, frozen)) == pytest.approx(0, abs=1e-7)


def test_the_loss_of_promptsrc_by_hand():  # type: ignore[no-untyped-def]
    """Each part alone, read off the weights, and all together."""
    model, batch = make_model(), batch_of()
    head = make_head("promptsrc", model)
    texts = head.class_texts(model, NAMES)
    images, classes = head.image_features(model, batch["image"]), head.text_features(model, texts)
    logits = 1 / 0.07 * images @ classes.T
    frozen_images = unit(model.encode_image(batch["image"]))
    frozen_classes = class_features(model, NAMES, load_templates("openai"), device=torch.device("cpu"))
    frozen_logits = 1 / 0.07 * frozen_images @ frozen_classes.T
    chosen = logits.log_softmax(1)[torch.arange(4), batch["label"]]
    p, q = frozen_logits.softmax(1), logits.softmax(1)
    parts = {
        "cross-entropy": -chosen.mean(),
        "text_weight": (classes - frozen_classes).abs().mean(),
        "image_weight": (images - frozen_images).abs().mean(),
        "logits_weight": (p * (p / q).log()).sum() / 16,
    }
    torch.testing.assert_close(template_features(model, texts), frozen_classes)
    none = {"text_weight": 0.0, "image_weight": 0.0, "logits_weight": 0.0}
    for weights, expected in (
        (none, parts["cross-entropy"]),
        ({**none, "text_weight": 2.0}, parts["cross-entropy"] + 2 * parts["text_weight"]),
        ({**none, "image_weight": 2.0}, parts["cross-entropy"] + 2 * parts["image_weight"]),
        ({**none, "logits_weight": 2.0}, parts["cross-entropy"] + 2 * parts["logits_weight"]),
        (
            {},
            parts["cross-entropy"] + 25 * parts["text_weight"] + 10 * parts["image_weight"]
            + parts["logits_weight"],
        ),
    ):  # fmt: skip
        head.config = PromptSrcConfig(depth=2, **weights)
        torch.testing.assert_close(head.loss(model, batch, texts), expected, rtol=1e-4, atol=1e-6)


def test_epoch_weights_by_hand():  # type: ignore[no-untyped-def]
    weights = epoch_weights(3, 2.0, 1.0)
    side = math.exp(-0.5)
    expected = torch.tensor([side, 1.0, side], dtype=torch.float64) / (1 + 2 * side)
    torch.testing.assert_close(weights, expected)
    slow = [math.exp(-((epoch - 15) ** 2) / 2) for epoch in range(1, 21)]
    slow = torch.tensor([weight / math.fsum(slow) for weight in slow], dtype=torch.float64)
    torch.testing.assert_close(epoch_weights(20, 15.0, 1.0), slow)
    far = epoch_weights(3, 400.0, 0.1)
    assert float(far.sum()) == pytest.approx(1)
    assert float(far[-1]) == pytest.approx(1)
    with pytest.raises(ValueError, match="average_std must be > 0, got 0"):
        PromptSrcConfig(average_std=0)


def trained(head, values, num_epochs, first=1):  # type: ignore[no-untyped-def]
    for epoch, value in enumerate(values, start=first):
        for parameter in head.parameters():
            torch.nn.init.constant_(parameter, value)
        head.end_epoch(epoch, num_epochs)


def test_prompts_are_averaged_over_epochs():  # type: ignore[no-untyped-def]
    model = make_model()
    config = PromptSrcConfig(depth=2, average_mean=2.0, average_std=1.0)
    whole, stopped, resumed, short = (PromptSrc(model, config) for _ in range(4))
    assert whole.training_tensors() == {}
    names = set(whole.state_dict())
    trained(whole, (1.0, 2.0, 4.0), 3)
    assert set(whole.state_dict()) == names
    whole.finish()
    side = math.exp(-0.5)
    expected = (side * 1 + 2 + side * 4) / (1 + 2 * side)
    for parameter in whole.parameters():
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected))
    assert whole.training_tensors() == {}
    assert set(whole.state_dict()) == names

    trained(stopped, (1.0, 2.0), 3)
    saved = {name: tensor.clone() for name, tensor in stopped.training_tensors().items()}
    resumed.load_state_dict(stopped.state_dict())
    resumed.load_training_tensors(saved)
    trained(resumed, (4.0,), 3, first=3)
    resumed.finish()
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))

    short.load_training_tensors({})
    trained(short, (1.0, 2.0), 3)
    short.finish()
    early = (side * 1 + 2) / (side + 1)
    torch.testing.assert_close(short.of_text[0].detach(), torch.full_like(short.of_text[0], early))


def test_without_an_epoch_prompts_stay():  # type: ignore[no-untyped-def]
    head = make_head("promptsrc", make_model())
    before = [parameter.detach().clone() for parameter in head.parameters()]
    head.finish()
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), before, strict=True))


# PromptKD.


def test_distillation_by_hand():  # type: ignore[no-untyped-def]
    logits = torch.tensor([[0.0, 0.0], [2 * math.log(3), 0.0]])
    teacher = torch.tensor([[2 * math.log(3), 0.0], [2 * math.log(3), 0.0]])
    at_two = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) * 4 / 4
    assert float(distillation_loss(logits, teacher, 2.0)) == pytest.approx(at_two, rel=1e-6)
    at_one = (0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)) / 4
    assert float(distillation_loss(logits, teacher, 1.0)) == pytest.approx(at_one, rel=1e-6)


def test_promptkd_learns_from_an_adapted_teacher():  # type: ignore[no-untyped-def]
    model, other, batch = make_model(), make_model("average", seed=4, embed_dim=28), batch_of()
    teacher = Teacher(other, make_head("maple", other))
    head = PromptKd(model, PromptKdConfig(depth=2))
    head.prepare(model, NAMES, teacher)
    texts = head.class_texts(model, NAMES[1:])
    adapted = teacher.head
    images = adapted.image_features(other, batch["image"])
    known = adapted.logits(other, images, adapted.class_texts(other, NAMES[1:]))
    head.eval()
    unlabelled = {"image": batch["image"]}
    loss = head.loss(model, unlabelled, texts)
    torch.testing.assert_close(loss, head.loss(model, {**unlabelled, "teacher_logits": known}, texts))
    logits = head.logits(model, head.image_features(model, batch["image"]), texts)
    torch.testing.assert_close(loss, 1000 * distillation_loss(logits, known, 1.0))
    assert head.is_transductive
    assert not any("teacher." in name or "model" in name for name in head.state_dict())
    head.finish()
    with pytest.raises(ValueError, match="call prepare, or bring teacher_logits"):
        head.loss(model, unlabelled, texts)


def test_a_stored_promptkd_head_needs_no_teacher():  # type: ignore[no-untyped-def]
    model = make_model()
    head = make_head("promptkd", model)
    assert (head.config.class_names, head.config.teacher_width) == (NAMES, 20)
    again = PromptKd(model, PromptKdConfig(**dataclasses.asdict(head.config)))
    again.load_state_dict(head.state_dict())
    images = batch_of()["image"]
    results = []
    for one in (head.eval(), again.eval()):
        texts = one.class_texts(model, NAMES[:3])
        results.append(one.logits(model, one.image_features(model, images), texts))
    assert torch.equal(*results)
    with pytest.raises(
        ValueError, match="for 'dog': name classes that it was trained with, or train it again"
    ):
        again.class_texts(model, ("cat", "dog"))


def test_what_promptkd_cannot_learn_from():  # type: ignore[no-untyped-def]
    model = make_model()
    head = PromptKd(model, PromptKdConfig(depth=2))
    with pytest.raises(ValueError, match="promptkd learns from another model: name a teacher"):
        head.prepare(model, NAMES)
    large = make_model({"image_size": 64, "patch_size": 16, "layers": 1, "width": 24, "head_width": 12})
    with pytest.raises(ValueError, match="must read the same images, got"):
        head.prepare(model, NAMES, Teacher(large))
    with pytest.raises(ValueError, match="a teacher needs features of classes, which cocoop does not have"):
        Teacher(model, make_head("cocoop", model))
    head = make_head("promptkd", model).train()
    with pytest.raises(ValueError, match="at least 2 images at a time, got 1"):
        head.image_features(model, batch_of(size=1)["image"])


def test_scores_are_full_under_autocast():  # type: ignore[no-untyped-def]
    model = make_model()
    images, texts = unit(torch.randn(3, 20)), unit(torch.randn(4, 20))
    expected = cosine_logits(model, images, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cosine_logits(model, images, texts), expected)
    each = cosine_logits(model, images, texts.expand(3, -1, -1))
    torch.testing.assert_close(each, expected)
