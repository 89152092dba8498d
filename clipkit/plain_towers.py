"""Plain transformer towers, for checkpoints of home-made dual encoders.

Blocks are `torch.nn.TransformerEncoderLayer`. Parts that a tower may lack are built on request; `parts` are
their names: `input_norm`, `final_norm`, `projection.weight`, `projection.bias`, and of an image tower also
`patch.bias` and `class_token`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`, the activation of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
}
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class PlainTower:
    """What both kinds of towers have."""

    width: int
    """Features of a token."""
    layers: int
    heads: int
    mlp_width: int
    """Features between the two layers of a block's perceptron."""
    activation: str = "gelu"
    """gelu (exact), gelu_tanh, quick_gelu or relu."""
    norm_first: bool = True
    """Whether a block normalises its inputs (pre-LN) or its sums (post-LN)."""
    norm_eps: float = 1e-5
    positions: str = "stored"
    """stored: in the checkpoint; sincos: computed, sines at even and cosines at odd places
    (arXiv:1706.03762, section 3.5); none."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        _check_choice("activation", self.activation, tuple(ACTIVATIONS))
        _check_choice("positions", self.positions, ("stored", "sincos", "none"))


@dataclass(frozen=True, kw_only=True)
class PlainImageTower(PlainTower):
    """A vision transformer (arXiv:2010.11929)."""

    image_size: tuple[int, int]
    """(height, width) in pixels."""
    patch_size: int
    """Side of the square patches in pixels."""
    channels: int = 3
    """3, or 1 for a tower of grey images, which gets the luma of the colours."""
    pool: str = "class"
    """class: the class token, which comes first; mean: of all tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("pool", self.pool, ("class", "mean"))
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if min(self.image_size) < 1 or any(side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"image_size must be a multiple of patch_size, got {self.image_size} and {self.patch_size}"
            )

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size[0] // self.patch_size) * (self.image_size[1] // self.patch_size)


@dataclass(frozen=True, kw_only=True)
class PlainTextTower(PlainTower):
    """A transformer over token ids."""

    vocab_size: int
    context_length: int
    """Tokens of a text at most, `start` and `end` included."""
    pad: int = 0
    """Id of what fills a text up."""
    end: int
    """Id of the token behind the text."""
    causal: bool = False
    """Whether a token sees only those before it."""
    mask_padding: bool = True
    """Whether padding is hidden from attention."""
    pool: str = "end"
    """end: the first token with the id `end`; first: the first token; mean: of all tokens but padding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("pool", self.pool, ("end", "first", "mean"))


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


class _Blocks(nn.Module):
    """Tokens (B, N, width) through positions, blocks and norms."""

    positions: Tensor

    def __init__(self, config: PlainTower, num_tokens: int, embed_dim: int, parts: Collection[str]) -> None:
        super().__init__()
        width = config.width
        if config.positions == "sincos":
            self.register_buffer("positions", sincos_positions(num_tokens, width), persistent=False)
        elif config.positions == "stored":
            self.positions = nn.Parameter(torch.empty(num_tokens, width))
        else:
            self.positions = torch.zeros(())
        self.input_norm = _norm(config, "input_norm" in parts)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                config.heads,
                config.mlp_width,
                dropout=0.0,
                activation=ACTIVATIONS[config.activation],
                layer_norm_eps=config.norm_eps,
                batch_first=True,
                norm_first=config.norm_first,
            )
            for _ in range(config.layers)
        )
        self.final_norm = _norm(config, "final_norm" in parts)
        self.projection: nn.Module = nn.Identity()
        if "projection.weight" in parts:
            self.projection = nn.Linear(width, embed_dim, bias="projection.bias" in parts)
        elif width != embed_dim:
            raise ValueError(f"a tower of width {width} needs a projection to embed_dim {embed_dim}")

    def run(self, tokens: Tensor, causal_mask: Tensor | None, padding: Tensor | None) -> Tensor:
        """All tokens after the final norm."""
        positions = self.positions[: tokens.shape[1]] if self.positions.ndim else self.positions
        tokens = self.input_norm(tokens + positions)
        for block in self.blocks:
            tokens = block(tokens, src_mask=causal_mask, src_key_padding_mask=padding)
        normed: Tensor = self.final_norm(tokens)
        return normed


class ImageTower(_Blocks):
    """(B, 3, H, W) normalised pixels -> (B, embed_dim)."""

    def __init__(self, config: PlainImageTower, embed_dim: int, parts: Collection[str]) -> None:
        has_class = "class_token" in parts
        super().__init__(config, config.num_patches + has_class, embed_dim, parts)
        if config.pool == "class" and not has_class:
            raise ValueError("pool 'class' needs a class_token; name it, or pool 'mean'")
        self.config = config
        size = config.patch_size
        self.patch = nn.Conv2d(config.channels, config.width, size, stride=size, bias="patch.bias" in parts)
        self.class_token = nn.Parameter(torch.empty(config.width)) if has_class else None

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        if self.config.channels == 1:
            images = torch.einsum("bchw,c->bhw", images, images.new_tensor(_LUMA))[:, None]
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1)
        tokens = self.run(tokens, None, None)
        pooled = tokens[:, 0] if self.config.pool == "class" else tokens.mean(dim=1)
        projected: Tensor = self.projection(pooled)
        return projected


class TextTower(_Blocks):
    """(B, L) int64 token ids, L up to the context length -> (B, embed_dim)."""

    def __init__(self, config: PlainTextTower, embed_dim: int, parts: Collection[str]) -> None:
        super().__init__(config, config.context_length, embed_dim, parts)
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)

    def forward(self, text: Tensor) -> Tensor:
        """See the class."""
        config = self.config
        if text.shape[1] > config.context_length:
            raise ValueError(f"the text has {text.shape[1]} columns, the model reads {config.context_length}")
        is_padding = text == config.pad
        causal = None
        if config.causal:
            square = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool, device=text.device)
            causal = square.triu(diagonal=1)
        tokens = self.run(self.embedding(text), causal, is_padding if config.mask_padding else None)
        if config.pool == "mean":
            weights = (~is_padding).to(tokens.dtype)
            pooled = (tokens * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=1)
        else:
            ends = (text == config.end).int().argmax(dim=1)
            places = ends if config.pool == "end" else torch.zeros_like(ends)
            pooled = tokens[torch.arange(len(text), device=text.device), places]
        projected: Tensor = self.projection(pooled)
        return projected


def sincos_positions(num_tokens: int, width: int) -> Tensor:
    """(N, W) fp32 position table: `sin(n / 10000**(2i / W))` at place 2i, its cosine at 2i + 1."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(num_tokens)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


def _norm(config: PlainTower, is_there: bool) -> nn.Module:
    return nn.LayerNorm(config.width, eps=config.norm_eps) if is_there else nn.Identity()
