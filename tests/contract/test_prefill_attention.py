"""Which backend runs prompts."""

from __future__ import annotations

import pytest
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

from dlm_sglang.errors import SettingsError
from dlm_sglang.seams.attention import OWN, prefill_backend_name


@pytest.mark.parametrize(
    ("wanted", "is_cuda", "has_flashinfer", "expected"),
    [
        ("auto", False, False, OWN),
        ("auto", False, True, OWN),
        ("auto", True, True, "flashinfer"),
        ("auto", True, False, "triton"),
        ("block", True, True, OWN),
        ("triton", True, True, "triton"),
    ],
)
def test_backend_follows_setting_and_machine(wanted: str, is_cuda: bool, has_flashinfer: bool, expected: str) -> None:
    assert prefill_backend_name(wanted, is_cuda=is_cuda, has_flashinfer=has_flashinfer) == expected


@pytest.mark.parametrize(("wanted", "is_cuda"), [("triton", False), ("flashinfer", False), ("flashinfer", True)])
def test_backend_that_cannot_run_here_is_refused(wanted: str, is_cuda: bool) -> None:
    with pytest.raises(SettingsError, match=f"prefill_attention {wanted} cannot run here"):
        prefill_backend_name(wanted, is_cuda=is_cuda, has_flashinfer=False)


@pytest.mark.parametrize("name", ["flashinfer", "triton"])
def test_sglang_has_the_backends_that_we_hand_prompts_to(name: str) -> None:
    assert name in ATTENTION_BACKENDS
