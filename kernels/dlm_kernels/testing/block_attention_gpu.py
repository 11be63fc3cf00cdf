"""Cases of block attention for a real GPU, with the float64 oracle: shared by `tests/gpu` and the GPU runner."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dlm_kernels.ops.block_attention import block_attention, make_plan
from dlm_kernels.testing.block_attention import Case, Row, attend_in_float64, make_inputs
from dlm_kernels.testing.tolerances import MAX_RELATIVE_ERROR, relative_error

MIXED = (
    Row(32, 1000, "bidirectional"),
    Row(1, 2100),
    Row(0, 9),
    Row(32, 63, "causal"),
    Row(64, 700, "dual"),
    Row(7, 0),
    Row(3, 40, "blind"),
    Row(1, 0),
)
LONG = (Row(32, 5000, "bidirectional"), Row(16, 3000, "causal"))


def _mixed(**changes: object) -> Case:
    options: dict[str, object] = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128, "dtype": torch.bfloat16}
    return Case(MIXED, num_padding_tokens=5, **{**options, **changes})  # type: ignore[arg-type]


CASES: dict[str, Case] = {
    **{f"bf16 page {page}": _mixed(page_size=page) for page in (1, 16, 32, 64)},
    **{f"bf16 head dim {dim}": _mixed(head_dim=dim, page_size=32) for dim in (64, 256)},
    "fp16": _mixed(dtype=torch.float16),
    "fp32": _mixed(dtype=torch.float32, page_size=16),
    "fp8 keys": _mixed(kv_dtype=torch.float8_e4m3fn, page_size=64),
    "fp8 keys, page 1": _mixed(kv_dtype=torch.float8_e4m3fn),
    "value dim 64": _mixed(v_head_dim=64),
    "group 8": _mixed(num_q_heads=64),
    "group 5": _mixed(num_q_heads=40),
    "one head": _mixed(num_q_heads=1, num_kv_heads=1),
    "one token a row": Case([Row(1, prefix) for prefix in (0, 63, 64, 511, 4000)], 32, 8, 128, dtype=torch.bfloat16),
    "blocks of 8": Case([Row(8, n, "bidirectional") for n in (8, 100, 3000)], 32, 8, 128, dtype=torch.bfloat16),
    "blocks of 16": Case([Row(16, n, "bidirectional") for n in (8, 100, 3000)], 32, 8, 128, dtype=torch.bfloat16),
    "one request, long": Case(LONG[:1], 32, 8, 128, page_size=64, dtype=torch.bfloat16),
    "two requests, long": Case(LONG, 32, 8, 128, page_size=32, dtype=torch.bfloat16),
    "prompt": Case([Row(700, 300)], 32, 8, 128, page_size=16, dtype=torch.bfloat16),
}


def check_case(case: Case, deterministic: bool, device: str = "cuda") -> dict[str, object]:
    """Run a case twice on the GPU and compare with float64: error, limit, and whether it passed."""
    inputs = make_inputs(case, device)
    runs = []
    for _ in range(2):
        plan = make_plan(*inputs.lengths, **inputs.bounds, deterministic=deterministic, use_kernel=True)
        runs.append(block_attention(inputs.q, inputs.k_pool, inputs.v_pool, plan, inputs.scale))
    error = relative_error(runs[0].cpu(), attend_in_float64(inputs))
    limit = MAX_RELATIVE_ERROR[case.dtype]
    is_repeatable = torch.equal(*runs)
    return {"error": error, "limit": limit, "repeatable": is_repeatable, "passed": error <= limit and is_repeatable}


def check_cases(names: Sequence[str] = tuple(CASES)) -> list[dict[str, object]]:
    """Check cases in both partitions; a kernel that fails is a row that says so."""
    rows: list[dict[str, object]] = []
    for name in names:
        for deterministic in (False, True):
            row: dict[str, object] = {"case": f"block_attention {name}", "deterministic": deterministic}
            try:
                row |= check_case(CASES[name], deterministic)
            # The table of what works is worth more than the first traceback.
            except Exception as error:
                row |= {"passed": False, "note": f"{type(error).__name__}: {error}"[:200]}
            rows.append(row)
    return rows
