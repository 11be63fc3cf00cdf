"""Seeded samples and their random numbers: the reference on CPU, the kernels on CUDA."""

from __future__ import annotations

from torch import Tensor

from dlm_kernels.ops.sample_token import reference
from dlm_kernels.ops.sample_token.rows import SamplingRows


def sample_token(
    logits: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    excluded_token_id: int,
) -> Tensor:
    """Draw each row's token by inverse CDF from its filtered distribution (see `reference.sample_token`)."""
    if logits.device.type == "cpu":
        return reference.sample_token(logits, uniform, temperature, top_k, top_p, min_p, excluded_token_id)
    from dlm_kernels.ops.choose_token import launch

    sampling = SamplingRows(temperature, top_k, top_p, min_p, uniform)
    return launch.choose_token(logits, excluded_token_id=excluded_token_id, sampling=sampling, needs_confidence=False)[
        0
    ]


def uniform_from_seed(seed: Tensor, position: Tensor, step: Tensor) -> Tensor:
    """Map (seed, position, step), each `[N]` int64, to `[N]` float64 in [0, 1): the same bits on every device."""
    if seed.device.type == "cpu":
        return reference.uniform_from_seed(seed, position, step)
    from dlm_kernels.ops.sample_token import launch

    return launch.uniform_from_seed(seed, position, step)
