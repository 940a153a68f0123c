"""Texts -> explanations: what is asked of a method, which variants are run, and what their answers say.

Occlusion and Shapley values need only answers, so they work on every engine, and all variants of a text go through the
model's own queue and into packed micro-batches. Gradients need an engine that has them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nopad.model.head import Head
from nopad.model.packages import install_hint, missing
from nopad.runtime.answering import Answered, Answering, Asking
from nopad.runtime.engines.base import ENGINES, Differentiable
from nopad.runtime.errors import DeadlineError, EngineError, EnvironmentProblem, TextError, UsageError
from nopad.runtime.explain import shapley
from nopad.runtime.explain.perturbed import Perturbed, perturb
from nopad.runtime.explain.units import Unit, units_of
from nopad.runtime.inference import Inference, listed
from nopad.runtime.scheduler.request import Done
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import (
    BYS,
    METHODS,
    REMOVALS,
    AnsweredBy,
    Attribution,
    By,
    Explanation,
    Failure,
    FloatArray,
    Method,
    Removal,
    Text,
)

GRADIENTS: tuple[Method, ...] = ("integrated-gradients", "gradient-x-input")
OTHERS = tuple(method for method in METHODS if method not in GRADIENTS)
# Runs beside those that a method needs at least, and gradients, unless the caller says otherwise (docs/explain.md).
SHAPLEY_RUNS = 512
MOST_GRADIENTS = 256
DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How texts are to be explained. Raises `UsageError` for what makes no sense."""

    method: Method = "occlusion"
    by: By = "word"
    label: str | None = None  # None: each text's own answer
    budget: int | None = None  # the most texts that are run for one text, or gradients; None: what suits the method
    removal: Removal = "drop"

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, value, known in (
            ("method", self.method, METHODS),
            ("by", self.by, BYS),
            ("removal", self.removal, REMOVALS),
        ):
            if value not in known:
                raise UsageError(f"{name} is one of {', '.join(known)}, not {value!r}")
        if self.budget is not None and self.budget < 1:
            raise UsageError(f"budget must be at least 1, got {self.budget}")


class Taken(NamedTuple):
    """A text taken apart, and what is run of it."""

    tokens: Tokens
    units: tuple[Unit, ...]
    coalitions: shapley.Coalitions  # of units; before them the whole text is run, and nothing of it
    perturbed: Perturbed


