"""Gaps filled on the real server: what is fixed stays, blanks have their length, both sides are seen."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.e2e.server import Server

QUESTION = "".join(
    (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhat is 15 + 69?<|im_end|>\n",
        "<|im_start|>assistant\n<think></think>",
    )
)
BLANKS = ["5 + 9 = ", 2, ", 1 + 6 + 1 = ", 1, ", so 15 + 69 = ", 2, "."]
ROUTE = "/v1/completions"


def completion(server: Server, **fields: Any) -> dict[str, Any]:
    response = server.post(ROUTE, {"model": "default", "prompt": QUESTION, "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())


@pytest.mark.parametrize("steps", [1, 8])
def test_blanks_are_filled_and_fixed_text_stays(each_server: Server, steps: int) -> None:
    answer = completion(each_server, infill=BLANKS, block_length=16, max_denoising_steps=steps)
    text = answer["choices"][0]["text"]
    assert re.fullmatch(r"5 \+ 9 = (.+), 1 \+ 6 \+ 1 = (.+), so 15 \+ 69 = (.+)\.", text), text
    assert answer["dlm"]["generation_mode"] == "diffusion"
    assert answer["usage"]["completion_tokens"] == 34


def test_a_gap_ends_where_its_suffix_begins(each_server: Server) -> None:
    suffix = ", 1 + 6 + 1 = 8, so 15 + 69 = 84."
    answer = completion(each_server, prompt=QUESTION + "5 + 9 = ", suffix=suffix, max_tokens=2)
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["choices"][0]["text"] == "14"


def test_several_choices_and_streams_are_filled_as_well(each_server: Server) -> None:
    whole = completion(each_server, infill=BLANKS, n=2)
    assert len({choice["text"] for choice in whole["choices"]}) == 1
    body = {"model": "default", "prompt": QUESTION, "temperature": 0, "infill": BLANKS, "stream": True}
    *events, done = each_server.post(ROUTE, body).text.strip().split("\n\n")
    assert done == "data: [DONE]"
    told = "".join(json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events)
    assert told == whole["choices"][0]["text"]


def test_several_unseeded_choices_come_to_an_end(each_server: Server) -> None:
    """SGLang prefills their prompt once without a token to decode, and a prefill of theirs emits none."""
    answer = completion(each_server, generation_mode="diffusion", seeded_blocks=False, n=3, max_tokens=40)
    assert len({choice["text"] for choice in answer["choices"]}) == 1
    each_server.wait_idle()


def test_a_gap_that_leaves_its_suffix_no_room_is_refused(each_server: Server) -> None:
    body = {"model": "default", "prompt": "a", "suffix": "b", "max_tokens": 32, "block_length": 16}
    response = each_server.post(ROUTE, body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "suffix"
