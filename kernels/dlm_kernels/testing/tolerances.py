"""One table of tolerances for all kernels: relative error of the whole result, by dtype."""

from __future__ import annotations

import torch
from torch import Tensor

# ||got - expected|| / ||expected|| against float64 on the same inputs.
MAX_RELATIVE_ERROR = {
    torch.float32: 5e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Error of `got` by the norm of `expected`; NaN where either holds one, absolute where `expected` is 0."""
    difference = (got.double() - expected.double()).norm()
    norm = expected.double().norm()
    return float(difference / norm) if norm > 0 else float(difference)
