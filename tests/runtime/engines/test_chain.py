"""Visible fallback: the next engine answers a batch that an engine fails on, and the model reports it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nopad.model.packing import PackedBatch, pack
from nopad.runtime.cli import run
from nopad.runtime.engines.chain import Candidate, EngineChain
from nopad.runtime.engines.fake import FakeEngine
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.errors import (
    BundleError,
    EngineError,
    EnvironmentProblem,
    ShapeError,
    UsageError,
)
from nopad.runtime.manifest import Artifact
from nopad.runtime.predictor import load
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import FloatArray, Prediction

NAME = "modernbert-single-mean"
LONG = "a long film " * 20
ARTIFACT = Artifact(file="x", target="onnx", precision="fp32", layout="packed", inputs={}, outputs={})
PROBE = pack([[1, 2, 3]])
BATCH = pack([[5] * 70, [6] * 3])
Answer = Callable[[PackedBatch], FloatArray]


def filled(value: float) -> Answer:
    return lambda batch: np.full((len(batch.lengths), 3), value, dtype=np.float32)


def failing(error: Exception) -> Answer:
    def answer(batch: PackedBatch) -> FloatArray:
        raise error

    return answer


class Named(FakeEngine):
    """A fake engine with a name and profiles of its own, which can be opened again."""

    def __init__(self, name: str, answer: Answer, profiles: tuple[ShapeProfile, ...] = ()) -> None:
        super().__init__(answer)
        self.name = name
        self.profiles = profiles
        self.opened = 0

    def open(self) -> Named:
        self.opened += 1
        self.closed = False
        return self


def refusing(error: Exception) -> Callable[[], Any]:
    def open_it() -> Any:
        raise error

    return open_it


def chain_of(*engines: Named, **options: Any) -> EngineChain:
    candidates = [Candidate(name=engine.name, artifact=ARTIFACT, open=engine.open) for engine in engines]
    return EngineChain(candidates, PROBE, **options)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How the first engine fails on long texts, and what its report must say."""

    answer: Answer
    reason: str
    state: str = "ready"


def only_long(answer: Answer) -> Answer:
    """Right on the self-check and on short texts, `answer` on long ones."""
    return lambda batch: answer(batch) if batch.lengths.max() > 20 else filled(1.0)(batch)


