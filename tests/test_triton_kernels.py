from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipkit.losses import clip_loss, siglip_loss


@pytest.mark.slow
def test_kernels_compile_for_tensor_cores_without_a_gpu(tmp_path: Path) -> None:
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 4 * 3
    for row in rows:
        assert row["tensor_core_instructions"] > 0, row


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float32, 1e-3)])
@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_gradients_on_a_gpu(objective: str, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    features = [torch.randn(5000, 200, device="cuda", generator=generator) for _ in range(2)]
    features[1] += features[0]
    halves = [torch.nn.functional.normalize(x, dim=-1).to(dtype).requires_grad_() for x in features]
    exact = [x.detach().double().requires_grad_() for x in halves]
    gradients = []
    for inputs, kernel in ((halves, "triton"), (exact, "dense")):
        scale, bias = (torch.tensor(v, device="cuda", requires_grad=True) for v in (30.0, -8.0))
        if objective == "softmax":
            clip_loss(*inputs, scale, kernel=kernel).backward()
        else:
            siglip_loss(*inputs, scale, bias, kernel=kernel).backward()
        gradients.append([*(x.grad.double() for x in inputs), scale.grad.double()])
    for computed, expected in zip(*gradients, strict=True):
        assert (computed - expected).norm() < tolerance * expected.norm()
