"""Relative errors of the Triton kernels' gradients on a GPU, against dense logits in fp64; a JSON line each.

python tests/gpu_gradients.py
"""

from __future__ import annotations

import itertools
import json

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.losses import Pairs, clip_loss, siglip_loss

NUM_PAIRS, EMBED_DIM = 5_000, 200


def gradients(objective: str, kernel: str, features: list[Tensor], pairs: Pairs) -> list[Tensor]:
    """Of the features and the logit scale."""
    scale, bias = (torch.tensor(v, device="cuda", requires_grad=True) for v in (14.0, -8.0))
    if objective == "softmax":
        loss = clip_loss(*features, scale, kernel=kernel, pairs=pairs)
    else:
        loss = siglip_loss(*features, scale, bias, kernel=kernel, pairs=pairs)
    loss.backward()
    return [*(x.grad.double() for x in features), scale.grad.double()]


def main() -> None:
    """Every objective, dtype and kind of pairs."""
    generator = torch.Generator("cuda").manual_seed(0)
    image, noise = (torch.randn(NUM_PAIRS, EMBED_DIM, device="cuda", generator=generator) for _ in range(2))
    keys = torch.randint(0, NUM_PAIRS // 3, (NUM_PAIRS,), device="cuda", generator=generator)
    ignored = torch.rand(NUM_PAIRS, NUM_PAIRS, device="cuda", generator=generator) < 0.1
    for objective, dtype, has_labels in itertools.product(
        ("softmax", "sigmoid"), (torch.bfloat16, torch.float32), (False, True)
    ):
        pairs = Pairs(positive_keys=keys, ignored=ignored) if has_labels else Pairs()
        features = [F.normalize(x, dim=-1).to(dtype).requires_grad_() for x in (image, image + 1.5 * noise)]
        exact = [x.detach().double().requires_grad_() for x in features]
        computed = gradients(objective, "triton", features, pairs)
        expected = gradients(objective, "dense", exact, pairs)
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(computed, expected, strict=True)]
        row = {"objective": objective, "dtype": str(dtype).removeprefix("torch."), "labels": has_labels}
        print(json.dumps({**row, "errors": errors}))


if __name__ == "__main__":
    main()
