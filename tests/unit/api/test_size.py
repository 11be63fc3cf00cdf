"""Limits on output tokens and choices."""

from __future__ import annotations

from typing import Any

import pytest

from dlm_sglang.api.size import MAX_CHOICES, check_size, sized
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
