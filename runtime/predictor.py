"""`load`: from a bundle folder to a `Model`, on the engine, file and settings that suit this machine."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from nopad.runtime.bundle import open_bundle
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.chain import EngineChain
from nopad.runtime.engines.gpus import gpu_at_hand
from nopad.runtime.engines.hardware import PRECISIONS
from nopad.runtime.engines.selection import EngineChoice, find_candidates
from nopad.runtime.errors import UsageError
from nopad.runtime.inference import Inference
from nopad.runtime.long_texts import check_merge
from nopad.runtime.model import Model
from nopad.runtime.prompts import resolve_prompt
from nopad.runtime.scheduler.events import Observer
from nopad.runtime.scheduler.queue import Limits
from nopad.runtime.tokenizer import open_bundle_encoder
from nopad.runtime.tune_file import tuned_here
from nopad.runtime.types import LongTexts, Merge, Truncation

__all__ = ["Model", "load"]
log = logging.getLogger("nopad")


def load(
    path: str | Path | None = None,
    *,
    engine: EngineChoice = "auto",
    precision: str | None = None,
    file: str | None = None,
    fallback: bool = True,
    threads: int | None = None,
    truncation: Truncation = "truncate",
    stride: int | None = None,
    merge: Merge | None = None,
    token_budget: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    cache_folder: str | Path | None = None,
    limits: Limits | None = None,
    observer: Observer | None = None,
    allow_unverified: bool = False,
    allow_host_code: bool = False,
    verify: bool = True,
) -> Model:
    """Open a bundle folder; without `path`, the embedded default.

    `engine`: `auto` chooses the first engine that this machine can run and that has passed the parity gate, in the
    order that `nopad doctor` prints; where it fails, the next engine answers (`Model.status` tells). A name from
    `nopad.runtime.engines.base.ENGINES` selects that engine alone; a list of names is your own order; a factory is an
    engine of your own, for tests.
    `precision`, `file`: use only files of this precision, or only this file. None: on a CPU the most exact precision of
    the bundle, never a lower one unasked; on a GPU the fastest. "auto": the fastest that is verified, on a CPU by the
    measured table. "bf16" on a CPU: the bundle's fp32 file answers where the CPU has no such instructions, or where
    bf16 gives NaN, and nopad says so.
    What `nopad tune` found on this machine decides what is left open of `engine`, `precision` and `file`, if it agrees
    with those that are given, and then also `token_budget` and `threads`.
    `fallback`: False raises an error where another engine would answer instead of the chosen engine.
    `threads`: of the engine on the CPU; None: the engine library's own choice.
    `truncation`: of a text that is too long, `truncate` reads the first tokens and says so in the answer (`tokens`,
    `tokens_used`), `window` reads all of it in windows that share `stride` tokens, whose answers `merge` (mean, max,
    first) makes one (docs/long-texts.md), and `error` refuses it. Each call may say otherwise.
    `token_budget`: tokens of one micro-batch; a longer text runs alone. None: what suits the engine.
    `prompt_name`, `prompt`: the prompt that is put before every text, by its name in the manifest's `prompts` or as a
    string; None: the bundle's default prompt.
    `cache_folder`: where OpenVINO keeps the model as compiled for this CPU (for ModernBERT-base in bf16 300 MB), so
    that the next load takes a quarter of the time; None: it compiles at every load.
    `limits`: the most texts and tokens of coroutines that may wait; more are refused (`OverloadedError`).
    `observer`: is called with what happens to requests and micro-batches (`nopad.runtime.scheduler.events`).
    `allow_unverified`: open a bundle that has not passed the parity gate.
    `allow_host_code`: run the native code in a version-compatible TensorRT engine; only if you trust its maker.
    `verify`: check the SHA-256 of every file before it is opened; files that are not needed are not read
    (`nopad inspect` checks all).

    Raises `BundleError` or a subclass, `UsageError`, `EnvironmentProblem`.
    """
    if any(number is not None and number < 1 for number in (token_budget, threads)):
        raise UsageError(f"token_budget and threads must be positive, got {token_budget} and {threads}")
    long_texts = LongTexts(truncation=truncation, stride=stride, merge=merge)
    bundle = open_bundle(path, verify=False)
    check_merge(merge, bundle.manifest.task)
    if verify:
        bundle.check(bundle.common_files())
    sm = functools.cache(gpu_at_hand)
    tuned = tuned_here(bundle, sm, engine=engine, precision=precision, file=file)
    if tuned is not None:
        token_budget, threads = token_budget or tuned.token_budget, threads or tuned.threads
    candidates = find_candidates(
        bundle,
        engine,
        EngineOptions(
            threads=threads,
            pad_token_id=bundle.manifest.pad_token_id,
            cache_folder=Path(cache_folder) if cache_folder is not None else None,
            allow_host_code=allow_host_code,
        ),
        sm=sm,
        precision=precision,
        file=file,
        allow_unverified=allow_unverified,
        verify=verify,
    )
    if tuned is not None:
        winner = (tuned.engine, tuned.file)
        candidates.sort(key=lambda candidate: (candidate.name, candidate.artifact.file) != winner)
    before = resolve_prompt(bundle.manifest, prompt_name, prompt)
    inference = Inference(
        bundle=bundle,
        encoder=open_bundle_encoder(bundle),
        candidates=candidates,
        token_budget=token_budget,
        fallback=fallback,
    )
    _say_if_lowered(candidates[0].artifact.precision, inference.chain)
    return Model(inference, prompt=before, long_texts=long_texts, limits=limits, observer=observer)


def _say_if_lowered(wanted: str, chain: EngineChain) -> None:
    """Warn where no file in the precision that comes first could be opened, and a less exact one answers."""
    precision = chain.chosen.artifact.precision
    if {wanted, precision} <= set(PRECISIONS) and PRECISIONS.index(precision) > PRECISIONS.index(wanted):
        log.warning("%s answers: no file in %s can be opened here", chain.chosen, wanted)
