"""The table of what each GPU generation can do."""

from __future__ import annotations

from nopad.runtime.engines.hardware import CAPABILITIES, PRECISIONS, RTX_ARCHS, refusal


def test_the_hardware_table_promises_nothing_that_a_t4_lacks() -> None:
    turing = CAPABILITIES["sm75"]
    assert "bf16" not in turing.precisions and turing.attention == "sdpa"
    assert not {"fp32", "bf16"} & set(turing.rtx_precisions)
    assert refusal("tensorrt", "sm75", "fp16") is None and refusal("tensorrt-rtx", "sm75", "fp16") is None


def test_the_table_is_of_precisions_that_there_are() -> None:
    for capability in CAPABILITIES.values():
        assert set(capability.rtx_precisions) <= set(capability.precisions) <= set(PRECISIONS)
    assert RTX_ARCHS == ("sm75", "sm86", "sm89", "sm120")
