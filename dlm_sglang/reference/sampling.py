"""Choosing one token from one row of logits: stateless random numbers, filters, inverse CDF.

A uniform number is a pure function of (seed, absolute position, denoise step), so a token does not
depend on batching, on block boundaries or on how often a row was computed before. That is what makes
self-speculation give the very tokens of autoregressive decoding at any temperature (spec §3.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

CAUSAL_STEP = 0  # the `step` of rows of a causal forward; the first denoise forward of a block is step 1

_UINT64 = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def uniform(seed: int, position: int, step: int) -> float:
    """The random number in [0, 1) of one choice: splitmix64 of the three, upper 24 bits.

    Args:
        seed: the request's seed, any integer (taken modulo 2**64).
        position: absolute position of the token being chosen, the prompt counted.
        step: `CAUSAL_STEP`, or 1, 2, ... for the denoise forwards of a block.
    """
    x = (seed * _GOLDEN_GAMMA + position * _MIX_1 + step * _MIX_2) & _UINT64
    z = (x + _GOLDEN_GAMMA) & _UINT64
    z = ((z ^ (z >> 30)) * _MIX_1) & _UINT64
    z = ((z ^ (z >> 27)) * _MIX_2) & _UINT64
    z ^= z >> 31
    return (z >> 40) / 2**24


def filtered_probs(
    logits: Tensor, temperature: float, top_k: int = -1, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """The distribution that a token is drawn from: temperature, then top-k, then top-p, then min-p.

    Each filter sees what the one before it left, renormalised: top-p counts the mass that top-k kept.

    Args:
        logits: `[V]`, any float dtype; -inf marks ids that cannot be chosen.
        temperature: above 0.
        top_k: ids kept; below 1 keeps all. Among equal probabilities the lower id goes first.
        top_p: keep the shortest descending prefix whose sum reaches it; 1 keeps all.
        min_p: drop ids less probable than `min_p` times the most probable one.

    Returns:
        probs: `[V]` float64, sums to 1.
    """
    descending, ids = torch.sort(torch.softmax(logits.double() / temperature, dim=-1), descending=True, stable=True)
    if top_k >= 1:
        descending[top_k:] = 0
        descending /= descending.sum()
    if top_p < 1:
        cumulative = torch.cumsum(descending, dim=-1)
        descending[1:][cumulative[:-1] >= top_p] = 0
    if min_p > 0:
        descending[descending < min_p * descending[0]] = 0
    probs = torch.zeros_like(descending)
    probs[ids] = descending / descending.sum()
    return probs


def pick_greedy(logits: Tensor) -> int:
    """The id of the highest of `logits` `[V]`; the lowest id among equals."""
    return int(torch.argmax(logits))


def pick_token(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int = -1,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int,
    position: int,
    step: int,
) -> int:
    """Choose the token of one row: argmax at temperature 0, inverse CDF in id order above.

    The pick is the first id whose cumulative probability exceeds `u * total`, `u` from `uniform`.

    Args:
        logits: `[V]`, see `filtered_probs`.
        seed, position, step: see `uniform`.
    """
    if temperature == 0:
        return pick_greedy(logits)
    cumulative = torch.cumsum(filtered_probs(logits, temperature, top_k, top_p, min_p), dim=-1)
    u = uniform(seed, position, step)
    return int(torch.nonzero(cumulative > u * cumulative[-1])[0])
