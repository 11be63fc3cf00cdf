"""Token choice, unmasking and acceptance compiled, against float64 and the references, on a GPU."""

from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

NAMES = [
    *(f"greedy-{dtype}" for dtype in (torch.bfloat16, torch.float16, torch.float32)),
    *(
        f"draws-{dtype}-{filtered}"
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for filtered in (False, True)
    ),
    *(
        "greedy-odd",
        "random",
        "unmask-32",
        "unmask-63",
        "unmask-rounds-32",
        "unmask-rounds-63",
        "prefix-32",
        "rejection",
        "rejection-one-hot",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_compiled_kernels_equal_their_references(name: str) -> None:
    from dlm_kernels.testing.unmask_gpu import checks

    result = dict(checks("cuda"))[name]()
    assert result["passed"], result


def test_the_same_rows_give_the_same_bits_in_any_batch() -> None:
    from dlm_kernels.ops.choose_token import choose_token
    from dlm_kernels.testing.unmask_gpu import make_logits

    logits = make_logits(256, 131072, torch.bfloat16, "cuda")
    together = choose_token(logits, excluded_token_id=100)
    again = choose_token(logits, excluded_token_id=100)
    alone = choose_token(logits[77:78], excluded_token_id=100)
    for index in range(2):
        assert torch.equal(together[index], again[index])
        assert torch.equal(together[index][77:78], alone[index])
