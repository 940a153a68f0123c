"""The attention seam: every implementation against the definition, written out."""

import dataclasses
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nopad.model import attention
from nopad.model.attention import (
    Attend,
    PackedLayout,
    Rotary,
    graph_attention,
    rotate,
    sdpa_attention,
    varlen_attention,
)
from nopad.model.checkpoint.read_config import read_config
from nopad.model.encoder import build_encoder
from nopad.model.packing import pack

LENGTHS = [1, 70, 3, 128, 65, 200]


def make_layout(half_window: int) -> PackedLayout:
    block = max(1, -(-half_window // 64)) * 64
    batch = pack([[1] * n for n in LENGTHS], multiple=block)
    arrays = {name: torch.from_numpy(getattr(batch, name)) for name in ("position_ids", "sequence_ids", "pad_index")}
    return PackedLayout(**arrays, half_window=half_window, block=block)


def by_definition(q: Tensor, k: Tensor, v: Tensor, ends: list[int], half_window: int | None) -> Tensor:
    """Every token attends to the tokens of its own sequence, within the window if there is one."""
    out = torch.zeros_like(q)
    for start, end in zip(ends, ends[1:], strict=False):
        for i in range(start, end):
            first = start if half_window is None else max(start, i - half_window)
            last = end if half_window is None else min(end, i + half_window + 1)
            scores = torch.einsum("hd,nhd->hn", q[i], k[first:last]) * q.shape[-1] ** -0.5
            out[i] = torch.einsum("hn,nhd->hd", scores.softmax(-1), v[first:last])
    return out


@pytest.mark.parametrize("half_window", [0, 1, 16, 63, 64, 65, 130])
@pytest.mark.parametrize("make", [sdpa_attention, graph_attention])
def test_local_and_global_attention_are_exact(make: Callable[[PackedLayout], Attend], half_window: int) -> None:
    layout = make_layout(half_window)
    torch.manual_seed(0)
    total, used = layout.sequence_ids.shape[0], sum(LENGTHS)
    q, k, v = (torch.randn(total, 2, 8) * 2 for _ in range(3))
    ends = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    attend = make(layout)
    for local in (True, False):
        want = by_definition(q, k, v, ends, half_window if local else None)
        got = attend(q, k, v, local=local)
        assert torch.isfinite(got).all()
        assert (got[:used] - want[:used]).abs().max() < 1e-5


@pytest.mark.parametrize("make", [sdpa_attention, varlen_attention, graph_attention])
def test_nothing_of_a_batch_waits_for_the_garbage_collector(make: Callable[[PackedLayout], Attend]) -> None:
    """A function that names itself would keep its masks until the oldest generation is collected: hundreds of steps."""
    make(make_layout(64))  # what it imports keeps the frame that asked for it
    gc.disable()
    try:
        attend = make(make_layout(64))
        gone = weakref.ref(attend)
        del attend
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [sdpa_attention, graph_attention])
def test_chosen_tokens_get_what_they_get_among_all(make: Callable[[PackedLayout], Attend]) -> None:
    """Any tokens, and each sequence's first, for which a layout that says so has a shorter way; gradients too."""
    layout = make_layout(64)
    torch.manual_seed(0)
    q, k, v = (torch.randn(layout.sequence_ids.shape[0], 2, 8, requires_grad=True) for _ in range(3))
    angles = torch.rand(layout.sequence_ids.shape[0], 1, 4)
    rope = angles.cos(), angles.sin()
    first = layout.pad_index[:, 0]
    for local in (True, False):
        for chosen, given in (
            (torch.tensor([270, 3, 3, 0]), layout),
            (first, layout),
            (first, dataclasses.replace(layout, first_tokens=True)),
        ):
            whole = make(layout)(q, k, v, local=local, rope=rope)[chosen]
            few = make(given)(q, k, v, local=local, rope=rope, chosen=chosen)
            weights = torch.randn(whole.shape)
            wanted, got = (torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (whole, few))
            assert (few - whole).abs().max() < 1e-6
            assert max((a - b).abs().max() for a, b in zip(wanted, got, strict=True)) < 1e-5


def test_varlen_attention_asks_the_kernel_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA kernel cannot run here: its documented arithmetic stands in, with the arguments it would get."""
    calls: list[dict[str, Any]] = []

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, **kw: Any
    ) -> Tensor:
        calls.append({"cu_q": cu_q, "max_q": max_q, **kw})
        assert cu_q.dtype == torch.int32 and torch.equal(cu_q, cu_k) and max_q == max_k
        assert max_q >= int(cu_q.diff().max())
        left, right = kw["window_size"]
        assert left == right
        return by_definition(q, k, v, cu_q.tolist(), None if left < 0 else left)

    import torch.nn.attention.varlen as module

    monkeypatch.setattr(module, "varlen_attn", kernel)
    layout = make_layout(64)
    torch.manual_seed(0)
    q, k, v = (torch.randn(layout.sequence_ids.shape[0], 2, 8) for _ in range(3))
    used = sum(LENGTHS)
    for local in (True, False):
        got = varlen_attention(layout)(q, k, v, local=local)
        want = sdpa_attention(layout)(q, k, v, local=local)
        assert (got[:used] - want[:used]).abs().max() < 1e-5
        assert torch.isfinite(got).all()  # filler too
    assert calls[0]["cu_q"].tolist()[-2:] == [used, layout.sequence_ids.shape[0]]


@pytest.mark.parametrize(
    ("capability", "dtype", "head_size", "dropout", "wanted"),
    [
        ((7, 5), torch.float16, 64, False, "sdpa"),  # T4
        ((8, 0), torch.float16, 64, False, "varlen"),
        ((9, 0), torch.bfloat16, 256, False, "varlen"),
        ((9, 0), torch.float32, 64, False, "sdpa"),
        ((9, 0), torch.bfloat16, 64, True, "sdpa"),
        ((9, 0), torch.bfloat16, 264, False, "sdpa"),
        ((9, 0), torch.bfloat16, 20, False, "sdpa"),
    ],
)
def test_choice_by_hardware_and_head(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_size: int,
    dropout: bool,
    wanted: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "varlen_attention", lambda layout: "varlen")
    monkeypatch.setattr(attention, "sdpa_attention", lambda layout: "sdpa")
    layout: Any = SimpleNamespace(position_ids=SimpleNamespace(device=SimpleNamespace(type="cuda")))
    assert attention.default_attention(layout, dtype, head_size, dropout) == wanted


def test_a_stream_of_the_wrong_length_is_refused() -> None:
    layout = make_layout(64)
    short = PackedLayout(
        position_ids=layout.position_ids[:-1],
        sequence_ids=layout.sequence_ids[:-1],
        pad_index=layout.pad_index,
        half_window=64,
        block=64,
    )
    with pytest.raises(ValueError, match="not a multiple of 64"):
        sdpa_attention(short)


def test_autocast_gives_attention_one_dtype() -> None:
    seen: list[set[torch.dtype]] = []

    def spy(layout: PackedLayout) -> Attend:
        inner = sdpa_attention(layout)

        def attend(q: Tensor, k: Tensor, v: Tensor, *, local: bool, rope: Rotary = None, **rest: Any) -> Tensor:
            seen.append({rotate(q, rope).dtype, rotate(k, rope).dtype, v.dtype})
            return inner(q, k, v, local=local, rope=rope, **rest)

        return attend

    raw = {
        "model_type": "modernbert",
        "architectures": ["ModernBertForSequenceClassification"],
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    encoder = build_encoder(read_config(raw), spy)
    batch = pack([[1, 2, 3], [4] * 70])
    names = ("input_ids", "position_ids", "sequence_ids", "pad_index")
    with torch.autocast("cpu", torch.bfloat16):
        logits = encoder(*(torch.from_numpy(getattr(batch, name)) for name in names))
    assert seen == [{torch.bfloat16}] * 2
    assert logits.dtype == torch.float32


@pytest.mark.gpu
def test_varlen_attention_on_the_gpu() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a CUDA device of compute capability 8.0 or newer")
    layout = make_layout(64)
    names = ("position_ids", "sequence_ids", "pad_index")
    on_gpu = PackedLayout(**{name: getattr(layout, name).cuda() for name in names}, half_window=64, block=64)
    torch.manual_seed(0)
    q, k, v = (torch.randn(layout.sequence_ids.shape[0], 4, 64) for _ in range(3))
    used = sum(LENGTHS)
    for local in (True, False):
        want = sdpa_attention(layout)(q, k, v, local=local)[:used]
        got = varlen_attention(on_gpu)(*(x.cuda().half() for x in (q, k, v)), local=local).float().cpu()[:used]
        assert (got - want).abs().max() < 5e-3  # fp16 inputs, fp32 accumulation