FAULTS = {
    "engine error": Fault(answer=failing(EngineError("kernel launch failed")), reason="kernel launch failed"),
    "CUDA out of memory": Fault(answer=failing(EngineError("cudaErrorMemoryAllocation")), reason="MemoryAllocation"),
    "a library's own exception": Fault(answer=failing(RuntimeError("boom")), reason="RuntimeError: boom"),
    "NaN": Fault(answer=filled(np.nan), reason="NaN or infinity"),
    "infinity": Fault(answer=filled(np.inf), reason="NaN or infinity"),
    "all zeros": Fault(answer=filled(0.0), reason="nothing but zeros"),
    "shape outside all profiles": Fault(answer=failing(ShapeError("fits no profile")), reason="fits no profile"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failed_batch_is_answered_by_the_next_engine_and_reported(
    name: str, bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fault = FAULTS[name]
    texts = ["short", LONG, "short too"]
    with load(bundle(NAME), threads=1) as honest:
        wanted = honest.predict(texts, return_logits=True)
    with load(bundle(NAME), engine=[Named("broken", only_long(fault.answer)), OnnxCpuEngine], token_budget=64) as model:
        assert not model.status().degraded and model.status().engines[1].state == "waiting"
        answers = model.predict(texts, return_logits=True)
        status = model.status()
    assert [answer.engine for answer in answers] == ["broken", "onnx-cpu", "broken"]
    assert answers[1].logits == pytest.approx(wanted[1].logits, abs=1e-5)
    first, second = status.engines
    assert status.degraded and (first.failures, first.batches, second.batches) == (1, 1, 1)
    assert first.state == fault.state and fault.reason in (first.reason or "")
    print(f"| {name} | {answers[1].engine} | {first.reason} |")


@pytest.mark.parametrize(
    "error", [EnvironmentProblem("no GPU"), BundleError("built for sm75, this GPU is sm86"), UsageError("no")]
)
def test_a_refused_engine_is_passed_over_and_its_reason_kept(error: Exception) -> None:
    second = Named("second", filled(2.0))
    chain = EngineChain(
        [
            Candidate(name="first", artifact=ARTIFACT, open=refusing(error)),
            Candidate(name="second", artifact=ARTIFACT, open=second.open),
        ],
        PROBE,
    )
    assert chain.chosen.name == "second" and chain.run(BATCH).by.engine == "second"
    status = chain.status()
    assert not status.degraded  # it was chosen at load
    assert (status.engines[0].state, status.engines[0].reason) == ("refused", str(error))


@pytest.mark.parametrize("answer", [filled(0.0), filled(np.nan), failing(EngineError("illegal address"))])
def test_an_engine_that_fails_its_self_check_is_closed_and_refused(answer: Answer) -> None:
    broken = Named("broken", answer)
    chain = chain_of(broken, Named("second", filled(2.0)))
    assert broken.closed and chain.chosen.name == "second"
    assert "failed its self-check" in (chain.status().engines[0].reason or "")


def test_no_engine_at_all_says_every_reason() -> None:
    candidates = [
        Candidate(name="tensorrt", artifact=ARTIFACT, open=refusing(EnvironmentProblem("no GPU"))),
        Candidate(name="onnx-cpu", artifact=ARTIFACT, open=refusing(BundleError("damaged"))),
    ]
    with pytest.raises(EnvironmentProblem, match="tensorrt: no GPU; onnx-cpu: damaged") as caught:
        EngineChain(candidates, PROBE)
    assert isinstance(caught.value.__cause__, ExceptionGroup) and len(caught.value.__cause__.exceptions) == 2
    with pytest.raises(BundleError, match="^damaged$"):  # a single reason is the error itself
        EngineChain(candidates[1:], PROBE)


def test_when_every_engine_fails_on_a_batch_all_causes_are_told() -> None:
    chain = chain_of(Named("a", only_long(failing(EngineError("one")))), Named("b", only_long(filled(0.0))))
    with pytest.raises(EngineError, match="every engine failed: one; engine b answered nothing but zeros") as caught:
        chain.run(BATCH)
    assert isinstance(caught.value.__cause__, ExceptionGroup) and len(caught.value.__cause__.exceptions) == 2
    assert chain.run(PROBE).by.engine == "a"  # a single bad batch has no consequences


def test_without_fallback_the_error_is_the_engines() -> None:
    chain = chain_of(Named("a", only_long(failing(EngineError("one")))), Named("b", filled(2.0)), fallback=False)
    with pytest.raises(EngineError, match="^one$"):
        chain.run(BATCH)
    assert [engine.name for engine in chain.status().engines] == ["a"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_repeated_failures_rest_the_engine_and_a_probe_brings_it_back() -> None:
    clock = Clock()
    first, second = Named("first", only_long(failing(EngineError("lost")))), Named("second", filled(2.0))
    chain = chain_of(first, second, failures=3, retry_seconds=30, clock=clock)
    for _ in range(3):
        assert chain.run(BATCH).by.engine == "second"
    assert chain.status().engines[0].state == "resting"
    asked = len(first.batches)
    assert [chain.run(batch).by.engine for batch in (BATCH, PROBE)] == ["second"] * 2
    assert len(first.batches) == asked and chain.status().engines[0].failures == 3  # it was not asked

    clock.now = 31
    first.answer = failing(EngineError("still lost"))  # the probe fails too: no user's batch is risked
    assert chain.run(BATCH).by.engine == "second" and first.batches[asked:] == [PROBE, PROBE]
    assert first.opened == 2 and first.closed  # the old one failed, and a new one, too
    assert "still lost" in (chain.status().engines[0].reason or "")
    assert chain.run(BATCH).by.engine == "second" and len(first.batches) == asked + 2  # rests again

    clock.now = 62
    first.answer = filled(1.0)
    assert chain.run(BATCH).by.engine == "first" and first.opened == 3
    assert chain.status().engines[0].state == "ready" and chain.status().degraded  # what happened stays said
    assert chain.run(BATCH).by.engine == "first"


def test_an_engine_that_has_recovered_is_not_opened_anew() -> None:
    clock = Clock()
    first = Named("first", only_long(failing(EngineError("busy"))))
    chain = chain_of(first, Named("second", filled(2.0)), failures=1, retry_seconds=30, clock=clock)
    assert chain.run(BATCH).by.engine == "second"
    clock.now, first.answer = 31, filled(1.0)
    assert chain.run(BATCH).by.engine == "first" and (first.opened, first.closed) == (1, False)


def test_failures_that_do_not_follow_each_other_rest_nothing() -> None:
    chain = chain_of(Named("first", only_long(failing(EngineError("x")))), Named("second", filled(2.0)), failures=2)
    for _ in range(4):
        assert chain.run(BATCH).by.engine == "second" and chain.run(PROBE).by.engine == "first"
    assert chain.status().engines[0].state == "ready"


def test_shapes_outside_the_profiles_never_rest_an_engine() -> None:
    chain = chain_of(Named("first", only_long(failing(ShapeError("x")))), Named("second", filled(2.0)), failures=1)
    assert {chain.run(BATCH).by.engine for _ in range(5)} == {"second"}
    assert chain.status().engines[0].state == "ready" and chain.status().engines[0].failures == 5


def test_the_last_engine_never_rests() -> None:
    only = Named("only", only_long(failing(EngineError("x"))))
    chain = EngineChain(
        [
            Candidate(name="gone", artifact=ARTIFACT, open=refusing(EnvironmentProblem("no GPU"))),
            Candidate(name="only", artifact=ARTIFACT, open=only.open),
        ],
        PROBE,
        failures=1,
    )
    for _ in range(3):
        with pytest.raises(EngineError, match="^x$"):
            chain.run(BATCH)
    assert chain.run(PROBE).by.engine == "only"


def test_a_fallback_that_cannot_open_is_refused_once() -> None:
    opened = 0

    def open_it() -> Any:
        nonlocal opened
        opened += 1
        raise EnvironmentProblem("no memory")

    first = Named("first", only_long(failing(EngineError("x"))))
    chain = EngineChain(
        [
            Candidate(name="first", artifact=ARTIFACT, open=first.open),
            Candidate(name="second", artifact=ARTIFACT, open=open_it),
        ],
        PROBE,
    )
    for _ in range(2):
        with pytest.raises(EngineError, match="x"):
            chain.run(BATCH)
    assert opened == 1 and chain.status().engines[1].state == "refused"


def test_the_threads_are_those_of_the_engine_that_was_chosen() -> None:
    first = Named("first", filled(1.0))
    first.threads = 3
    chain = chain_of(first, Named("second", filled(2.0)))
    assert chain.threads == 3
    chain.close()
    assert chain.threads is None


def test_close_closes_every_engine_and_nothing_opens_after() -> None:
    first, second = Named("first", only_long(failing(EngineError("x")))), Named("second", filled(2.0))
    chain = chain_of(first, second)
    chain.run(BATCH)
    chain.close()
    chain.close()
    assert first.closed and second.closed
    with pytest.raises(EngineError):
        chain.run(BATCH)


def test_many_threads_open_the_fallback_once() -> None:
    gate = threading.Barrier(8)
    second = Named("second", filled(2.0))

    def slow(batch: PackedBatch) -> FloatArray:
        if batch is BATCH:
            gate.wait(timeout=20)
            raise EngineError("lost")
        return filled(1.0)(batch)

    chain = chain_of(Named("first", slow), second, failures=100)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(chain.run, [BATCH] * 8))
    assert {answer.by.engine for answer in answers} == {"second"} and second.opened == 1
    first, other = chain.status().engines
    assert (first.failures, other.batches) == (8, 8)


# --- through the model


def test_micro_batches_fit_the_engines_profiles(plain_bundle: Callable[[str], Path]) -> None:
    profiles = (
        ShapeProfile(tokens=(64, 64, 128), sequences=(1, 2, 4), longest=(1, 16, 32)),
        ShapeProfile(tokens=(64, 256, 256), sequences=(1, 1, 2), longest=(1, 64, 128)),
    )
    engine = Named("shaped", filled(1.0), profiles)
    texts = ["film " * n for n in (1, 2, 3, 4, 1, 20, 25, 30, 4, 2)]
    with load(plain_bundle(NAME), engine=[engine, OnnxCpuEngine]) as model:
        engine.batches.clear()
        answers: Sequence[Prediction] = model.predict(texts)
    assert {answer.engine for answer in answers} == {"shaped"}
    assert all(any(profile.fits(batch) for profile in profiles) for batch in engine.batches)


def test_a_text_beyond_every_profile_goes_to_the_next_engine(plain_bundle: Callable[[str], Path]) -> None:
    profile = ShapeProfile(tokens=(64, 64, 64), sequences=(1, 2, 4), longest=(1, 16, 32))

    def strict(batch: PackedBatch) -> FloatArray:
        if not profile.fits(batch):
            raise ShapeError("fits no profile")
        return filled(1.0)(batch)

    with load(plain_bundle(NAME), engine=[Named("shaped", strict, (profile,)), OnnxCpuEngine]) as model:
        assert [answer.engine for answer in model.predict([LONG, "a film"])] == ["onnx-cpu", "shaped"]
        assert model.status().degraded


def test_predict_says_which_engine_answered_and_why(
    bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle(NAME)
    real = OnnxCpuEngine.run
    failed = False

    def once(self: OnnxCpuEngine, batch: PackedBatch) -> FloatArray:
        nonlocal failed
        if batch.lengths.max() > 20 and not failed:
            failed = True
            raise EngineError("CUDA out of memory")
        return real(self, batch)

    monkeypatch.setattr(OnnxCpuEngine, "run", once)
    capsys.readouterr()
    assert run(["predict", str(folder), LONG, "--engine", "onnx-cpu,onnx-cpu", "--json", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert '"engine": "onnx-cpu"' in out
    assert "engine onnx-cpu (fp32) failed on 1 batches, another answered: CUDA out of memory" in err
