"""An open_clip text tower on a CPU with less work: same weights, same features.

Weights are laid out once as oneDNN's kernels want them, where torch lays them out in every call; activation
and residual sum are part of the matrix products; linear layers see no padding, and what several texts begin
with once (`clipkit.beginnings`); of the last block, only what the pooled tokens need is computed.

The operators are those to which `torch.compile` lowers a frozen linear layer; here they need no compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.beginnings import Int64s, beginnings
from clipkit.devices import has_bf16_instructions
from clipkit.packed_texts import can_pack
from clipkit.text_towers import needed_lengths, open_clip_text, project_pooled

_ROWS = 256
"""Rows of the products that weights are laid out for; the layout hardly depends on it."""
_ROW_STEP = 16
"""Products have a multiple of so many rows: oneDNN compiles a kernel for each number that it meets."""
_QUICK = 1.702
"""QuickGELU is x * sigmoid(1.702 x)."""


def can_run(model: nn.Module, dtype: torch.dtype = torch.float32) -> bool:
    """Whether `OneDnnText` computes what the text tower of an open_clip model computes, on this machine."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn or "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and has_bf16_instructions()):
        return False
    tower = open_clip_text(model)
    if tower is None or getattr(tower, "cls_emb", None) is not None or not can_pack(model):
        return False
    parameters = tower.transformer.parameters()
    if any(parameter.device.type != "cpu" or parameter.dtype != torch.float32 for parameter in parameters):
        return False
    # A hook, or a class of another name, may compute anything.
    has_hooks = any(m._forward_hooks or m._forward_pre_hooks for m in tower.transformer.modules())
    return not has_hooks and all(map(_is_plain, tower.transformer.resblocks))


def _is_plain(block: Any) -> bool:
    from open_clip.transformer import LayerScale, ResidualAttentionBlock

    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    attention = block.attn
    if type(attention) is not nn.MultiheadAttention or attention.bias_k is not None:
        return False
    is_usual = attention.in_proj_weight is not None and not attention.add_zero_attn
    scales = (type(block.ls_1), type(block.ls_2))
    linears = (type(block.mlp.c_fc), type(block.mlp.c_proj))
    return (
        is_usual
        and all(scale in (nn.Identity, LayerScale) for scale in scales)
        and linears == (nn.Linear, nn.Linear)
        and _fused(block.mlp.gelu) is not None
    )


@dataclass(frozen=True, kw_only=True)
class _Fused:
    """An activation as oneDNN has it: f(x) = fused(scale * x) / scale."""

    name: str
    algorithm: str = ""
    scale: float = 1.0


def _fused(activation: nn.Module) -> _Fused | None:
    from open_clip.transformer import QuickGELU

    if type(activation) is nn.GELU:
        return _Fused(name="gelu", algorithm=activation.approximate)
    if type(activation) is QuickGELU:
        return _Fused(name="swish", scale=_QUICK)
    return None


class _Linear:
    """x -> fused(x W' + b), in the precision of its weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, fused: _Fused | None) -> None:
        self._dtype = dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), _ROWS)
        self._bias = None if bias is None else bias.to(dtype, copy=True)
        self._fused: tuple[str, list[float], str] = (
            ("none", [], "") if fused is None else (fused.name, [], fused.algorithm)
        )

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self._dtype), self._weight, self._bias, *self._fused
        )
        return y

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` (fp32) plus the layer's output."""
        if self._dtype != torch.float32:
            return residual + self(x)
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, residual, self._weight, self._bias, "add"
        )
        return total


