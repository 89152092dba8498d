"""The text tower of a CPU: the features of open_clip's own forward, in fp64, over all columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from small_models import small_model
from torch import Tensor, nn

from clipkit.devices import has_bf16_instructions
from clipkit.onednn_text import OneDnnText, can_run

VISION = {"image_size": 16, "patch_size": 16, "width": 32, "layers": 1, "head_width": 32}
END = 90
CONTEXT = 20

pytestmark = pytest.mark.skipif(not can_run(small_model().model), reason="needs oneDNN on an x86 CPU")


def model_of(kind: type[nn.Module] = CLIP, quick_gelu: bool = False, **text: Any) -> Any:
    """Weights large enough for activations and attention to be far from linear."""
    text_cfg = {"context_length": CONTEXT, "vocab_size": 91, "width": 32, "heads": 4, "layers": 3, **text}
    torch.manual_seed(0)
    model = kind(24, dict(VISION), text_cfg, quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("visual"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def texts(lengths: list[int]) -> Tensor:
    """Texts of so many tokens, the last of which is the end, that begin alike; padded with zeros."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.zeros(len(lengths), CONTEXT, dtype=torch.int64)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.randint(3, (length,), generator=generator)
        row[length - 1] = END
    return rows


def unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=-1)


def expected(model: Any, text: Tensor) -> Tensor:
    features = unit(model.double().encode_text(text).detach())
    model.float()
    return features


KINDS = {
    "gelu": model_of(),
    "custom text": model_of(CustomTextCLIP),
    "wide": model_of(width=64, heads=2, layers=2, mlp_ratio=2.0),
    "one layer": model_of(layers=1),
    "quick gelu": model_of(quick_gelu=True),
    "tanh gelu": model_of(act_kwargs={"approximate": "tanh"}),
    "layer scale": model_of(ls_init_value=0.5),
    "end by id": model_of(CustomTextCLIP, pool_type="eos", eos_id=END),
    "projection with bias": model_of(CustomTextCLIP, proj_bias=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[7], [1], [CONTEXT], [3, CONTEXT, 1, 8, 8, 2], [5] * 40 + [12] * 9])
def test_features_are_the_plain_towers(kind: str, lengths: list[int]) -> None:
    model, text = KINDS[kind], texts(lengths)
    found = OneDnnText(model)(text)
    assert found.dtype == torch.float32
    torch.testing.assert_close(unit(found), expected(model, text), rtol=0, atol=2e-6)


def test_equal_texts_and_the_order_of_texts() -> None:
    tower, text = OneDnnText(KINDS["gelu"]), texts([4, 9, 6, 11, 2])
    features = tower(text)
    order = torch.tensor([3, 0, 0, 4, 2, 1])
    torch.testing.assert_close(tower(text[order]), features[order], rtol=0, atol=1e-5)


def test_it_keeps_the_weights_it_was_made_from() -> None:
    model, text = model_of(quick_gelu=True), texts([6, 3])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    tower = OneDnnText(model)
    first = tower(text)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name])
        model.transformer.resblocks[0].mlp.c_fc.weight.zero_()
    torch.testing.assert_close(tower(text), first, rtol=0, atol=0)


@pytest.mark.skipif(not has_bf16_instructions(), reason="needs a CPU with bf16")
def test_bf16_is_as_near_as_autocast() -> None:
    model, text = KINDS["gelu"], texts([3, 12, 5, 9])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = unit(model.encode_text(text))
    found = unit(OneDnnText(model, torch.bfloat16)(text))
    right = expected(model, text)
    assert (found - right).norm() < 2 * (plain - right).norm()
    assert not torch.equal(found, unit(OneDnnText(model)(text)))


def without_plain_attention() -> Any:
    class Attention(nn.MultiheadAttention):
        pass

    model = model_of()
    model.transformer.resblocks[1].attn.__class__ = Attention
    return model


def with_a_hook() -> Any:
    model = model_of()
    model.transformer.resblocks[1].mlp.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    "model",
    [
        model_of(CustomTextCLIP, no_causal_mask=True),
        model_of(CustomTextCLIP, embed_cls=True),
        model_of(CustomTextCLIP, block_type="custom", qk_norm=True),
        model_of().double(),
        without_plain_attention(),
        with_a_hook(),
    ],
    ids=["not causal", "class token", "other blocks", "fp64", "other attention", "hook"],
)
def test_what_it_cannot_run_is_refused(model: Any) -> None:
    assert not can_run(model)
    with pytest.raises(ValueError, match="causal one of open_clip"):
        OneDnnText(model)


def test_fp16_is_refused() -> None:
    assert not can_run(KINDS["gelu"], torch.float16)
