"""The FLOPs of an encoder, and what a packed micro-batch costs an engine in time and in memory.

FLOPs (a multiply-add is two) are those of matrix products and of attention:

- products, per token: 2 * layers * (4 h^2 + 3 h i) with a gated MLP (ModernBERT), 2 h i with a plain MLP (BERT); h is
  the hidden size, i the intermediate size;
- attention, per layer: 4 h for every pair of a query and a key.

A text of L tokens needs L^2 pairs in a global layer and `pairs_in_window` in a local layer. An engine executes more,
filler and padding included: in a local layer each token of the stream meets the keys of the previous, own and next
block, and a global layer runs on the padded square, sequences * longest^2 pairs. Every run also launches its kernels,
counted as the work that the GPU could have done meanwhile.

Norms, activations, embeddings and heads are left out: below 1 % of a base model's FLOPs. What is not modelled: kernels
that are tuned for the opt shape and slower away from it, and small matrices that do not fill the GPU. Both make narrow
profiles better than this model says. Knows no engine and no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nopad.model.config import EncoderConfig, half_window_of
from nopad.runtime.errors import UsageError

# One run's launches in FLOPs per layer: about 10 kernels (norms, products, rotary, attention, activation) of 4 us, at
# the 50 TFLOP/s that half-precision products sustain on GPUs of the T4 to A10 class (65 and 125 at their peak). An
# assumption, not a measurement: 200 tokens of ModernBERT-base. Larger GPUs lose more in a launch, CUDA graphs less.
LAUNCH_FLOPS_PER_LAYER = 10 * 4e-6 * 50e12
# Of activation memory: what every engine takes for its matrix products, and rotary angles, indices and alignment.
WORKSPACE_BYTES = 16 << 20
UNLISTED = 1.1


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Costs of an architecture. `keeps_scores`: the engine writes the global layers' scores to memory (not fused)."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    local_layers: int
    global_layers: int
    gated: bool
    half_window: int  # tokens that a local layer sees on each side
    block: int  # tokens of one attention block
    element_bytes: int  # of activations
    keeps_scores: bool

    @property
    def launch_flops(self) -> float:
        """What a run costs besides its work."""
        return LAUNCH_FLOPS_PER_LAYER * (self.local_layers + self.global_layers)

    def flops(self, tokens: int, *, local_pairs: int, global_pairs: int) -> float:
        """FLOPs of so many tokens, and so many (query, key) pairs in each local and in each global layer."""
        h, layers = self.hidden_size, self.local_layers + self.global_layers
        products = 2 * layers * (4 * h**2 + (3 if self.gated else 2) * h * self.intermediate_size)
        pairs = self.local_layers * local_pairs + self.global_layers * global_pairs
        return float(products * tokens + 4 * h * pairs)

    def text_flops(self, lengths: Sequence[int]) -> float:
        """FLOPs that texts of these lengths need, nothing padded: the work that counts as useful."""
        local = sum(pairs_in_window(length, self.half_window) for length in lengths)
        return self.flops(sum(lengths), local_pairs=local, global_pairs=sum(length**2 for length in lengths))

    def work(self, tokens: int, sequences: int, longest: int) -> float:
        """FLOPs that an engine executes for a micro-batch of this shape."""
        return self.flops(tokens, local_pairs=tokens * 3 * self.block, global_pairs=sequences * longest**2)

    def memory(self, tokens: int, sequences: int, longest: int) -> int:
        """Bytes of activations that an engine reserves for a profile with these maxima, met all at once.

        The residual stream and the mask of the local layers live throughout; beside them the largest of: local
        attention (q, keys and values beside their neighbours, scores that no kernel fuses), the MLP, and global
        attention (q, k, v of the stream; padded q, k, v and output; with `keeps_scores` also `sequences * heads *
        longest^2` scores, in the activations' type and in fp32).

        Beside the "Total Activation Memory" that TensorRT-RTX 1.7 reports at build, for hidden sizes 128 to 1,024 and
        profiles of 1,024 to 16,384 tokens, this is 1.1 to 1.6 times as much (BERT without padding: 2.0). In half
        precision it fuses global attention on sm75, sm86, sm89 and sm120 (`keeps_scores=False`); in fp32 it keeps the
        scores. Not compared: TensorRT, which builds only where its GPU is. Weights come on top.
        """
        wide = self.hidden_size * self.element_bytes
        score = self.element_bytes + 4
        local = self.local_layers > 0
        lasting = 4 * wide + (5 * 3 * self.block if local else 0)  # the mask: a bool and a float
        attending = 7 * wide + self.num_heads * 3 * self.block * score if local else 0
        mlp = (4 if self.gated else 2) * self.intermediate_size * self.element_bytes
        padded = 4 * wide + (self.num_heads * longest * score if self.keeps_scores else 0)
        globally = 3 * wide * tokens + padded * sequences * longest if self.global_layers else 0
        return int(WORKSPACE_BYTES + UNLISTED * (lasting * tokens + max(attending * tokens, mlp * tokens, globally)))


def pairs_in_window(length: int, half_window: int) -> int:
    """(query, key) pairs of a text in a local layer: L + 2 * sum over d = 1 .. min(half_window, L - 1) of (L - d)."""
    reach = min(half_window, length - 1)
    return length + 2 * (reach * length - reach * (reach + 1) // 2)


def cost_model(
    architecture: EncoderConfig | Mapping[str, Any],
    *,
    block: int = 64,
    element_bytes: int = 2,
    keeps_scores: bool = True,
) -> CostModel:
    """The model of an encoder, given as `EncoderConfig` or as a manifest's `architecture`.

    Raises `UsageError` if that lacks what a packed encoder has, as a padded bundle's does.
    """
    if isinstance(architecture, EncoderConfig):
        kind, layers = architecture.architecture, architecture.num_layers
        local, half_window = sum(architecture.local_layers), architecture.half_window
        sizes = (architecture.hidden_size, architecture.intermediate_size, architecture.num_heads)
    else:
        try:
            kind, layers, local = (architecture["model_type"], architecture["num_layers"], architecture["local_layers"])
            local, half_window = len(local), half_window_of(architecture) or 0
            sizes = tuple(architecture[name] for name in ("hidden_size", "intermediate_size", "num_heads"))
            positive = all(type(size) is int and size > 0 for size in (*sizes, layers)) and local <= layers
        except (KeyError, TypeError):
            positive = False
        if not positive:
            raise UsageError(
                "this architecture is not described as a packed encoder's (hidden_size, intermediate_size, num_layers, "
                "num_heads, local_layers); profiles are for bundles of the packed exporter"
            )
    return CostModel(
        hidden_size=sizes[0],
        intermediate_size=sizes[1],
        num_heads=sizes[2],
        local_layers=local,
        global_layers=layers - local,
        gated=kind != "bert",
        half_window=half_window,
        block=block,
        element_bytes=element_bytes,
        keeps_scores=keeps_scores,
    )
