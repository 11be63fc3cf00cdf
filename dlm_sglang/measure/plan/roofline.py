"""Time of one forward and tokens/s of every mode, from bytes, FLOPs and a device's rates.

A forward over R requests with q query tokens each reads all weights and the KV of all prefixes, and
multiplies every query token with every weight. Whichever of bytes and FLOPs takes longer is the time.
Nothing here was measured: these are bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dlm_sglang.measure.plan.gpu import Rates
from dlm_sglang.measure.plan.shape import ModelShape

# Published for NLD 8B on maths and code, per draft-and-verify pair, by block length; on mixed chat less
# (6.82 at 32). Replace them by what `dlm-sglang bench` measures on your prompts.
ACCEPT_LENGTHS: Mapping[int, float] = {8: 6.42, 16: 9.49, 32: 11.92}
# Published tokens per denoise forward, 3.0, with the commit forward of every block counted in.
DIFFUSION_TPF = 2.74
MAX_ROWS = 4096
# Of a block's positions, how many are still masked in a denoise forward, on average; no others need logits.
MASKED_SHARE = 0.5


@dataclass(frozen=True)
class Yield:
    """Tokens that a mode wins per forward: assumptions until they are measured.

    Attributes:
        accept_lengths: self-speculation, tokens per draft-and-verify pair, by block length.
        diffusion_tpf: diffusion, tokens per forward, commit forwards counted.
    """

    accept_lengths: Mapping[int, float] = field(default_factory=lambda: dict(ACCEPT_LENGTHS))
    diffusion_tpf: float = DIFFUSION_TPF

    def accept_length(self, block_length: int) -> float:
        """For a block length that is not listed: on the line between its neighbours, never above the block."""
        known = sorted(self.accept_lengths.items())
        below = [pair for pair in known if pair[0] <= block_length]
        above = [pair for pair in known if pair[0] >= block_length]
        if not below or not above:
            nearest, length = above[0] if above else below[-1]
            return min(float(block_length), length * min(1.0, block_length / nearest))
        (low, at_low), (high, at_high) = below[-1], above[0]
        share = 0.0 if low == high else (block_length - low) / (high - low)
        return at_low + share * (at_high - at_low)


@dataclass(frozen=True)
class Way:
    """A mode with a block length, as the plan's columns name it."""

    mode: str
    block_length: int = 1

    @property
    def label(self) -> str:
        return "AR" if self.mode == "autoregressive" else f"{_SHORT[self.mode]}-{self.block_length}"


_SHORT = {"diffusion": "diff", "self_speculation": "spec"}
AUTOREGRESSIVE = Way("autoregressive")


def ways(block_lengths: list[int]) -> list[Way]:
    """AR, diffusion at the longest block and self-speculation at every block, longest first."""
    longest_first = sorted(block_lengths, reverse=True)
    return [
        AUTOREGRESSIVE,
        Way("diffusion", longest_first[0]),
        *(Way("self_speculation", length) for length in longest_first),
    ]


def forward_s(
    shape: ModelShape,
    rates: Rates,
    rows: int,
    query_tokens: float,
    prefix: int,
    dtype_bytes: int = 2,
    head_share: float = 1.0,
) -> float:
    """Seconds of one forward.

    Args:
        rows: requests in it.
        query_tokens: tokens of each request; on average, where they differ.
        prefix: tokens of each request that are in the KV cache.
        head_share: share of the query tokens whose logits somebody needs.
    """
    tokens = rows * query_tokens
    keys = prefix + query_tokens
    layers_s = max(
        shape.num_layer_params * dtype_bytes / rates.bytes_s, 2 * shape.num_layer_params * tokens / rates.gemm_flop_s
    )
    attention_flop = 4 * tokens * keys * shape.num_heads * shape.head_dim * shape.num_layers
    attention_s = max(
        rows * keys * shape.kv_bytes_per_token(dtype_bytes) / rates.bytes_s, attention_flop / rates.attention_flop_s
    )
    asked = tokens * head_share
    head_s = max(
        shape.num_head_params * dtype_bytes / rates.bytes_s, 2 * shape.num_head_params * asked / rates.gemm_flop_s
    )
    # Written once and read once.
    logits_s = 2 * asked * shape.vocab_size * dtype_bytes / rates.bytes_s
    # What fused kernels still hand on through memory in a layer: gate and up, attention's output, four hidden vectors.
    handed_on = 2 * shape.mlp_size + shape.num_heads * shape.head_dim + 4 * shape.hidden_size
    activations_s = tokens * shape.num_layers * handed_on * dtype_bytes / rates.bytes_s
    return layers_s + attention_s + head_s + logits_s + activations_s + shape.num_layers * rates.layer_s


def tok_s(
    way: Way, shape: ModelShape, rates: Rates, rows: int, prefix: int, gain: Yield, dtype_bytes: int = 2
) -> float:
    """Tokens per second of all requests together, in one mode."""
    head_share = MASKED_SHARE if way.mode == "diffusion" else 1.0
    seconds = forward_s(shape, rates, rows, way.block_length, prefix, dtype_bytes, head_share)
    return rows * tokens_per_forward(way, gain) / seconds


def tokens_per_forward(way: Way, gain: Yield) -> float:
    """Tokens per forward of one request, all forwards counted."""
    if way.mode == "autoregressive":
        return 1.0
    if way.mode == "diffusion":
        return gain.diffusion_tpf
    return gain.accept_length(way.block_length) / 2


def crossover_rows(rate_of: Callable[[Way, int], float], way: Way, max_rows: int) -> int | None:
    """The smallest number of requests at which AR is at least as fast as `way`; None up to `max_rows`.

    Args:
        rate_of: tokens/s of a way at a number of requests.
    """
    for rows in range(1, min(max_rows, MAX_ROWS) + 1):
        if rate_of(AUTOREGRESSIVE, rows) >= rate_of(way, rows):
            return rows
    return None
