"""SGLang's own `Req`, as our hook leaves it."""

from __future__ import annotations

import gc
import weakref
from array import array
from collections.abc import Iterator

import pytest
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling.sampling_params import SamplingParams

FLAT = {"dlm": {"generation_mode": "diffusion"}}


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Nothing but reference counts frees memory."""
    gc.disable()
    yield
    gc.enable()


def make_request(custom_logit_processor: str | None = None) -> Req:
    sampling = SamplingParams(max_new_tokens=4, custom_params=FLAT)
    return Req("rid", "text", array("q", [1, 2]), sampling, custom_logit_processor=custom_logit_processor)


@pytest.mark.usefixtures("no_collection")
def test_a_request_of_ours_is_gone_with_its_last_reference() -> None:
    request = make_request()
    assert request.sampling_params.custom_params == FLAT
    watched = weakref.ref(request)
    del request
    assert watched() is None, "seams/request.py forget_itself"


def test_a_processor_that_a_request_brings_still_finds_it() -> None:
    request = make_request(custom_logit_processor="code")
    assert request.sampling_params.custom_params["__req__"] is request
