"""Stage 2 of parallel unmasking, per request: the reference on CPU, one program per request on CUDA."""

from __future__ import annotations

from torch import Tensor

from dlm_kernels.ops.unmask_select import reference
from dlm_kernels.ops.unmask_select.reference import UnmaskedBlock


def unmask_select(
    is_masked: Tensor,
    confidence: Tensor,
    confidence_threshold: Tensor,
    quota: Tensor,
    fill_all: Tensor,
    *,
    is_strict: bool = False,
) -> Tensor:
    """Choose the masked positions of each block that this step fills.

    A row with a threshold fills every masked position whose confidence reaches it, and always the best one.
    A row without (NaN) fills its `quota` most confident positions. Ties go to the lowest position; a NaN
    confidence is the least sure.

    Args:
        is_masked: `[R, L]` bool.
        confidence: `[R, L]` float; values at unmasked positions are ignored. Ranks use all of it, the threshold
            is compared in float32, its own precision, or in the dtype of the confidence where that is narrower, as
            published code does in bfloat16.
        confidence_threshold: `[R]` float32, NaN where the even schedule rules.
        quota: `[R]` int64, positions to fill under the even schedule, >= 0.
        fill_all: `[R]` bool, last allowed step: everything left is filled.
        is_strict: a confidence must exceed the threshold (`>`) instead of reaching it (`>=`).

    Returns:
        `[R, L]` bool, a subset of `is_masked`.

    Raises:
        ValueError: shapes do not agree.

    Source: NLD spec section 3.2, `generate`.
    """
    _check_blocks({"is_masked": is_masked, "confidence": confidence}, is_masked)
    _check_rows(
        {"confidence_threshold": confidence_threshold, "quota": quota, "fill_all": fill_all}, is_masked.shape[0]
    )
    if is_masked.device.type == "cpu":
        implementation = reference.unmask_select
    else:
        from dlm_kernels.ops.unmask_select import launch

        implementation = launch.unmask_select
    return implementation(is_masked, confidence, confidence_threshold, quota, fill_all, is_strict=is_strict)


def unmask_block(
    canvas: Tensor,
    is_masked: Tensor,
    chosen: Tensor,
    confidence: Tensor,
    *,
    row_lens: Tensor,
    step: Tensor,
    max_denoising_steps: Tensor,
    confidence_threshold: Tensor,
    is_seeded: Tensor,
    accepts_whole_block: Tensor,
    stop_ids: Tensor,
    remaining: Tensor,
    is_denoise: Tensor,
    is_strict: bool = False,
) -> UnmaskedBlock:
    """Fill what one denoising step is sure of, and say whether the block and the request are done.

    Positions are chosen as in `unmask_select`; without a threshold `row_lens - is_seeded` masks are spread evenly
    over the steps, the remainder over the first ones, and the last step fills everything. A block is done when it
    has no mask left or, where blocks are accepted whole, when a stop token stands before the first mask.

    Args:
        canvas: `[R, L]` int64, token ids of the blocks.
        is_masked: `[R, L]` bool; True past a row's end or in a row that does not denoise is ignored.
        chosen: `[R, L]` int64, the token that each position would get.
        confidence: `[R, L]` float, how sure the model is of it.
        row_lens: `[R]` int64 in 0..L, positions of the block that exist.
        step: `[R]` int64, denoising steps done on this block.
        max_denoising_steps: `[R]` int64, >= 1.
        confidence_threshold: `[R]` float32, NaN where the even schedule rules.
        is_seeded: `[R]` bool or int64, position 0 was emitted before: neither counted nor checked for a stop.
        accepts_whole_block: `[R]` bool or int64, nobody verifies the block, so a stop token in it is final.
        stop_ids: `[R, E]` int64, -1 where unused.
        remaining: `[R]` int64, tokens that the request may still emit.
        is_denoise: `[R]` bool, False for rows that commit: their canvas stays as it is.
        is_strict: see `unmask_select`.

    Returns:
        canvas, still_masked, is_filled, ends_request: see `UnmaskedBlock`. The arguments are not changed.

    Raises:
        ValueError: shapes do not agree.

    Source: NLD spec section 3.2, `generate`.
    """
    _check_blocks({"is_masked": is_masked, "chosen": chosen, "confidence": confidence}, canvas)
    rows = {
        "row_lens": row_lens,
        "step": step,
        "max_denoising_steps": max_denoising_steps,
        "confidence_threshold": confidence_threshold,
        "is_seeded": is_seeded,
        "accepts_whole_block": accepts_whole_block,
        "remaining": remaining,
        "is_denoise": is_denoise,
    }
    _check_rows(rows, canvas.shape[0])
    if stop_ids.dim() != 2 or stop_ids.shape[0] != canvas.shape[0]:
        raise ValueError(f"stop_ids must be [{canvas.shape[0]}, E], got {list(stop_ids.shape)}")
    if canvas.device.type == "cpu":
        implementation = reference.unmask_block
    else:
        from dlm_kernels.ops.unmask_select import launch

        implementation = launch.unmask_block
    return implementation(canvas, is_masked, chosen, confidence, stop_ids=stop_ids, is_strict=is_strict, **rows)


def _check_blocks(blocks: dict[str, Tensor], like: Tensor) -> None:
    for name, value in blocks.items():
        if value.dim() != 2 or value.shape != like.shape:
            raise ValueError(f"{name} must be [R, L] = {list(like.shape)}, got {list(value.shape)}")


def _check_rows(rows: dict[str, Tensor], num_rows: int) -> None:
    for name, value in rows.items():
        if value.shape != (num_rows,):
            raise ValueError(f"{name} must be [{num_rows}], got {list(value.shape)}")
