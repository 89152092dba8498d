"""Losses and their gradients against values recorded in double precision."""

import numpy as np
import pytest
import torch
from shared_data import shared_data

from clipkit.losses import clip_loss, siglip_loss


@pytest.mark.parametrize("objective", ["clip", "siglip"])
def test_values_and_gradients(objective):
    stored = np.load(shared_data("golden_generated") / "losses.npz")
    inputs = {
        name: torch.tensor(stored[name], dtype=torch.float64, requires_grad=True)
        for name in ("a", "b", "scale", "bias")
    }
    image, text, scale, bias = inputs.values()
    loss = clip_loss(image, text, scale) if objective == "clip" else siglip_loss(image, text, scale, bias)
    loss.backward()
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(float(stored[f"{objective}_loss"]), abs=1e-12)
    gradients = {"ga": image, "gb": text, "gs": scale}
    if objective == "siglip":
        gradients["gbias"] = bias
    for name, tensor in gradients.items():
        expected = torch.from_numpy(np.asarray(stored[f"{objective}_{name}"]))
        torch.testing.assert_close(tensor.grad, expected, rtol=0, atol=1e-12)
