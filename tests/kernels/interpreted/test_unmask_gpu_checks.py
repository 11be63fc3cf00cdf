"""The checks that a GPU host runs first are themselves right: small, in the interpreter."""

from __future__ import annotations

import pytest
from dlm_kernels.testing.unmask_gpu import checks

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CHECKS = dict(checks("cpu", small=True))


@pytest.mark.parametrize("name", CHECKS)
def test_check_passes(name: str) -> None:
    result = CHECKS[name]()
    assert result["passed"], result