class Explainer:
    """What explains the texts of a call. Raises `UsageError` where the model, its engine or its labels cannot."""

    def __init__(self, answering: Answering, asked: Asked, asking: Asking) -> None:
        self._answering, self._asked, self._asking = answering, asked, asking
        self._inference: Inference = answering.inference
        self._head: Head = self._inference.manifest.head
        if self._head.task not in ("text-classification", "rerank"):
            raise UsageError(
                f"explain() is for text-classification and rerank, whose answer is a score; this bundle does "
                f"{self._head.task}"
            )
        if asked.label is not None and asked.label not in self._head.labels:
            raise UsageError(f"the model has no label {asked.label!r}; it has {', '.join(self._head.labels)}")
        self._mask = self._inference.mask_id
        if asked.removal == "mask" and self._mask is None:
            raise UsageError(
                "removal='mask' needs a mask token, and this model's tokenizer has none: use removal='drop'"
            )
        if asked.method in GRADIENTS:
            self._require_gradients()

    def answers(self, texts: Iterable[Text]) -> Iterator[Explanation | Failure]:
        """`explain` of each text, lazily and in order; a `Failure` where one cannot be explained."""
        for index, text in enumerate(listed(texts)):
            try:
                yield self.explain(text)
            except (TextError, EngineError) as error:
                yield Failure(index=index, error=error)

    def explain(self, text: Text) -> Explanation:
        """The explanation of one text. Raises `TextError` for one that cannot be explained, else as an answer does."""
        tokens, units = self._units(text)
        if self._asked.method in GRADIENTS:
            return self._by_gradients(tokens, units)
        taken = self.take(tokens, units)
        return self.read(taken, self._answering.run(taken.perturbed.texts, self._asking))

    async def answer(self, texts: Sequence[Text], most: int | None = None) -> Answered[Explanation]:
        """`answers` for coroutines, one text after the other; where one cannot be read, only such `Failure`s.

        Of its seconds, `running` is the call's share of the engine's, by tokens, and `queued` the rest of the wait for
        it. `most`: tokens that all runs together may have, counted before anything is run. Raises `UsageError` above
        that, `DeadlineError`, and as an answer does.
        """
        try:
            async with asyncio.timeout(self._asking.timeout):
                return await self._answer(texts, most)
        except TimeoutError:
            raise DeadlineError("the deadline passed before the explanation was there") from None

    async def _answer(self, texts: Sequence[Text], most: int | None) -> Answered[Explanation]:
        started = time.monotonic()
        self._inference.require_open()
        read = await asyncio.to_thread(self._read_all, texts)
        bad = [Failure(index=index, error=each) for index, each in enumerate(read) if isinstance(each, TextError)]
        if bad:
            return Answered(answers=[*bad], tokenizing=time.monotonic() - started, queued=0.0, running=0.0)
        good = [each for each in read if not isinstance(each, TextError)]
        runs = sum(self._runs(len(units)) * tokens.used for tokens, units in good)
        if most is not None and runs > most:
            raise UsageError(self._too_much(len(good), runs, most))
        answers: list[Explanation | Failure] = []
        tokenizing, waited, running, batch_tokens = time.monotonic() - started, 0.0, 0.0, 0
        for tokens, units in good:
            begun = time.monotonic()
            if self._asked.method in GRADIENTS:
                answers.append(await asyncio.to_thread(self._by_gradients, tokens, units))
                running += time.monotonic() - begun
                continue
            taken = await asyncio.to_thread(self.take, tokens, units)
            asked = time.monotonic()
            done = await self._answering.arun(taken.perturbed.texts, self._asking)
            waited += time.monotonic() - asked
            tokenizing += asked - begun
            running += _share(done, taken.perturbed.texts)
            batch_tokens = max(batch_tokens, *(each.batch_tokens for each in done))
            answers.append(await asyncio.to_thread(self.read, taken, [each.value for each in done]))
        return Answered(
            answers=answers,
            tokenizing=tokenizing,
            queued=max(0.0, waited - running) if waited else 0.0,
            running=running,
            batch_tokens=batch_tokens,
        )

    def _read_all(self, texts: Sequence[Text]) -> list[tuple[Tokens, tuple[Unit, ...]] | TextError]:
        found: list[tuple[Tokens, tuple[Unit, ...]] | TextError] = []
        for text in texts:
            try:
                tokens, units = self._units(text)
                self._runs(len(units))
                found.append((tokens, units))
            except TextError as error:
                found.append(error)
        return found

    def _too_much(self, texts: int, tokens: int, most: int) -> str:
        asked = self._asked
        todo = [
            *(["fewer texts"] if texts > 1 else []),
            "shorter ones" if texts > 1 else "a shorter text",
            *(["unit sentence"] if asked.by != "sentence" and asked.method not in GRADIENTS else []),
            *(["a smaller budget"] if asked.method in ("shapley", "integrated-gradients") else []),
            *(["method occlusion"] if asked.method == "shapley" else []),
        ]
        what = "this text" if texts == 1 else f"these {texts} texts"
        return (
            f"explaining {what} by {asked.method} takes up to {tokens} tokens (runs times tokens), and {most} are "
            f"allowed in one request: send {', or '.join(todo)}"
        )

    def take(self, tokens: Tokens, units: tuple[Unit, ...]) -> Taken:
        """What is to be run for a text. Raises `TextError` where the budget does not suffice for it."""
        players, asked = len(units), self._asked
        budget = self._budget(players)
        chosen = shapley.all_but_one(players) if asked.method == "occlusion" else shapley.choose(players, budget)
        kept = np.concatenate((np.ones((1, players), dtype=bool), np.zeros((1, players), dtype=bool), chosen.members))
        mask = self._mask if asked.removal == "mask" else None
        stand_in = self._inference.manifest.pad_token_id if self._mask is None else self._mask
        return Taken(tokens, units, chosen, perturb(tokens, units, kept, mask=mask, stand_in=stand_in))

    def read(self, taken: Taken, results: Sequence[tuple[FloatArray, AnsweredBy]]) -> Explanation:
        """The explanation, from what `Answering.run` returned of `perturbed.texts`."""
        logits = taken.perturbed.logits([row for row, _ in results], self._head, self._asking.long.merge)
        label = self._label(logits[0])
        everybody, nobody, *rest = self._head.log_odds(logits, label)
        answers = np.array(rest, dtype=np.float64)
        if self._asked.method == "occlusion":
            scores = everybody - answers
        else:
            scores = shapley.values(taken.coalitions, answers, nobody, everybody)
        return self._explanation(
            taken.tokens, taken.units, logits[0], label, scores, base=nobody, by=results[0][1], runs=len(results)
        )

    def _units(self, text: Text) -> tuple[Tokens, tuple[Unit, ...]]:
        (tokens,) = self._inference.encode([text], self._asking.prompt, self._asking.long)
        if isinstance(tokens, TextError):
            raise tokens
        return tokens, units_of(tokens, self._asked.by, self._asking.prompt)

    def _runs(self, players: int) -> int:
        """The most runs, or gradients, for a text of so many units. Raises `TextError` as `_budget`."""
        if self._asked.method in GRADIENTS:
            return 1 if self._asked.method == "gradient-x-input" else self._asked.budget or MOST_GRADIENTS
        budget = self._budget(players)
        return players + 2 if self._asked.method == "occlusion" else min(budget, 2**players)

    def _budget(self, players: int) -> int:
        """The most runs for a text of so many units. Raises `TextError` where the caller's are too few."""
        asked = self._asked
        least = players + 2 if asked.method == "occlusion" else shapley.least_budget(players)
        if asked.budget is None:
            return least if asked.method == "occlusion" else 2 * players + 2 + SHAPLEY_RUNS
        if asked.budget < least:
            coarser = {"token": "word or sentence", "word": "sentence"}.get(asked.by)
            todo = f"; raise it, or explain by {coarser}" if coarser else "; raise it"
            raise TextError(
                f"{asked.method} of a text of {players} {asked.by}s needs a budget of at least {least} runs, not "
                f"{asked.budget}{todo}"
            )
        return asked.budget

    def _label(self, logits: FloatArray) -> int:
        if self._asked.label is not None:
            return self._head.labels.index(self._asked.label)
        return int(self._head.best(logits) if self._head.one_label else logits.argmax())

    def _require_gradients(self) -> None:
        engine = self._inference.chain.engine
        if not isinstance(engine, Differentiable):
            with_them = [name for name, entry in ENGINES.items() if "torch" in entry.targets]
            raise UsageError(
                f"{self._asked.method} needs gradients, and engine {self._inference.chain.chosen.name} has none: it "
                f"can do {' and '.join(OTHERS)}. For gradients, export the bundle with --target torch too, and open "
                f"it with engine {' or '.join(with_them)}"
            )
        if missing(["captum"]):
            raise EnvironmentProblem(f"{self._asked.method} needs the package captum: {install_hint('explain')}")

    def _by_gradients(self, tokens: Tokens, units: tuple[Unit, ...]) -> Explanation:
        from nopad.runtime.explain import gradients

        self._inference.require_open()
        self._require_gradients()
        engine: Any = self._inference.chain.engine
        found = gradients.attribute(
            engine.differentiable(),
            tokens,
            [place for unit in units for place in unit.tokens],
            head=self._head,
            label=self._label,
            baseline=self._inference.manifest.pad_token_id if self._mask is None else self._mask,
            multiple=self._inference.token_multiple,
            merge=self._asking.long.merge,
            integrated=self._asked.method == "integrated-gradients",
            budget=self._asked.budget or MOST_GRADIENTS,
        )
        scores = np.array([found.scores[list(unit.tokens)].sum() for unit in units])
        by = AnsweredBy(engine.name, self._inference.artifact.precision)
        return self._explanation(
            tokens, units, found.logits, found.label, scores, base=found.base, by=by, runs=found.gradients
        )

    def _explanation(
        self,
        tokens: Tokens,
        units: Sequence[Unit],
        logits: FloatArray,
        label: int,
        scores: DoubleArray,
        *,
        base: float,
        by: AnsweredBy,
        runs: int,
    ) -> Explanation:
        parts = tokens.text if isinstance(tokens.text, tuple) else (tokens.text,)
        texts = [parts[0][len(self._asking.prompt) :], *parts[1:]]
        asked = self._asked
        return Explanation(
            label=self._head.labels[label],
            score=float(self._head.probabilities(logits)[label]),
            value=float(self._head.log_odds(logits, label)),
            base_value=float(base),
            attributions=tuple(
                Attribution(
                    start=unit.start,
                    end=unit.end,
                    text=texts[unit.part][unit.start : unit.end],
                    score=float(score),
                    part=unit.part,
                )
                for unit, score in zip(units, scores, strict=True)
            ),
            method=asked.method,
            by=asked.by,
            removal="mask" if asked.method in GRADIENTS else asked.removal,
            runs=runs,
            tokens=tokens.tokens,
            tokens_used=tokens.used,
            windows=len(tokens.windows) or 1,
            engine=by.engine,
            precision=by.precision,
        )


def _share(done: Sequence[Done[Any]], texts: Sequence[Tokens]) -> float:
    """Of the seconds of the micro-batches that these texts were in, their part by tokens."""
    return sum(each.ran * text.used / each.batch_tokens for each, text in zip(done, texts, strict=True))
