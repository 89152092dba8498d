"""Precision of the towers, and what is said of CPUs that emulate it."""

from __future__ import annotations

import logging

import pytest
import torch

from clipkit import devices

CPU = torch.device("cpu")


@pytest.mark.parametrize("present", [(), ("avx512_f", "avx2"), ("amx_tile",)])
def test_a_cpu_that_emulates_bf16_is_named(
    present: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(present, True), raising=False)
    with caplog.at_level(logging.WARNING):
        devices.warn_if_emulated("bf16", CPU)
    assert "this CPU has no bf16 instructions: autocast runs about 9 times slower than fp32" in caplog.text


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_nothing_is_said_where_there_are_instructions_or_no_need(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True}, raising=False)
    with caplog.at_level(logging.WARNING):
        devices.warn_if_emulated("bf16", CPU)
        devices.warn_if_emulated("bf16", torch.device("cuda"))
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        devices.warn_if_emulated("fp32", CPU)
    assert caplog.text == ""


def test_older_torch_is_asked_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert devices.has_bf16_instructions()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not devices.has_bf16_instructions()


def test_fp32_leaves_everything_as_it_is() -> None:
    with devices.autocast_of("fp32", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with devices.autocast_of("bf16", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_attention_to_be_trained_is_the_plain_one_on_a_cpu_in_low_precision() -> None:
    def gradient(precision: str) -> str:
        dtype = devices.AUTOCAST_DTYPES[precision]
        query, key, value = (torch.ones(1, 2, 3, 8, dtype=dtype, requires_grad=True) for _ in range(3))
        with devices.trained_attention(precision, CPU):
            attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return type(attended.grad_fn).__name__

    fused = gradient("fp32")
    assert "FlashAttention" in fused
    assert "FlashAttention" not in gradient("bf16")
    assert "FlashAttention" not in gradient("fp16")
    assert gradient("fp32") == fused, "the choice is one of the block alone"
