"""Sampling parameters of another type than SGLang declares are refused before its scheduler sees them."""

from __future__ import annotations

import pytest

from dlm_sglang.errors import RequestError
from dlm_sglang.seams.sampling_types import check_types

COUNTS = ("max_new_tokens", "min_new_tokens", "n", "sampling_seed", "stop_token_ids", "top_k")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [3.0, 2.5, 1e-320, 1e308, True])
def test_a_fraction_where_sglang_counts_is_refused(name: str, value: float) -> None:
    with pytest.raises(RequestError) as caught:
        check_types({name: [value] if name == "stop_token_ids" else value})
    assert (caught.value.param, caught.value.code) == (f"sampling_params.{name}", "parameter-type")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", "300"),
        ("logit_bias", {"300": "much"}),
        ("temperature", "0.5"),
        ("stop", [1]),
        ("stop", {"a": 1}),
        ("regex", 5),
        ("json_schema", {"type": "object"}),
        ("ignore_eos", "yes"),
        ("stop_token_ids", "1"),
    ],
)
def test_another_type_is_refused_by_name_also_in_a_list(name: str, value: object) -> None:
    for sampling in ({name: value}, [{}, {name: value}]):
        with pytest.raises(RequestError, match="expected") as caught:
            check_types(sampling)
        assert (caught.value.param, caught.value.code) == (f"sampling_params.{name}", "parameter-type")
        assert "null" not in str(caught.value)


def test_what_sglang_declares_passes_and_so_do_names_that_it_does_not_know() -> None:
    fine = {
        "temperature": 1,
        "top_p": 0.5,
        "max_new_tokens": 5,
        "stop": ["a"],
        "stop_token_ids": [0, 300],
        "logit_bias": {"300": 1, "301": -2.5},
        "regex": None,
        "ignore_eos": True,
        "custom_params": {"block_length": {"deep": [1]}},
        "no_such_name": object(),
    }
    check_types(fine)
    check_types([fine, {}])
    check_types(None)
