"""The shipped variants of the kernels of token choice, unmasking, acceptance and rounds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from dlm_kernels.testing.gates import MAX_INSTRUCTIONS_PER_LOGIT, MAX_INSTRUCTIONS_PER_SAMPLED_LOGIT, Gates
from dlm_kernels.testing.shipped_variant import ShippedVariant
from dlm_kernels.testing.unmask_specs import Variant, spec_of

LOGITS_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CONFIDENCE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Vocabularies of one split, and of the 131,072 ids that NLD has.
NUM_SPLITS = (1, 8)
# The tiles of a block begin at 16 positions; NLD's longest block has 32.
BLOCK_LENGTHS = (16, 32, 64)
# The most drafts of each compiled size, up to 64.
DRAFT_LENGTHS = (0, 1, 3, 7, 15, 31, 63, 64)
# Tiles stay in registers: shared memory holds what the warps exchange at the end.
MAX_EXCHANGED_BYTES = 1024


def all_variants() -> Iterator[Variant]:
    """Every variant that a launch can ask for.

    For blocks of up to 64 positions, and for strides and vocabularies that are multiples of 16, as NLD has.
    """
    for dtype, samples in product(LOGITS_DTYPES, (False, True)):
        yield from _choices_of_tokens(dtype, samples)
    for dtype, has_probs in product(LOGITS_DTYPES, (False, True)):
        yield Variant("verify", dtype, has_probs=has_probs)
        # No draft takes the size of one.
        for length in DRAFT_LENGTHS[1:]:
            yield Variant("rejection", dtype, has_probs=has_probs, block_length=length)
    for length in DRAFT_LENGTHS:
        yield Variant("prefix", block_length=length)
    for length in BLOCK_LENGTHS:
        for kernel, dtype, is_strict in product(("select", "block", "advance"), CONFIDENCE_DTYPES, (False, True)):
            yield Variant(kernel, confidence_dtype=dtype, block_length=length, is_strict=is_strict)
        # Without confidences every mask is filled, whatever the threshold.
        yield Variant("advance", has_confidence=False, block_length=length)
    yield Variant("uniform")


def _choices_of_tokens(dtype: torch.dtype, samples: bool) -> Iterator[Variant]:
    for skips_settled in (False, True):
        for has_confidence in (False, True):
            yield Variant("scan", dtype, samples, skips_settled, has_confidence)
        for num_splits in NUM_SPLITS:
            yield Variant("merge", dtype, samples, skips_settled, has_confidence=False, num_splits=num_splits)
            for is_by_row, counts_excluded in ((False, True), (True, True), (False, False), (True, False)):
                yield Variant(
                    "merge",
                    dtype,
                    samples,
                    skips_settled,
                    is_by_row=is_by_row,
                    counts_excluded=counts_excluded,
                    num_splits=num_splits,
                )
    for confidence_dtype in CONFIDENCE_DTYPES[1:]:
        yield Variant("merge", dtype, samples, confidence_dtype=confidence_dtype)
    # The launcher compiles a vocabulary of one id in.
    yield Variant("scan", dtype, samples, ones=("vocab_size",))
    yield Variant("merge", dtype, samples, num_splits=1, ones=("vocab_size",))


def shipped(variant: Variant) -> ShippedVariant:
    """How a variant is compiled, and its gates."""
    # A vocabulary of one id leaves no loop over logits.
    is_pass = variant.kernel == "scan" and not variant.ones
    limits = (MAX_INSTRUCTIONS_PER_LOGIT, *[MAX_INSTRUCTIONS_PER_SAMPLED_LOGIT] * variant.samples)
    return ShippedVariant(
        str(variant),
        spec_of(variant),
        Gates(MAX_EXCHANGED_BYTES, max_instructions_per_logit=limits if is_pass else ()),
        logits_of_a_lane=variant.logits_of_a_lane if is_pass else None,
    )
