"""What a subject lacks is known before it is opened."""

import pytest
from runners import spec

from nopad.bench.subjects.runners import lacks


def test_what_is_not_installed_is_known_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lacks(spec()) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (
        lacks(spec(runner="openvino", engine="openvino", need="openvino"))
        == "openvino not installed: pip install 'nopad[bench]'"
    )
    assert "torch, transformers not installed" in (
        lacks(spec(runner="transformers", engine="sdpa", need="transformers")) or ""
    )
    assert "flash-attn" in (lacks(spec(runner="transformers", engine="flash_attention_2")) or "")
