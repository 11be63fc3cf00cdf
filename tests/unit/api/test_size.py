"""Limits on output tokens and choices."""

from __future__ import annotations

from typing import Any

import pytest

from dlm_sglang.api.size import MAX_CHOICES, check_prompt, check_size, sized
from dlm_sglang.errors import RequestError


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_the_limit_are_refused_by_name(name: str) -> None:
    check_size({name: 10}, 10)
    check_size({name: 10**9}, None)
    with pytest.raises(RequestError, match="at most 10") as caught:
        check_size({name: 11}, 10)
    assert caught.value.param == name


@pytest.mark.parametrize("name", ["n", "best_of"])
@pytest.mark.parametrize("value", [0, -1, MAX_CHOICES + 1, 1e30])
def test_a_number_of_choices_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(RequestError) as caught:
        check_size({name: value}, None)
    assert caught.value.param == name


@pytest.mark.parametrize("name", ["top_k", "min_tokens", "min_new_tokens", "stop_token_ids", "priority"])
@pytest.mark.parametrize("value", [1 << 31, 1 << 63, -(1 << 31)])
def test_a_number_that_fits_no_tensor_is_refused(name: str, value: float) -> None:
    sent = [3, value] if name == "stop_token_ids" else value
    for check, prefix in (
        (lambda: check_size({name: sent}, None), ""),
        (lambda: sized({name: sent}, None), "sampling_params."),
    ):
        with pytest.raises(RequestError) as caught:
            check()
        assert (caught.value.param, caught.value.code) == (f"{prefix}{name}", "parameter-out-of-range")


def test_numbers_that_fit_are_let_pass() -> None:
    fine = {"top_k": (1 << 31) - 1, "min_new_tokens": 5, "stop_token_ids": [0, -1, 300]}
    check_size(fine, None)
    assert sized(fine, None) == fine


@pytest.mark.parametrize("value", [None, "3", True, [1]])
def test_what_is_no_number_is_left_to_sglang(value: object) -> None:
    check_size({"n": value, "max_tokens": value}, 10)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, 50),
        ({"max_new_tokens": None}, 50),
        ({"max_new_tokens": 7}, 7),
    ],
)
def test_the_limit_stands_where_no_number_does(sampling: dict[str, Any], expected: int) -> None:
    assert sized(sampling, 50) == {"max_new_tokens": expected}
    assert sized([sampling], 50) == [{"max_new_tokens": expected}]
    assert sized(sampling, None) == sampling
    assert sized("x", 50) == "x"


@pytest.mark.parametrize("sampling", [{"max_new_tokens": 51}, {"n": MAX_CHOICES + 1}, [{}, {"n": 0}]])
def test_sampling_parameters_above_the_limits_are_refused(sampling: object) -> None:
    with pytest.raises(RequestError, match="sampling_params"):
        sized(sampling, 50)


def test_a_request_that_does_not_say_keeps_sglangs_own_number_below_the_limit() -> None:
    assert sized({}, 1000) == {"max_new_tokens": 128}


@pytest.mark.parametrize("token_ids", [[5, -1], [5, 100], [10**30]])
def test_ids_that_are_no_tokens_are_refused(token_ids: list[int]) -> None:
    check_prompt([0, 99], None, 100, "prompt")
    with pytest.raises(RequestError, match=r"0\.\.99") as caught:
        check_prompt(token_ids, None, 100, "prompt")
    assert (caught.value.code, caught.value.param) == ("token-id-out-of-range", "prompt")


def test_a_prompt_of_no_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="at least one") as caught:
        check_prompt([], None, 100, "prompt")
    assert caught.value.code == "prompt-empty"


def test_a_prompt_may_be_as_long_as_the_limit() -> None:
    check_prompt([1] * 8, 8, 100, "messages")
    with pytest.raises(RequestError, match="at most 8 tokens") as caught:
        check_prompt([1] * 9, 8, 100, "messages")
    assert (caught.value.code, caught.value.param) == ("prompt-too-long", "messages")