class _Block:
    """The parts of a residual attention block, over N tokens of any texts (N, C)."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        attention, mlp, fused = block.attn, block.mlp, _fused(block.mlp.gelu)
        assert fused is not None
        self.num_heads: int = attention.num_heads
        self.norm_1: Callable[[Tensor], Tensor] = block.ln_1
        self.norm_2: Callable[[Tensor], Tensor] = block.ln_2
        self.qkv = _Linear(attention.in_proj_weight, attention.in_proj_bias, dtype, None)
        self.out = _scaled(attention.out_proj, block.ls_1, 1.0, dtype)
        scale = fused.scale
        up = mlp.c_fc
        bias = None if up.bias is None else up.bias * scale
        self.up = _Linear(up.weight * scale, bias, dtype, fused)
        self.down = _scaled(mlp.c_proj, block.ls_2, 1.0 / scale, dtype)


def _scaled(linear: nn.Linear, layer_scale: nn.Module, input_scale: float, dtype: torch.dtype) -> _Linear:
    """A linear layer with the layer scale behind it, and a factor of its input, in its weights."""
    weight, bias = linear.weight * input_scale, linear.bias
    gamma = getattr(layer_scale, "gamma", None)
    if gamma is not None:
        weight, bias = weight * gamma[:, None], None if bias is None else bias * gamma
    return _Linear(weight, bias, dtype, None)


class OneDnnText:
    """Tokens (T, L) -> features (T, D) fp32, not normalised; see the module.

    Keeps the blocks' linear layers as they were when it was made, a copy of their size. From any thread.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        """Lay out the weights.

        Args:
            model: an open_clip model for which `can_run` is true.
            dtype: of the linear layers and the attention, float32 or bfloat16; the rest is fp32.

        Raises:
            ValueError: `can_run` is false.
        """
        if not can_run(model, dtype):
            raise ValueError(
                f"the text tower must be a causal one of open_clip in fp32, on an x86 CPU that has {dtype}; "
                "see clipkit.onednn_text.can_run"
            )
        self._model = model
        tower = self._tower = cast(Any, open_clip_text(model))
        self._blocks = [_Block(block, dtype) for block in tower.transformer.resblocks]

    @torch.inference_mode()
    def __call__(self, text: Tensor) -> Tensor:
        """See the class.

        Args:
            text: (T, L) int64 token ids, T at least 1, L at most the context length.
        """
        tower = self._tower
        plan = beginnings(text.numpy(), needed_lengths(self._model, text).numpy())
        tokens, positions, first, last = map(_padded, (plan.tokens, plan.positions, plan.first, plan.last))
        paths, order = torch.from_numpy(plan.paths), torch.from_numpy(plan.order)
        hidden = tower.token_embedding(tokens) + tower.positional_embedding[positions]
        *blocks, final = self._blocks
        for block in blocks:
            hidden = _run(block, hidden, hidden, paths, first)
        ends = paths.flatten()[last]
        hidden = _run(final, hidden, hidden[ends], paths, last)
        pooled = project_pooled(tower, tower.ln_final(hidden[: len(text)]))
        features = torch.empty_like(pooled)
        features[order] = pooled
        return features


def _padded(numbers: Int64s) -> Tensor:
    return torch.from_numpy(np.pad(numbers, (0, -len(numbers) % _ROW_STEP)))


def _run(block: _Block, hidden: Tensor, wanted: Tensor, paths: Tensor, places: Tensor) -> Tensor:
    """One block.

    Args:
        block: its parts.
        hidden: (N, C), all beginnings.
        wanted: (M, C), those of `hidden` to compute the output for.
        paths: (T, L), beginnings of each text.
        places: (M,), where those stand in the flattened `paths`.

    Returns:
        (M, C).
    """
    qkv = block.qkv(block.norm_1(hidden))
    num_texts, length = paths.shape
    by_text = qkv[paths.flatten()].view(num_texts, length, 3, block.num_heads, -1)
    queries, keys, values = by_text.permute(2, 0, 3, 1, 4)  # each (T, heads, L, C / heads)
    attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    attended = attended.transpose(1, 2).reshape(num_texts * length, -1)[places]
    wanted = block.out.add_to(wanted, attended)
    return block.down.add_to(wanted, block.up(block.norm_2(wanted)))
