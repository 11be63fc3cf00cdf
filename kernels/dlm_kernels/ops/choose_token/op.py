"""The choice of a token per logits row: checked arguments, then numpy on CPU and the kernel on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.ops.choose_token import cpu
from dlm_kernels.ops.sample_token.rows import SamplingRows

_LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The reference takes these too.
_CPU_LOGITS_DTYPES = (*_LOGITS_DTYPES, torch.float64)


def choose_token(
    logits: Tensor,
    *,
    excluded_token_id: int,
    sampling: SamplingRows | None = None,
    is_settled: Tensor | None = None,
    needs_confidence: bool | Tensor = True,
    counts_excluded: bool = True,
    confidence_dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Pick a token per row of logits, and say how probable the raw logits make it, in one pass over them.

    A greedy row takes its most likely token, the lowest id among equals. A sampled row draws by inverse CDF in
    id order from the distribution that temperature, top-k, top-p and min-p leave, in this order; the kernel sums
    in another order and precision than the reference, so the two may differ where the uniform number lies within
    2e-6 of a boundary between two ids.

    The confidence is formed as `1 / (1 + odds)`, where the odds of the other tokens are summed relative to the
    chosen one: values that float32 cannot tell from 1 keep their order in float64.

    Rows that are not ordinary: where every id that may be chosen is -inf, the lowest such id is taken with
    confidence 0. Where a logit is NaN the confidence is NaN and the id is in range and otherwise unspecified; the
    confidence beside a +inf logit is unspecified. The kernel takes logits below -1e38 for -inf.

    Args:
        logits: `[N, V]` float32, bfloat16 or float16, on CPU float64 too; any row stride, columns side by side; not
            changed.
        excluded_token_id: never chosen (the mask id); -1 excludes nothing.
        sampling: per-row parameters, or None where every row is greedy.
        is_settled: `[N]` bool, rows without interest (settled, prompt, padding): they are not read, and give
            token 0 with confidence 0.
        needs_confidence: whether confidences are wanted; `[N]` bool asks by row. 0 where they are not.
        counts_excluded: whether the excluded id counts in the denominator of the confidence.
        confidence_dtype: bfloat16 gives what a softmax in bfloat16 gives: the probability, rounded once.

    Returns:
        token_ids: `[N]` int64.
        confidence: `[N]` `confidence_dtype`.

    Raises:
        ValueError: an argument does not fit the logits.

    Source: NLD spec section 3.2.
    """
    _check(logits, excluded_token_id, sampling, is_settled, needs_confidence)
    if logits.is_cpu:
        implementation = cpu.choose_token
    else:
        from dlm_kernels.ops.choose_token import launch

        implementation = launch.choose_token
    return implementation(
        logits,
        excluded_token_id=excluded_token_id,
        sampling=sampling,
        is_settled=is_settled,
        needs_confidence=needs_confidence,
        counts_excluded=counts_excluded,
        confidence_dtype=confidence_dtype,
    )


def _check(
    logits: Tensor,
    excluded_token_id: int,
    sampling: SamplingRows | None,
    is_settled: Tensor | None,
    needs_confidence: bool | Tensor,
) -> None:
    dtypes = _CPU_LOGITS_DTYPES if logits.is_cpu else _LOGITS_DTYPES
    if logits.dim() != 2 or logits.dtype not in dtypes or logits.shape[1] == 0:
        raise ValueError(
            f"logits must be [N, V >= 1] float32, bfloat16 or float16, got {list(logits.shape)} {logits.dtype}"
        )
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        raise ValueError(f"the columns of logits must lie side by side, got stride {logits.stride(1)}")
    if not -1 <= excluded_token_id < logits.shape[1]:
        raise ValueError(f"excluded_token_id must be in -1..{logits.shape[1] - 1}, got {excluded_token_id}")
    per_row: dict[str, Tensor] = {} if sampling is None else dict(vars(sampling))
    if is_settled is not None:
        per_row["is_settled"] = is_settled
    if isinstance(needs_confidence, Tensor):
        per_row["needs_confidence"] = needs_confidence
    for name, value in per_row.items():
        if value.shape != logits.shape[:1] or value.device != logits.device:
            raise ValueError(
                f"{name} must be [{logits.shape[0]}] on {logits.device}, got {list(value.shape)} on {value.device}"
            )
