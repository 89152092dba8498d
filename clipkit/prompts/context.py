"""Context vectors: what prompts of a text begin as."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clipkit.prompts.class_tokens import start_column, word_ids
from clipkit.prompts.parts import text_parts

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

STD = 0.02
"""Standard deviation of random prompts in the published code of CoOp and its successors."""


def random_vectors(*shape: int) -> nn.Parameter:
    """Prompts from N(0, 0.02^2), fp32."""
    return nn.Parameter(torch.randn(*shape) * STD)


def context_vectors(model: DualEncoder, init: str, count: int, width: int) -> nn.Parameter:
    """(count, width) embeddings of the words `init`, or noise where there are none.

    Raises:
        ValueError: the words are not exactly `count` tokens.
    """
    if not init:
        return random_vectors(count, width)
    ids = word_ids(model, init)
    if len(ids) != count:
        raise ValueError(
            f"init must be num_prompts = {count} tokens, {init!r} is {len(ids)}: change the words, or set "
            f"num_prompts to {len(ids)}"
        )
    return nn.Parameter(_embedded(model, ids))


def word_vectors(model: DualEncoder, template: str, count: int) -> Tensor:
    """Embeddings of the first tokens of a template, those after a start token: (count, width) fp32."""
    start = start_column(model)
    return _embedded(model, model.tokenizer([template.replace("{c}", "")])[0, start : start + count])


@torch.no_grad()
def _embedded(model: DualEncoder, ids: Tensor) -> Tensor:
    vectors: Tensor = text_parts(model.model).entry(ids.to(model.logit_scale.device))
    return vectors.float().cpu()
