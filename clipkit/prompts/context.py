"""Context vectors: what prompts of a text begin as."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clipkit.prompts.class_texts import start_column
from clipkit.prompts.parts import text_parts

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

STD = 0.02
"""Standard deviation of random prompts in the published code of CoOp and its successors."""


def random_vectors(*shape: int) -> nn.Parameter:
    """Prompts from N(0, 0.02^2), fp32."""
    return nn.Parameter(torch.randn(*shape) * STD)


@torch.no_grad()
def word_vectors(model: DualEncoder, template: str, count: int) -> Tensor:
    """Embeddings of the first tokens of a template, those after a start token: (count, width) fp32."""
    start = start_column(model)
    tokens = model.tokenizer([template.replace("{c}", "")])[0, start : start + count]
    embedding = text_parts(model.model).entry
    vectors: Tensor = embedding(tokens.to(model.logit_scale.device))
    return vectors.float().cpu()
