"""What the layers of a graph read on texts, as statistics of its tensors [T, channels]. Knows nothing of int8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from nopad.export.int8.sessions import feeds, session_of
from nopad.model.packing import PackedBatch

Array = npt.NDArray[np.float32]
_TENSORS = 32  # whose moments are summed up in one pass: a large model's would not fit in memory together


@dataclass(frozen=True, kw_only=True)
class Channels:
    """The channels of a tensor over all tokens of some texts."""

    mean: Array  # [channels]
    reach: Array  # [channels], the largest distance from the mean


def channels(model: onnx.ModelProto, names: Sequence[str], batches: Sequence[PackedBatch]) -> dict[str, Channels]:
    """The channels of the tensors `names` on the real tokens of `batches`."""
    total: dict[str, Any] = dict.fromkeys(names, 0.0)
    least: dict[str, Any] = dict.fromkeys(names, np.inf)
    most: dict[str, Any] = dict.fromkeys(names, -np.inf)
    for tensors in _tensors(model, names, batches):
        for name, rows in tensors.items():
            total[name] = total[name] + rows.sum(axis=0, dtype=np.float64)
            least[name] = np.minimum(least[name], rows.min(axis=0))
            most[name] = np.maximum(most[name], rows.max(axis=0))
    tokens = sum(batch.num_tokens for batch in batches)
    means = {name: (total[name] / tokens).astype(np.float32) for name in names}
    return {name: Channels(mean=m, reach=np.maximum(most[name] - m, m - least[name])) for name, m in means.items()}


def moments(
    model: onnx.ModelProto, names: Sequence[str], batches: Sequence[PackedBatch]
) -> Iterator[tuple[str, Array]]:
    """Each tensor of `names` and its x.T @ x [channels, channels] over the real tokens of `batches`."""
    for start in range(0, len(names), _TENSORS):
        sums: dict[str, Any] = dict.fromkeys(names[start : start + _TENSORS], np.float32(0))
        for tensors in _tensors(model, list(sums), batches):
            for name, rows in tensors.items():
                sums[name] = sums[name] + rows.T @ rows
        while sums:
            name = next(iter(sums))
            yield name, sums.pop(name)


def _tensors(
    model: onnx.ModelProto, names: Sequence[str], batches: Sequence[PackedBatch]
) -> Iterator[Mapping[str, Array]]:
    """The tensors of each batch, without filler."""
    own = len(model.graph.output)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = session_of(model)
    del model.graph.output[own:]
    for batch in batches if names else ():
        values = session.run(list(names), feeds(session, batch))
        yield {name: rows[: batch.num_tokens] for name, rows in zip(names, values, strict=True)}
