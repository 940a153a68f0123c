"""The FLOPs of an encoder, and the cost of a packed micro-batch in time and memory.

FLOPs (two for a multiply-add) are those of matrix products and attention:

- products, per token: 2 * layers * (4 h^2 + 3 h i) with a gated MLP (ModernBERT), 2 h i with a plain MLP (BERT); h is
  the hidden size, i the intermediate size;
- attention, per layer: 4 h for every (query, key) pair.

A text of L tokens needs L^2 pairs in a global layer and `pairs_in_window` in a local layer. An engine executes more
than that, on filler and padding: in a local layer each token of the stream attends to the keys of the previous, its own
and the next block, and a global layer runs on the padded square, sequences * longest^2 pairs. Every run also launches
kernels, which are counted as the work that the GPU could have done meanwhile.

Norms, activations, embeddings and heads are left out: below 1 % of a base model's FLOPs. Not modelled: kernels tuned
for the opt shape that are slower at other shapes, and small matrices that do not fill the GPU. Both make narrow
profiles better than this model predicts. Knows no engine and no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nopad.model.config import EncoderConfig, half_window_of
from nopad.runtime.errors import UsageError

# Launches of one run, in FLOPs per layer: about 10 kernels (norms, products, rotary, attention, activation) of 4 us, at
# the 50 TFLOP/s that half-precision products sustain on GPUs of the T4 to A10 class (65 and 125 at peak). An
# assumption, not a measurement; it equals 200 tokens of ModernBERT-base. Larger GPUs lose more in a launch, CUDA graphs
# less.
LAUNCH_FLOPS_PER_LAYER = 10 * 4e-6 * 50e12
# Activation memory besides the tensors counted below: a workspace for matrix products, and a factor for rotary angles,
# indices and alignment.
WORKSPACE_BYTES = 16 << 20
UNLISTED = 1.1


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Costs of an architecture. `keeps_scores`: attention is not fused; the engine stores global layers' scores."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    local_layers: int
    global_layers: int
    gated: bool
    half_window: int  # tokens that a local layer attends to on each side
    block: int  # tokens of one attention block
    element_bytes: int  # of activations
    keeps_scores: bool

    @property
    def launch_flops(self) -> float:
        """Cost of launching the kernels of one run."""
        return LAUNCH_FLOPS_PER_LAYER * (self.local_layers + self.global_layers)

    def flops(self, tokens: int, *, local_pairs: int, global_pairs: int) -> float:
        """FLOPs for `tokens`, with these numbers of (query, key) pairs in each local and each global layer."""
        h, layers = self.hidden_size, self.local_layers + self.global_layers
        products = 2 * layers * (4 * h**2 + (3 if self.gated else 2) * h * self.intermediate_size)
        pairs = self.local_layers * local_pairs + self.global_layers * global_pairs
        return float(products * tokens + 4 * h * pairs)

    def text_flops(self, lengths: Sequence[int]) -> float:
        """FLOPs that texts of these lengths need, without filler or padding: the useful work."""
        local = sum(pairs_in_window(length, self.half_window) for length in lengths)
        return self.flops(sum(lengths), local_pairs=local, global_pairs=sum(length**2 for length in lengths))

    def work(self, tokens: int, sequences: int, longest: int) -> float:
        """FLOPs that an engine executes for a micro-batch of this shape."""
        return self.flops(tokens, local_pairs=tokens * 3 * self.block, global_pairs=sequences * longest**2)

    def memory(self, tokens: int, sequences: int, longest: int) -> int:
        """Bytes of activations that an engine reserves for a profile with these three maxima, reached at once.

        The residual stream and the mask of the local layers stay alive throughout. Added is the largest of: local
        attention (q, keys and values with their neighbour blocks, unfused scores), the MLP, and global attention
        (q, k, v of the stream; padded q, k, v and output; with `keeps_scores` also `sequences * heads * longest^2`
        scores, in the activations' type and in fp32).

        This is 1.1 to 1.6 times (BERT without padding: 2.0) the "Total Activation Memory" that TensorRT-RTX 1.7 reports
        at build, for hidden sizes 128 to 1,024 and profiles of 1,024 to 16,384 tokens. In half precision TensorRT-RTX
        fuses global attention on sm75, sm86, sm89 and sm120 (`keeps_scores=False`); in fp32 it keeps the scores. Not
        compared with TensorRT, which builds only on its target GPU. Weights are extra.
        """
        hidden_bytes = self.hidden_size * self.element_bytes
        score = self.element_bytes + 4
        local = self.local_layers > 0
        resident = 4 * hidden_bytes + (5 * 3 * self.block if local else 0)  # the mask: a bool and a float
        local_attention = 7 * hidden_bytes + self.num_heads * 3 * self.block * score if local else 0
        mlp = (4 if self.gated else 2) * self.intermediate_size * self.element_bytes
        padded = 4 * hidden_bytes + (self.num_heads * longest * score if self.keeps_scores else 0)
        global_attention = 3 * hidden_bytes * tokens + padded * sequences * longest if self.global_layers else 0
        return int(
            WORKSPACE_BYTES
            + UNLISTED * (resident * tokens + max(local_attention * tokens, mlp * tokens, global_attention))
        )


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
    """The cost model of an encoder, from an `EncoderConfig` or a manifest's `architecture`.

    Raises `UsageError` for an `architecture` without a packed encoder's sizes, such as a padded bundle's.
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
