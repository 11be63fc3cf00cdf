"""Plain-torch choice of a token per logits row, with per-row parameters and stateless randomness.

Randomness is a pure function of (seed, position, step). A request therefore draws the same number for the
same position whatever the batch, the mode or a restart looked like: equal seeds give equal outputs, and
autoregressive and self-speculative decoding with one seed give the very same tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

# splitmix64 constants as signed 64-bit integers: torch's int64 arithmetic wraps modulo 2**64.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def greedy_token(logits: Tensor, excluded_token_id: int) -> Tensor:
    """Pick each row's most likely token.

    Args:
        logits: `[N, V]`, any float dtype; not changed.
        excluded_token_id: never picked (the mask id); -1 excludes nothing.

    Returns:
        `[N]` int64, lowest id on ties; the lowest id that may be picked where all of them are -inf.

    Source: NLD spec section 3.2 (the mask id is excluded from the choice).
    """
    if excluded_token_id < 0:
        return logits.argmax(dim=-1)
    column = logits[:, excluded_token_id]
    excluded = column.clone()
    column.fill_(float("-inf"))
    token_ids = logits.argmax(dim=-1)
    column.copy_(excluded)
    if excluded_token_id == 0 and logits.shape[1] > 1:
        # Only among nothing but -inf is the excluded id the lowest of the largest.
        token_ids.clamp_(min=1)
    return token_ids


def confidence_of(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Probability of each row's token under the raw logits, exact where it is close to 1.

    A trained model is often surer than float32 can tell from 1. So the other tokens' odds are summed, which
    float32 holds to full relative precision, and only `1 / (1 + odds)` is formed in float64.

    Args:
        logits: `[N, V]` float32, the mask id's among them: it counts in the denominator (spec section 3.2).
        token_ids: `[N]` int64.

    Returns:
        `[N]` float64.
    """
    index = token_ids[:, None]
    odds = torch.exp(logits - logits.gather(1, index))
    odds.scatter_(1, index, 0.0)
    return 1.0 / (1.0 + odds.sum(dim=-1).double())


def filtered_probs(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, excluded_token_id: int
) -> Tensor:
    """The distribution that each row is drawn from.

    Filters apply in this order: temperature, top-k, top-p (the smallest descending prefix whose sum reaches
    `top_p`, ties by token id), min-p relative to the largest; the rest is renormalised.

    Args:
        logits: `[N, V]` float; not changed.
        temperature: `[N]` float, > 0.
        top_k: `[N]` int64; values < 1 or >= V keep everything.
        top_p: `[N]` float in (0, 1].
        min_p: `[N]` float in [0, 1].
        excluded_token_id: probability 0; -1 excludes nothing.

    Returns:
        `[N, V]` float64, rows sum to 1.
    """
    vocab_size = logits.shape[-1]
    # Division makes the copy.
    allowed = logits.double() / temperature.double()[:, None]
    if excluded_token_id >= 0:
        allowed[:, excluded_token_id] = float("-inf")
    probs = torch.softmax(allowed, dim=-1)
    keep_k = torch.where((top_k < 1) | (top_k > vocab_size), vocab_size, top_k)
    if not ((keep_k < vocab_size) | (top_p < 1) | (min_p > 0)).any():
        return probs
    order = torch.argsort(probs, dim=-1, descending=True, stable=True)
    ranked = probs.gather(1, order)
    rank = torch.arange(vocab_size, device=logits.device)
    ranked = ranked.masked_fill(rank >= keep_k[:, None], 0.0)
    ranked = ranked / ranked.sum(dim=-1, keepdim=True)
    reached = ranked.cumsum(dim=-1) - ranked
    ranked = ranked.masked_fill((reached >= top_p.double()[:, None]) & (rank > 0), 0.0)
    ranked = ranked.masked_fill(ranked < min_p.double()[:, None] * ranked[:, :1], 0.0)
    ranked = ranked / ranked.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probs).scatter_(1, order, ranked)


def sample_token(
    logits: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    excluded_token_id: int,
) -> Tensor:
    """Draw each row's token by inverse CDF, read in token-id order, from `filtered_probs`.

    Arithmetic is float64 so that the draw does not depend on reduction order.

    Args:
        logits: `[N, V]` float; not changed.
        uniform: `[N]` float64 in [0, 1).
        temperature, top_k, top_p, min_p, excluded_token_id: see `filtered_probs`.

    Returns:
        `[N]` int64.
    """
    return draw_from(filtered_probs(logits, temperature, top_k, top_p, min_p, excluded_token_id), uniform)


def draw_from(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first id of each row at which the running sum of `weights` (`[N, V]`) exceeds `uniform` of it all."""
    cumulative = weights.double().cumsum(dim=-1)
    target = uniform.double()[:, None] * cumulative[:, -1:]
    return (cumulative > target).int().argmax(dim=-1)


def uniform_from_seed(seed: Tensor, position: Tensor, step: Tensor) -> Tensor:
    """Map (seed, position, step) to a uniform number by one round of splitmix64.

    Args:
        seed, position, step: `[N]` int64.

    Returns:
        `[N]` float64 in [0, 1), 24 bits.
    """
    z = seed * _GOLDEN + position * _MIX_1 + step * _MIX_2 + _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 40).double() / float(1 << 24)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
