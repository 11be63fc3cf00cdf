"""Acceptance of a drafted block: the reference on CPU, the kernels on CUDA."""

from __future__ import annotations

from torch import Tensor

from dlm_kernels.ops.accept_prefix import reference
from dlm_kernels.ops.sample_token.rows import SamplingRows


def accept_prefix(draft_ids: Tensor, target_ids: Tensor, num_drafts: Tensor) -> tuple[Tensor, Tensor]:
    """Count the leading draft tokens that the verifier agrees with, and pick the bonus token.

    With targets sampled from the verifier's rows this is exact at any temperature: target 0 is a fresh sample
    and is emitted whatever the draft was; target i is used only when draft i - 1 equalled target i - 1.

    Args:
        draft_ids: `[R, L]` int64, drafted tokens of each row.
        target_ids: `[R, L + 1]` int64, the verifier's choice at every drafted position and one past it.
        num_drafts: `[R]` int64 in 0..L, how many of the drafts count (ragged rows).

    Returns:
        num_correct_drafts: `[R]` int64 in 0..num_drafts, bonus excluded.
        bonus_ids: `[R]` int64, the verifier's own token after the accepted prefix.

    Raises:
        ValueError: shapes do not agree.

    Source: NLD spec section 3.3, linear self-speculation.
    """
    num_rows, length = draft_ids.shape
    if target_ids.shape != (num_rows, length + 1) or num_drafts.shape != (num_rows,):
        raise ValueError(
            f"draft_ids [{num_rows}, {length}] need target_ids [{num_rows}, {length + 1}] and num_drafts "
            f"[{num_rows}], got {list(target_ids.shape)} and {list(num_drafts.shape)}"
        )
    if draft_ids.device.type == "cpu":
        return reference.accept_prefix(draft_ids, target_ids, num_drafts)
    from dlm_kernels.ops.accept_prefix import launch

    return launch.accept_prefix(draft_ids, target_ids, num_drafts)


def accept_rejection(
    draft_ids: Tensor,
    draft_probs: Tensor | None,
    logits: Tensor,
    first_row: Tensor,
    num_drafts: Tensor,
    *,
    sampling: SamplingRows,
    accept_uniform: Tensor,
    excluded_token_id: int,
) -> tuple[Tensor, Tensor]:
    """Accept drafts by rejection sampling, and draw the bonus token from what is left.

    Draft x at a position is accepted with probability min(1, p(x) / q(x)), where p is the verifier's filtered
    distribution and q the drafter's; after the first rejection the bonus token is drawn from max(p - q, 0), after
    none from the row past the last draft. Tokens so emitted follow p whatever the drafter was, provided that
    each draft was drawn from its q and that the uniform numbers are independent of the drafts.

    With one-hot drafts (greedy ones) it accepts as often as `accept_prefix` with sampled targets does, which is the
    cheaper op; it accepts more often for drafts that were sampled.

    Args:
        draft_ids: `[R, L]` int64.
        draft_probs: `[R, L, V]` float, the distributions that the drafts were drawn from, or None for one-hot drafts.
        logits: `[T, V >= 2]` float32, bfloat16 or float16, verifier rows; `first_row[r] + i` speaks of draft i of r.
        first_row: `[R]` int64, with `first_row + num_drafts` in 0..T-1.
        num_drafts: `[R]` int64 in 0..L.
        sampling: how each request samples, all `[R]`; its `uniform` draws the bonus token. Temperature 0 is a
            distribution that is all on the most likely token.
        accept_uniform: `[R, L]` float64 in [0, 1).
        excluded_token_id: never accepted nor drawn (the mask id); -1 excludes nothing.

    Returns:
        num_correct_drafts: `[R]` int64 in 0..num_drafts, bonus excluded.
        bonus_ids: `[R]` int64.

    Raises:
        ValueError: shapes do not agree.

    Source: speculative sampling, arXiv 2211.17192 section 2.3; NLD spec section 3.3.
    """
    num_rows, length = draft_ids.shape
    if logits.dim() != 2 or logits.shape[1] < 2 or logits.stride(1) != 1:
        raise ValueError(f"logits must be [T, V >= 2] with columns side by side, got {list(logits.shape)}")
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "first_row": (first_row, (num_rows,)),
        "num_drafts": (num_drafts, (num_rows,)),
        "accept_uniform": (accept_uniform, (num_rows, length)),
    }
    expected |= {name: (value, (num_rows,)) for name, value in vars(sampling).items()}
    if draft_probs is not None:
        expected["draft_probs"] = (draft_probs, (num_rows, length, logits.shape[1]))
    for name, (value, shape) in expected.items():
        if value.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(value.shape)}")
    if logits.device.type == "cpu":
        implementation = reference.accept_rejection
    else:
        from dlm_kernels.ops.accept_prefix import launch

        implementation = launch.accept_rejection
    return implementation(
        draft_ids,
        draft_probs,
        logits,
        first_row,
        num_drafts,
        sampling=sampling,
        accept_uniform=accept_uniform,
        excluded_token_id=excluded_token_id,
    )
