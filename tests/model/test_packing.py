"""Packing: properties over random lengths, and that a sequence's answer depends on no other."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import ATTENTIONS, TOLERANCE, Reference, difference, packed_logits, token_ids

from nopad.model.attention import PackedLayout, local_mask, sdpa_attention
from nopad.model.packing import pack, plan_batches, round_up, to_padded

ROWS = st.lists(st.lists(st.integers(0, 50_000), min_size=1, max_size=70), min_size=1, max_size=12)
MULTIPLES = st.sampled_from([1, 7, 64, 192])
FAST = settings(max_examples=60, derandomize=True)


@FAST
@given(rows=ROWS, multiple=MULTIPLES, filler=st.integers(0, 9))
def test_the_stream_holds_every_token_once_in_order(rows: list[list[int]], multiple: int, filler: int) -> None:
    batch = pack(rows, multiple=multiple, filler_id=filler)
    used = sum(len(row) for row in rows)
    total = len(batch.input_ids)
    assert batch.num_tokens == used
    assert total % multiple == 0 and used <= total < used + multiple
    assert batch.input_ids[:used].tolist() == [token for row in rows for token in row]
    assert set(batch.input_ids[used:].tolist()) <= {filler}
    assert batch.lengths.tolist() == [len(row) for row in rows]
    assert batch.position_ids[:used].tolist() == [i for row in rows for i in range(len(row))]
    assert batch.sequence_ids[:used].tolist() == [b for b, row in enumerate(rows) for _ in row]
    assert not batch.position_ids[used:].any() and (batch.sequence_ids[used:] == -1).all()
    assert not batch.token_type_ids.any()
    for array in (batch.input_ids, batch.position_ids, batch.sequence_ids, batch.token_type_ids):
        assert array.shape == (total,) and array.dtype == np.int64
    assert batch.pad_index.dtype == batch.cu_seqlens.dtype == np.int64


@FAST
@given(rows=ROWS, multiple=MULTIPLES)
def test_pad_index_and_cu_seqlens_agree_with_the_stream(rows: list[list[int]], multiple: int) -> None:
    batch = pack(rows, multiple=multiple)
    assert batch.pad_index.shape == (len(rows), max(len(row) for row in rows))
    assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens.shape == (len(rows) + 1,)
    seen = batch.pad_index[batch.pad_index >= 0]
    assert sorted(seen.tolist()) == list(range(batch.num_tokens))  # every token once, no filler
    for b, row in enumerate(rows):
        start, end = batch.cu_seqlens[b : b + 2]
        assert batch.pad_index[b].tolist() == [*range(start, end), *[-1] * (batch.pad_index.shape[1] - len(row))]
        assert batch.input_ids[start:end].tolist() == row
        assert (batch.sequence_ids[start:end] == b).all()


@FAST
@given(rows=ROWS, multiple=MULTIPLES, pad_id=st.integers(60_000, 60_009), data=st.data())
def test_to_padded_gives_the_rows_back(rows: list[list[int]], multiple: int, pad_id: int, data: st.DataObject) -> None:
    types = [data.draw(st.lists(st.integers(0, 1), min_size=len(row), max_size=len(row))) for row in rows]
    ids, mask, kinds = to_padded(pack(rows, types, multiple=multiple, filler_id=3), pad_id)
    longest = max(len(row) for row in rows)
    assert ids.tolist() == [row + [pad_id] * (longest - len(row)) for row in rows]
    assert mask.tolist() == [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    assert kinds.tolist() == [row + [0] * (longest - len(row)) for row in types]
    assert ids.dtype == mask.dtype == kinds.dtype == np.int64


@pytest.mark.parametrize("rows", [[], [[]], [[1], []]])
def test_pack_refuses_what_has_no_answer(rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one sequence and at least one token"):
        pack(rows)


def test_pack_refuses_token_types_of_another_length() -> None:
    with pytest.raises(ValueError):
        pack([[1, 2, 3]], [[0, 1]])


@FAST
@given(
    lengths=st.lists(st.one_of(st.integers(1, 600), st.integers(1, 5)), max_size=60),
    budget=st.integers(1, 1500),
    most=st.integers(1, 30),
    padded=st.booleans(),
)
def test_plan_batches(lengths: list[int], budget: int, most: int, padded: bool) -> None:
    batches = plan_batches(lengths, token_budget=budget, max_sequences=most, padded=padded)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[index] for index in batch]
        cost = max(sizes) * len(sizes) if padded else sum(sizes)
        assert len(batch) <= most
        assert cost <= budget or len(batch) == 1
        assert len(sizes) * max(sizes) ** 2 <= budget**2 or len(batch) == 1  # global attention pads
    order = [lengths[index] for batch in batches for index in batch]
    assert order == sorted(lengths, reverse=True)  # memory peaks at the start
    for batch, following in zip(batches, batches[1:], strict=False):
        # No batch is closed early: the next sequence would not have fitted.
        cost = (len(batch) + 1) * lengths[batch[0]] if padded else sum(lengths[i] for i in [*batch, following[0]])
        square = (len(batch) + 1) * lengths[batch[0]] ** 2
        assert len(batch) == most or cost > budget or square > budget**2


@given(size=st.integers(0, 10**6), multiple=st.integers(1, 10**4))
def test_round_up_gives_the_least_multiple_that_covers(size: int, multiple: int) -> None:
    up = round_up(size, multiple)
    assert up % multiple == 0 and up - multiple < size <= up


def test_planning_counts_the_padding() -> None:
    lengths = [100, 60, 60]
    assert plan_batches(lengths, token_budget=220, max_sequences=9) == [[0, 1, 2]]
    assert plan_batches(lengths, token_budget=220, max_sequences=9, padded=True) == [[0, 1], [2]]
    # A long text among short ones: attention would pad each of them to 100.
    # A large budget does not ask for a large square: four of 100 tokens share one of 200 x 200, whatever the budget.
    assert plan_batches([100] * 8, token_budget=800, max_sequences=99, square_budget=200) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]
    assert plan_batches([10] * 8, token_budget=800, max_sequences=99, square_budget=200) == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert plan_batches([100, *[1] * 9], token_budget=200, max_sequences=99) == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]


def test_a_batch_that_is_large_enough_takes_no_text_that_is_much_shorter() -> None:
    lengths = [40, 38, 36, 12, 12, 12, 11, 3]
    alone = plan_batches(lengths, token_budget=512, max_sequences=99, close_tokens=100)
    assert alone == [[0, 1, 2, 3, 4], [5, 6, 7]]  # 5 x 40 positions are 1.45 times 138 tokens, 6 x 40 1.6 times 150
    assert plan_batches(lengths, token_budget=512, max_sequences=99, close_tokens=200) == [list(range(8))]
    assert plan_batches(lengths, token_budget=512, max_sequences=99) == [list(range(8))]


@pytest.mark.parametrize(("budget", "most"), [(0, 1), (-1, 1), (1, 0)])
def test_plan_batches_refuses_nothing_as_budget(budget: int, most: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        plan_batches([1], token_budget=budget, max_sequences=most)


@settings(max_examples=25, derandomize=True)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5), half=st.integers(0, 64))
def test_local_mask_is_the_window_within_a_sequence(lengths: list[int], half: int) -> None:
    batch = pack([[1] * length for length in lengths], multiple=64)
    layout = PackedLayout(
        position_ids=torch.from_numpy(batch.position_ids),
        sequence_ids=torch.from_numpy(batch.sequence_ids),
        pad_index=torch.from_numpy(batch.pad_index),
        half_window=half,
        block=64,
    )
    total = len(batch.input_ids)
    mask = local_mask(layout)
    dense = torch.zeros(total, total + 128, dtype=torch.bool)
    for block in range(total // 64):
        dense[64 * block : 64 * (block + 1), 64 * block : 64 * block + 192] = mask[block]
    dense = dense[:, 64:-64]
    place = torch.arange(total)
    near = (place[:, None] - place[None]).abs() <= half
    same = layout.sequence_ids[:, None] == layout.sequence_ids[None]
    assert torch.equal(dense, near & same)
    assert int(mask.sum()) == int((near & same).sum())  # nothing outside the stream either


def test_a_stream_of_the_wrong_multiple_is_refused() -> None:
    batch = pack([[1] * 65], multiple=65)
    tensors = {name: torch.from_numpy(getattr(batch, name)) for name in ("position_ids", "sequence_ids", "pad_index")}
    with pytest.raises(ValueError, match="65 tokens is not a multiple of 64"):
        sdpa_attention(PackedLayout(**tensors, half_window=64, block=64))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", ["modernbert-single-mean", "modernbert-token", "bert-single"])
def test_an_answer_depends_on_its_own_sequence_only(
    name: str, attention: str, reference: Callable[[str], Reference]
) -> None:
    encoder = reference(name).encoder(ATTENTIONS[attention])
    block = encoder.encoder_config.block

    @settings(max_examples=12, derandomize=True)
    @given(
        lengths=st.lists(st.integers(1, 200), min_size=2, max_size=6),
        seed=st.integers(0, 99),
        blocks=st.integers(1, 4),
        filler=st.integers(0, 199),
        data=st.data(),
    )
    def check(lengths: list[int], seed: int, blocks: int, filler: int, data: st.DataObject) -> None:
        rows = [token_ids(length, seed=seed + i) for i, length in enumerate(lengths)]
        alone = [packed_logits(encoder, [row])[0] for row in rows]
        order = data.draw(st.permutations(range(len(rows))))
        multiple = blocks * block
        together = packed_logits(encoder, [rows[i] for i in order], multiple=multiple, filler_id=filler)
        assert difference(together, [alone[i] for i in order]) <= TOLERANCE
        # Other neighbours of the same lengths: what they say must not be heard.
        others = [rows[order[0]], *(token_ids(len(rows[i]), seed=seed + 50) for i in order[1:])]
        changed = packed_logits(encoder, others, multiple=multiple, filler_id=199 - filler)
        assert difference(changed[:1], together[:1]) <= TOLERANCE

    check()
