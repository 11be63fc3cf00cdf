"""How each kernel of token choice, unmasking, acceptance and rounds is compiled, variant by variant."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch

from dlm_kernels.testing.compile_spec import CompileSpec

_TRITON_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
_OPS = "dlm_kernels.ops"
_SAMPLING = {
    "temperature_ptr": "*fp32",
    "top_k_ptr": "*i64",
    "top_p_ptr": "*fp32",
    "min_p_ptr": "*fp32",
    "uniform_ptr": "*fp64",
}
_LOGITS = {"logits_stride_row": "i64", "vocab_size": "i32", "excluded_token_id": "i32"}
_READ_LOGITS = ("scan", "merge", "verify", "rejection")
_WORK_ON_BLOCKS = ("rejection", "prefix", "select", "block", "advance")


@dataclass(frozen=True)
class Variant:
    """One compiled form; what does not concern a kernel is left at its default.

    Attributes:
        kernel: its short name.
        dtype: of the logits.
        samples: some rows may sample.
        skips_settled: some rows are settled and not read.
        has_confidence: confidences are wanted.
        is_by_row: of some rows only.
        counts_excluded: the excluded id counts in the denominator of the confidence.
        confidence_dtype: of the confidence that is written or read.
        num_splits: splits of the vocabulary.
        has_probs: drafts come with their distributions.
        block_length: positions of a block; for acceptance the most drafts.
        is_strict: a confidence must exceed the threshold.
        ones: integer arguments that are 1, which the launcher compiles in.
    """

    kernel: str
    dtype: torch.dtype = torch.bfloat16
    samples: bool = False
    skips_settled: bool = True
    has_confidence: bool = True
    is_by_row: bool = False
    counts_excluded: bool = True
    confidence_dtype: torch.dtype = torch.float64
    num_splits: int = 8
    has_probs: bool = False
    block_length: int = 32
    is_strict: bool = False
    ones: tuple[str, ...] = ()

    @property
    def logits_of_a_lane(self) -> float:
        """Logits that one thread handles in a turn of the scan's loop."""
        launch = import_module(f"{_OPS}.choose_token.launch")
        return float(launch.GROUPS * (16 // self.dtype.itemsize) / (32 * launch.NUM_WARPS))

    def __str__(self) -> str:
        """Short name, as a test's id: what differs from the default."""
        parts = [self.kernel]
        parts += [_TRITON_TYPES[self.dtype]] * (self.kernel in _READ_LOGITS)
        parts += [f"splits{self.num_splits}"] * (self.kernel == "merge")
        parts += [str(self.block_length)] * (self.kernel in _WORK_ON_BLOCKS)
        parts += self.ones
        parts += ["sampled"] * self.samples + ["all_rows"] * (not self.skips_settled)
        parts += ["tokens"] * (not self.has_confidence) + ["by_row"] * self.is_by_row
        parts += ["without_excluded"] * (not self.counts_excluded)
        if self.confidence_dtype != torch.float64:
            parts.append(f"confidence_{_TRITON_TYPES[self.confidence_dtype]}")
        parts += ["probs"] * self.has_probs + ["strict"] * self.is_strict
        return "-".join(parts)


def spec_of(variant: Variant) -> CompileSpec:
    """What a variant is compiled from, with the sizes of its launch."""
    return {
        "scan": _scan,
        "merge": _merge,
        "verify": _verify,
        "rejection": _rejection,
        "prefix": _prefix,
        "select": _select,
        "block": _block,
        "advance": _advance,
        "uniform": _uniform,
    }[variant.kernel](variant)


def _spec(
    variant: Variant, kernel: str, signature: dict[str, str], constants: dict[str, object], num_warps: int = 4
) -> CompileSpec:
    signature = {name: kind for name, kind in signature.items() if name not in variant.ones}
    constants = {**constants, **dict.fromkeys(variant.ones, 1)}
    # Strides and sizes of the model are multiples of 16, which the launcher finds out.
    aligned = [key for key, kind in signature.items() if kind.startswith("*")]
    aligned += [key for key in ("logits_stride_row", "vocab_size", "split_length") if key in signature]
    return CompileSpec(kernel, signature, constants, num_warps=num_warps, aligned=tuple(aligned))


def _constants(variant: Variant) -> dict[str, object]:
    launch = import_module(f"{_OPS}.choose_token.launch")
    return {"BLOCK_V": launch.BLOCK_V, "KEY_SHIFT": launch.KEY_SHIFTS[variant.dtype]}


def _tiles(variant: Variant) -> dict[str, object]:
    launch = import_module(f"{_OPS}.choose_token.launch")
    return {"GROUPS": launch.GROUPS, "WIDTH": 16 // variant.dtype.itemsize}


def _block_tiling(variant: Variant) -> tuple[dict[str, object], int]:
    tiling = import_module(f"{_OPS}.unmask_select.launch").tiling(variant.block_length)
    num_warps = tiling.pop("num_warps")
    return {**tiling, "IS_STRICT": variant.is_strict}, num_warps


def _confidence(variant: Variant) -> str:
    return "*" + _TRITON_TYPES[variant.confidence_dtype]


def _parts(variant: Variant) -> tuple[dict[str, str], dict[str, object]]:
    signature = {"part_best_ptr": "*fp32", "part_id_ptr": "*i32", "split_length": "i32", "num_splits": "i32"}
    signature |= {"logits_ptr": "*" + _TRITON_TYPES[variant.dtype], **_LOGITS}
    constants: dict[str, object] = {"SUMS": variant.has_confidence}
    optional = [
        ("part_odds_ptr", "*fp32", variant.has_confidence),
        ("part_mass_ptr", "*fp32", variant.samples),
        ("is_settled_ptr", "*i1", variant.skips_settled),
    ]
    signature |= {name: kind for name, kind, is_used in optional if is_used}
    constants |= {name: None for name, _, is_used in optional if not is_used}
    return signature, constants


def _scan(variant: Variant) -> CompileSpec:
    signature, constants = _parts(variant)
    constants |= _tiles(variant)
    if variant.samples:
        signature["temperature_ptr"] = "*fp32"
    else:
        constants["temperature_ptr"] = None
    return _spec(variant, "choose_token.kernel.choose_token_scan_kernel", signature, constants)


def _merge(variant: Variant) -> CompileSpec:
    signature, constants = _parts(variant)
    signature |= {"token_ids_ptr": "*i64", "confidence_ptr": _confidence(variant)}
    constants |= _constants(variant)
    block_s = import_module(f"{_OPS}.choose_token.launch").merge_block(variant.num_splits)
    constants |= {"BLOCK_S": block_s, "COUNTS_EXCLUDED": variant.counts_excluded}
    if variant.is_by_row:
        signature["needs_confidence_ptr"] = "*i1"
    else:
        constants["needs_confidence_ptr"] = None
    if variant.samples:
        signature |= _SAMPLING
    else:
        constants |= dict.fromkeys(_SAMPLING)
    return _spec(variant, "choose_token.merge_kernel.choose_token_merge_kernel", signature, constants)


def _verified(variant: Variant) -> dict[str, str]:
    logits = "*" + _TRITON_TYPES[variant.dtype]
    return {
        "draft_ids_ptr": "*i64",
        "draft_probs_ptr": "*fp32" if variant.has_probs else logits,
        "logits_ptr": logits,
        "first_row_ptr": "*i64",
        "num_drafts_ptr": "*i64",
        "row_max_ptr": "*fp32",
        "pivot_ptr": "*i64",
        "last_tie_ptr": "*i32",
        "mass_ptr": "*fp64",
        "best_id_ptr": "*i32",
        "is_accepted_ptr": "*i1",
        "length": "i32",
        "temperature_ptr": "*fp32",
        "min_p_ptr": "*fp32",
        **_LOGITS,
    }


def _verify(variant: Variant) -> CompileSpec:
    signature = {**_verified(variant), "top_k_ptr": "*i64", "top_p_ptr": "*fp32", "accept_uniform_ptr": "*fp64"}
    constants = {**_constants(variant), **_tiles(variant), "HAS_PROBS": variant.has_probs}
    return _spec(variant, "accept_prefix.kernel.verify_rows_kernel", signature, constants)


def _rejection(variant: Variant) -> CompileSpec:
    signature = {**_verified(variant), "uniform_ptr": "*fp64"}
    signature |= {"num_correct_drafts_ptr": "*i64", "bonus_ids_ptr": "*i64"}
    block_l = import_module(f"{_OPS}.accept_prefix.launch").rejection_block(variant.block_length)
    constants = {**_constants(variant), "BLOCK_L": block_l, "HAS_PROBS": variant.has_probs}
    return _spec(variant, "accept_prefix.kernel.accept_rejection_kernel", signature, constants)


def _prefix(variant: Variant) -> CompileSpec:
    pointers = ("draft_ids_ptr", "target_ids_ptr", "num_drafts_ptr", "num_correct_drafts_ptr", "bonus_ids_ptr")
    signature = dict.fromkeys(pointers, "*i64") | {"draft_stride_row": "i64", "target_stride_row": "i64"}
    block_l = import_module(f"{_OPS}.accept_prefix.launch").prefix_block(variant.block_length)
    constants: dict[str, object] = {"BLOCK_L": block_l}
    return _spec(variant, "accept_prefix.kernel.accept_prefix_kernel", signature, constants, 1)


def _select(variant: Variant) -> CompileSpec:
    signature = {
        "is_masked_ptr": "*i1",
        "confidence_ptr": _confidence(variant),
        "confidence_threshold_ptr": "*fp32",
        "quota_ptr": "*i64",
        "fill_all_ptr": "*i1",
        "filled_ptr": "*i1",
        "block_length": "i32",
    }
    return _spec(variant, "unmask_select.kernel.unmask_select_kernel", signature, *_block_tiling(variant))


def _block(variant: Variant) -> CompileSpec:
    wide = ("canvas", "chosen", "row_lens", "step", "max_denoising_steps", "stop_ids", "remaining", "new_canvas")
    flags = ("is_masked", "is_seeded", "accepts_whole_block", "is_denoise", "still_masked", "is_filled", "ends_request")
    signature = {f"{name}_ptr": "*i64" for name in wide} | {f"{name}_ptr": "*i1" for name in flags}
    signature |= {"confidence_ptr": _confidence(variant), "confidence_threshold_ptr": "*fp32"}
    signature |= {"block_length": "i32", "num_stops": "i32"}
    return _spec(variant, "unmask_select.kernel.unmask_block_kernel", signature, *_block_tiling(variant))


def _advance(variant: Variant) -> CompileSpec:
    read = ("slots", "seq_lens", "chosen", "policy_ints", "stop_ids")
    written = ("canvas", "progress", "token_ids", "accept_lens", "new_seq_lens")
    signature = {f"{name}_ptr": "*i64" for name in (*read, *written)}
    signature |= {"is_masked_ptr": "*i1", "is_denoise_ptr": "*i1", "policy_floats_ptr": "*fp32"}
    tables = ("canvas", "is_masked", "progress", "policy_ints", "policy_floats", "stop_ids")
    signature |= {f"{name}_stride_slot": "i64" for name in tables}
    signature |= dict.fromkeys(("width", "num_stops", "mask_token_id", "context_length"), "i32")
    constants, num_warps = _block_tiling(variant)
    if variant.has_confidence:
        signature["confidence_ptr"] = _confidence(variant)
    else:
        constants["confidence_ptr"] = None
    return _spec(variant, "advance_rows.kernel.advance_rows_kernel", signature, constants, num_warps)


def _uniform(variant: Variant) -> CompileSpec:
    signature = {"seed_ptr": "*i64", "position_ptr": "*i64", "step_ptr": "*i64", "uniform_ptr": "*fp64"}
    signature["num_rows"] = "i32"
    block = import_module(f"{_OPS}.sample_token.launch").BLOCK_N
    return _spec(variant, "sample_token.kernel.uniform_from_seed_kernel", signature, {"BLOCK_N": block})
