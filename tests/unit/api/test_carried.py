"""Fields that travel inside `chat_template_kwargs` come out where they belong, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from dlm_sglang.api.carried import unpacked
from dlm_sglang.errors import RequestError

MESSAGES: dict[str, Any] = {"messages": []}


@pytest.mark.parametrize("kwargs", [None, {}, {"enable_thinking": True}, "text"])
def test_a_body_that_carries_nothing_stays_as_it_is(kwargs: object) -> None:
    body = {**MESSAGES, "chat_template_kwargs": kwargs}
    assert unpacked(body) == body
    assert unpacked(MESSAGES) == MESSAGES


def test_fields_come_out_and_what_is_the_templates_stays() -> None:
    carried = {"generation_mode": "diffusion", "confidence_threshold": None}
    body = {**MESSAGES, "chat_template_kwargs": {"enable_thinking": True, "dlm": carried}}
    assert unpacked(body) == {**MESSAGES, **carried, "chat_template_kwargs": {"enable_thinking": True}}


@pytest.mark.parametrize(
    ("carried", "beside", "param"),
    [
        ("diffusion", {}, "chat_template_kwargs.dlm"),
        (None, {}, "chat_template_kwargs.dlm"),
        ({"temperature": 0}, {}, "chat_template_kwargs.dlm.temperature"),
        ({"block_lenght": 8}, {}, "chat_template_kwargs.dlm.block_lenght"),
        ({"block_length": 8}, {"block_length": 8}, "block_length"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(carried: object, beside: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        unpacked({**MESSAGES, **beside, "chat_template_kwargs": {"dlm": carried}})
    assert caught.value.param == param
