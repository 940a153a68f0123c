"""The probes of a bundle: a few texts with the answers of transformers itself, for `nopad.runtime.selfcheck`."""

from __future__ import annotations

from collections.abc import Iterator

from nopad.export.parity.samples import PAIRS, SAMPLES
from nopad.export.reference.transformers import Reference
from nopad.runtime.bundle import Bundle
from nopad.runtime.errors import TextError
from nopad.runtime.manifest import Manifest
from nopad.runtime.probes import Probe, probe_of
from nopad.runtime.prompts import resolve_prompt
from nopad.runtime.tokenizer import open_bundle_encoder
from nopad.runtime.types import Text

LONGEST = 512  # tokens: as the gate's grid, whose texts are compared under the same bounds
LONG = (" ".join(SAMPLES[:7]), " ".join(SAMPLES))  # some 200 and 500 tokens
SINGLE = ("ok", SAMPLES[0], SAMPLES[7], SAMPLES[-1])  # of 3 to 100 tokens


def make_probes(bundle: Bundle, reference: Reference) -> tuple[Probe, ...]:
    """Texts of several lengths that suit the bundle's task, with the reference's answers.

    A text of which the bundle's tokenizer makes other ids than the reference's is left out: the gate has failed on it.
    """
    manifest = bundle.manifest
    encoder, prompt = open_bundle_encoder(bundle), resolve_prompt(manifest, None, None)
    mask = encoder.token_id(manifest.mask_token) if manifest.mask_token else None
    probes = []
    for text in _texts(manifest):
        (tokens,) = encoder.encode([text], prompt)
        ids, types = reference.encode(text, manifest.max_length)
        if isinstance(tokens, TextError) or tokens.input_ids != ids or len(ids) > LONGEST:
            continue
        masked = ids.index(mask) if manifest.task == "fill-mask" and mask in ids else None
        probes.append(probe_of(text, reference.answer(text, ids, types), masked))
    return tuple(probes)


def _texts(manifest: Manifest) -> Iterator[Text]:
    if manifest.task == "rerank":
        yield from (*PAIRS, *((PAIRS[0][0], long) for long in LONG))
    elif manifest.task == "fill-mask":
        yield from (f"{manifest.mask_token} {text}" for text in (*SINGLE, *LONG))
    else:
        yield from (*SINGLE, *LONG)
        if manifest.task == "text-classification":
            yield PAIRS[0]
