"""Names of a graph's nodes: a name is read back as it was made, and layers are told from other modules."""

import pytest

from nopad.export.graph.node_names import in_layer, is_decoder, module_of, node_name


def test_a_name_says_its_module_and_is_told_from_others_by_number() -> None:
    module = "model.layers.0.attn.Wqkv"
    assert [node_name(module, "Gemm", number) for number in range(3)] == [
        f"{module}/Gemm",
        f"{module}/Gemm_1",
        f"{module}/Gemm_2",
    ]
    assert {module_of(node_name(module, "Gemm", number)) for number in range(3)} == {module}
    assert module_of("/model/layers.0/attn/Wqkv/MatMul") == ""  # as other exporters have it


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.attn.Wqkv/Gemm", True),
        ("layers.11.mlp.Wo/Gemm", True),  # of a bare encoder
        ("bert.encoder.layer.0.attention/MatMul", True),
        ("encoder.layer.0.output.dense/Gemm_1", True),
        ("model.layers.0/Add", False),  # a residual
        ("classifier/Gemm", False),
        ("bert.pooler.dense/Gemm", False),
        ("multilayers.0.dense/Gemm", False),
        ("stream/Gather", False),
        ("/bert/encoder/layer.0/attention/self/query/MatMul", False),
    ],
)
def test_what_is_inside_a_layer(name: str, expected: bool) -> None:
    assert in_layer(name) is expected


def test_the_decoder_is_known_by_module_and_by_node() -> None:
    for module in ("decoder", "cls.predictions.decoder", "head.decoder", "lm_head"):
        assert is_decoder(module) and is_decoder(f"{module}/Gemm")
    assert not any(map(is_decoder, ("classifier/Gemm", "head.dense/Gemm", "model.decoder.layers.0.Wo/Gemm")))
