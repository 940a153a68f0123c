"""An encoder -> an ONNX file, through torch's dynamo exporter."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn

from nopad.export.errors import ExportError
from nopad.export.graph.cpu import cpu_attention, rearrange_cpu
from nopad.export.graph.node_names import node_name
from nopad.export.graph.openvino import openvino_attention, rearrange_openvino
from nopad.export.graph.stored_weights import store_bf16
from nopad.model.attention import AttentionFactory, graph_attention
from nopad.model.encoder import PackedEncoder
from nopad.model.packing import pack
from nopad.runtime.engines.hardware import Precision

# 20 is the first opset with Gelu, 17 with LayerNormalization; ONNX Runtime 1.22+ and TensorRT 10.13+ read it.
OPSET = 20
# Larger weights go to a file beside the graph, which is mapped into memory and not parsed: ModernBERT-base opens in
# half the time, in half the memory. (A protobuf could not hold 2 GiB anyway.)
INLINE_BYTES = 100_000_000
EXTERNAL_SUFFIX = ".data"
GraphTarget = Literal["onnx", "cpu", "openvino"]


@dataclass(frozen=True, kw_only=True)
class _Form:
    """How a target's graph differs from the encoder's code as it stands."""

    attention: AttentionFactory
    rearrange: Callable[[Any], None] | None = None  # of the traced model, in place
    any_length: bool = False  # the stream needs no filler


_FORMS: dict[GraphTarget, _Form] = {
    "onnx": _Form(attention=graph_attention),
    "cpu": _Form(attention=cpu_attention, rearrange=rearrange_cpu, any_length=True),
    "openvino": _Form(attention=openvino_attention, rearrange=rearrange_openvino, any_length=True),
}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A written ONNX file, and its inputs and outputs."""

    file: Path
    opset: int
    inputs: dict[str, list[str]]  # name -> symbolic shape
    outputs: dict[str, list[str]]
    token_multiple: int


def export_graph(
    encoder: PackedEncoder,
    path: Path,
    *,
    target: GraphTarget = "onnx",
    store: Precision = "fp32",
) -> Graph:
    """Write `encoder` (already in its precision) to `path` and check the file.

    `target`: plain ONNX, or arranged for one library: in ONNX Runtime's own CPU operators (`nopad.export.graph.cpu`),
    or as OpenVINO fuses it (`nopad.export.graph.openvino`).
    `store`: keep the matrices of an fp32 encoder as they are, or in bf16 (`nopad.export.graph.stored_weights`).

    Inputs, int64: `input_ids[tokens]`, `position_ids[tokens]`, `sequence_ids[tokens]`, `pad_index[sequences, longest]`;
    for BERT `token_type_ids[tokens]`; where a prompt is not pooled `prompt_lengths[sequences]`. `tokens` is a multiple
    of the attention block (for `cpu` and `openvino`, any number).
    Output: fp32 `logits`.
    Raises `ExportError`.
    """
    if store not in ("fp32", "bf16"):
        raise ExportError(f"a graph's weights are stored in fp32 or bf16, not {store}; int8 is made of the fp32 graph")
    config, form = encoder.encoder_config, _FORMS[target]
    block = config.block
    multiple = 1 if form.any_length else block
    # Three sequences of different lengths over three blocks: no dimension equals another by chance.
    example = pack([[1] * (block + 6), [1] * 7, [1] * block], multiple=multiple)
    blocks = torch.export.Dim("blocks", max=1 << 20)
    tokens = torch.export.Dim("tokens", min=1, max=1 << 26) if form.any_length else block * blocks
    sequences = torch.export.Dim("sequences", min=1, max=1 << 20)
    longest = torch.export.Dim("longest", min=1, max=1 << 20)
    shapes: dict[str, dict[int, Any] | None] = {
        name: {0: tokens} for name in ("input_ids", "position_ids", "sequence_ids")
    }
    shapes["pad_index"] = {0: sequences, 1: longest}
    if config.type_vocab_size:
        shapes["token_type_ids"] = {0: tokens}
    names = list(shapes)
    if not config.include_prompt:
        names.append("prompt_lengths")
        shapes.setdefault("token_type_ids", None)  # the parameter before it, BERT or not
        shapes["prompt_lengths"] = {0: sequences}
    arguments = tuple(torch.from_numpy(getattr(example, name)) if name in names else None for name in shapes)
    attention, encoder.attention = encoder.attention, encoder.attention or form.attention
    try:
        program = trace(encoder, arguments, list(shapes.values()), names)
    finally:
        encoder.attention = attention
    if form.rearrange is not None:
        form.rearrange(program.model)
    _name_dimensions(program.model.graph, {str(tokens): "tokens", f"{block}*blocks": "tokens"})
    return write(program, path, token_multiple=multiple, store=store)


def trace(module: nn.Module, arguments: Sequence[Tensor | None], shapes: Sequence[Any], names: Sequence[str]) -> Any:
    """`module` as torch's ONNX program: inputs named `names`, one output, `logits`.

    `shapes` are the dynamic dimensions of each parameter, as `torch.export` takes them; an argument that is None is not
    an input. Raises `ExportError`.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                tuple(arguments),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=tuple(shapes),
                input_names=list(names),
                output_names=["logits"],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        # torch prints pages of advice around the reason.
        reason = str(error).partition("## Exception summary")[2].strip() or str(error)
        raise ExportError(f"torch {torch.__version__} could not export this encoder: {reason[:1000]}") from error
    assert program is not None
    return program


def write(program: Any, path: Path, *, token_multiple: int = 1, store: Precision = "fp32") -> Graph:
    """Write the program that `trace` made, its matrices stored in `store`, and check the file. Raises `ExportError`."""
    graph = program.model.graph
    _name_nodes(graph)
    if store == "bf16":
        store_bf16(graph)
    size = sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)
    try:
        program.save(str(path), external_data=size > INLINE_BYTES)
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"torch {torch.__version__} has exported a graph that is not valid ONNX: {error}") from error
    return Graph(
        file=path,
        opset=OPSET,
        inputs={value.name or "": _shape(value) for value in graph.inputs},
        outputs={value.name or "": _shape(value) for value in graph.outputs},
        token_multiple=token_multiple,
    )


def _shape(value: Any) -> list[str]:
    return [str(getattr(size, "value", None) or size) for size in value.shape]


def _name_dimensions(graph: Any, names: dict[str, str]) -> None:
    import onnx_ir

    for value in [*graph.inputs, *graph.outputs]:
        sizes = [names.get(str(getattr(size, "value", None) or size), size) for size in value.shape]
        value.shape = onnx_ir.Shape(sizes)


def _name_nodes(graph: Any) -> None:
    """Name every node after the module it came from."""
    seen: Counter[tuple[str, str]] = Counter()
    module = "stream"
    for node in graph:
        namespace = node.metadata_props.get("namespace", "")
        scopes = [scope.split(":")[0] for scope in namespace.split("/")[:-1]]
        if namespace:  # nodes that the exporter's optimizer made have none: they keep the module before them
            module = next((scope for scope in reversed(scopes) if scope and not scope.startswith("_empty")), "stream")
        node.metadata_props.clear()  # stack traces, with the paths of this machine
        node.name = node_name(module, node.op_type, seen[module, node.op_type])
        seen[module, node.op_type] += 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: it logs about packages we do not use (torchvision), and warns about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
