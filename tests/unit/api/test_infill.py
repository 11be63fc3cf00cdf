"""Infilling: what is checked, and which ids the output has to hold."""

from __future__ import annotations

import pytest

from dlm_sglang.api.infill import FIXED_KEY, INFILL_KEY, resolve
from dlm_sglang.api.translate import translate_generate, translate_openai
from dlm_sglang.errors import RequestError
from dlm_sglang.params import ServerLimits

LIMITS = ServerLimits()
PROMPT: dict[str, object] = {"prompt": "a"}


def tokenize(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_a_suffix_is_filled_in_by_unseeded_diffusion() -> None:
    body = translate_openai({**PROMPT, "suffix": "b", "max_tokens": 4}, LIMITS)
    custom = body["custom_params"]
    assert isinstance(custom, dict)
    assert custom[INFILL_KEY] == ["b"]
    assert custom["dlm"]["generation_mode"] == "diffusion"
    assert custom["dlm"]["seeded_blocks"] is False
    assert "suffix" not in body


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"suffix": "b", "generation_mode": "ar"}, "suffix", "parameter-unsupported"),
        ({"suffix": "b", "generation_mode": "self_speculation"}, "suffix", "parameter-unsupported"),
        ({"suffix": "b", "seeded_blocks": True}, "seeded_blocks", "parameter-conflict"),
        ({"suffix": "b", "infill": [3]}, "infill", "parameter-conflict"),
        ({"suffix": 3}, "suffix", "parameter-type"),
        ({"suffix": "b", "messages": []}, "suffix", "parameter-misplaced"),
        ({"infill": [3], "messages": []}, "infill", "parameter-misplaced"),
        ({"infill": "a"}, "infill", "parameter-type"),
        ({"infill": []}, "infill", "parameter-type"),
        ({"infill": ["a"]}, "infill", "parameter-type"),
        ({"infill": ["a", 0]}, "infill", "parameter-type"),
        ({"infill": ["a", True]}, "infill", "parameter-type"),
        ({"infill": ["a", 2.0]}, "infill", "parameter-type"),
        ({"infill": [3], "max_tokens": 3}, "max_tokens", "parameter-conflict"),
        ({"infill": [3], "ignore_eos": False}, "ignore_eos", "parameter-conflict"),
        ({"suffix": "b", "logprobs": 1}, "logprobs", "parameter-unsupported"),
        ({"suffix": "b", "regex": "a"}, "regex", "parameter-unsupported"),
        ({"custom_params": {"infill": [3]}}, "custom_params.infill", "parameter-misplaced"),
        ({"custom_params": {FIXED_KEY: [3]}}, f"custom_params.{FIXED_KEY}", "parameter-misplaced"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(fields: dict[str, object], param: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        translate_openai({**PROMPT, **fields}, LIMITS)
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize("key", [INFILL_KEY, FIXED_KEY])
def test_nobody_sends_the_workers_own_keys(key: str) -> None:
    with pytest.raises(RequestError, match=key):
        translate_generate({"text": "a", "sampling_params": {"custom_params": {key: [1]}}}, LIMITS)


def test_an_empty_suffix_is_none() -> None:
    custom = translate_openai({**PROMPT, "suffix": ""}, LIMITS)["custom_params"]
    assert isinstance(custom, dict)
    assert INFILL_KEY not in custom


def test_a_suffix_follows_its_gap_as_far_as_the_block_reaches() -> None:
    assert resolve({INFILL_KEY: ["abc"]}, 5, 16, tokenize) == [-1] * 5 + [97, 98, 99]
    assert resolve({INFILL_KEY: ["abcdef"]}, 13, 8, tokenize) == [-1] * 13 + [97, 98, 99]
    assert resolve({}, 5, 16, tokenize) is None
    with pytest.raises(RequestError, match="block_length"):
        resolve({INFILL_KEY: ["abc"]}, 16, 16, tokenize)


def test_a_text_with_blanks_is_the_whole_output() -> None:
    assert resolve({INFILL_KEY: ["ab", 2, "c", 1]}, 0, 8, tokenize) == [97, 98, -1, -1, 99, -1]
    assert resolve({INFILL_KEY: [2]}, 0, 8, tokenize) == [-1, -1]
