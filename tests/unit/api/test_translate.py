"""What a client sends, and what SGLang and the worker get."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_sglang.api.translate import FOREIGN_NAMES, translate_generate, translate_openai, translate_sampling
from dlm_sglang.api.unsupported import REFUSALS_ON, Surface
from dlm_sglang.errors import RequestError
from dlm_sglang.param_table import FIELD_BY_NAME
from dlm_sglang.params import DecodeParams, GenerationMode, ServerLimits

LIMITS = ServerLimits()
DEFAULTS = DecodeParams.from_fields({}, LIMITS).to_flat()
DIFFUSION = {"generation_mode": "diffusion", "max_denoising_steps": 4}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def refusal(body: dict[str, object], translate: object = translate_openai) -> RequestError:
    with pytest.raises(RequestError) as caught:
        translate(body, LIMITS)  # type: ignore[operator]
    return caught.value


def test_a_plain_request_gets_the_defaults_and_keeps_all_else() -> None:
    assert translate_openai(CHAT, LIMITS) == {**CHAT, "custom_params": {"dlm": DEFAULTS}}


def test_top_level_fields_leave_the_body_and_return_resolved() -> None:
    translated = translate_openai({**CHAT, **DIFFUSION, "custom_params": {"theirs": 1}}, LIMITS)
    expected = DecodeParams.from_fields(DIFFUSION, LIMITS).to_flat()
    assert translated == {**CHAT, "custom_params": {"theirs": 1, "dlm": expected}}


@pytest.mark.parametrize("split", [(), ("generation_mode",), ("max_denoising_steps",), tuple(DIFFUSION)])
def test_fields_may_stand_in_custom_params(split: tuple[str, ...]) -> None:
    inside = {name: DIFFUSION[name] for name in split}
    outside = {name: value for name, value in DIFFUSION.items() if name not in split}
    translated = translate_openai({**CHAT, **outside, "custom_params": inside}, LIMITS)
    assert translated["custom_params"] == {"dlm": DecodeParams.from_fields(DIFFUSION, LIMITS).to_flat()}


def test_the_same_field_twice_is_refused_unless_it_says_the_same() -> None:
    body = {**CHAT, "block_length": 8, "custom_params": {"block_length": 16}}
    error = refusal(body)
    assert (error.code, error.param) == ("parameter-conflict", "block_length")
    assert "8" in error.message
    assert "16" in error.message
    body["custom_params"] = {"block_length": 8}
    assert translate_openai(body, LIMITS)["custom_params"]["dlm"]["block_length"] == 8  # type: ignore[index]


@pytest.mark.parametrize("flat", [DEFAULTS, {}, None, "x", {"generation_mode": "diffusion", "block_length": 10**6}])
def test_the_reserved_key_cannot_be_sent(flat: object) -> None:
    assert refusal({**CHAT, "custom_params": {"dlm": flat}}).code == "parameter-reserved"
    body: dict[str, object] = {"sampling_params": {"custom_params": {"dlm": flat}}}
    assert refusal(body, translate_generate).code == "parameter-reserved"


@pytest.mark.parametrize("name", ["max_denoise_steps", "generation_mod", "blocklength", *FOREIGN_NAMES])
def test_a_misspelt_field_is_refused_with_the_right_name(name: str) -> None:
    error = refusal({**CHAT, name: 1})
    assert (error.code, error.param) == ("parameter-unknown", name)
    assert error.hint
    assert any(known in error.hint for known in FIELD_BY_NAME)


def test_a_misspelt_custom_param_is_refused_and_a_foreign_one_is_not() -> None:
    assert refusal({**CHAT, "custom_params": {"block_lengths": 8}}).code == "parameter-unknown"
    translated = translate_openai({**CHAT, "custom_params": {"steps": 8}}, LIMITS)
    assert translated["custom_params"] == {"steps": 8, "dlm": DEFAULTS}


def test_unknown_fields_that_are_not_ours_are_left_to_sglang() -> None:
    assert translate_openai({**CHAT, "frobnicate": 1}, LIMITS)["frobnicate"] == 1


@pytest.mark.parametrize("custom", [[], "x", 1, True])
def test_custom_params_must_be_an_object(custom: object) -> None:
    assert refusal({**CHAT, "custom_params": custom}).param == "custom_params"


def test_generate_takes_one_object_or_one_per_prompt_or_none() -> None:
    inside = {"temperature": 0, "custom_params": dict(DIFFUSION)}
    flat = DecodeParams.from_fields(DIFFUSION, LIMITS).to_flat()
    one = translate_generate({"text": "a", "sampling_params": inside}, LIMITS)
    assert one == {"text": "a", "sampling_params": {"temperature": 0, "custom_params": {"dlm": flat}}}
    many = translate_generate({"text": ["a", "b"], "sampling_params": [inside, {}]}, LIMITS)
    assert [each["custom_params"] for each in many["sampling_params"]] == [{"dlm": flat}, {"dlm": DEFAULTS}]  # type: ignore[attr-defined]
    assert translate_generate({"text": "a"}, LIMITS)["sampling_params"] == {"custom_params": {"dlm": DEFAULTS}}
    assert translate_generate({"sampling_params": "x"}, LIMITS)["sampling_params"] == "x"


@pytest.mark.parametrize("name", ["generation_mode", "block_lenght", "threshold"])
def test_generate_refuses_fields_that_stand_where_nobody_reads_them(name: str) -> None:
    assert refusal({"text": "a", name: 1}, translate_generate).code == "parameter-misplaced"
    assert refusal({"sampling_params": {name: 1}}, translate_generate).param == f"sampling_params.{name}"


def test_sglangs_internal_request_is_checked_again() -> None:
    resolved = {"custom_params": {"dlm": DEFAULTS}}
    assert translate_sampling(resolved, LIMITS, resolved=True) == resolved
    forged = {"custom_params": {"dlm": {**DEFAULTS, "block_length": 10**6}}}
    with pytest.raises(RequestError):
        translate_sampling(forged, LIMITS, resolved=True)


UNSEEDED = {"generation_mode": "diffusion", "seeded_blocks": False}
OPENAI_REFUSED = {
    "best_of": 2,
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "custom_logit_processor": "x",
    "return_sampling_mask": True,
    "return_hidden_states": True,
    "use_beam_search": True,
    "lora_path": "x",
    "session_params": {"id": "x"},
}
# Refused where blocks have no seeds.
OPENAI_SEEDED = {
    "response_format": {"type": "json_object"},
    "regex": "a*",
    "ebnf": "root ::= 'a'",
    "json_schema": "{}",
    "structural_tag": "x",
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f", "strict": True}}],
    "logprobs": True,
}
OPENAI_PASSED = {
    **OPENAI_SEEDED,
    "frequency_penalty": 0.5,
    "presence_penalty": -1,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1},
    "min_tokens": 1,
    "top_logprobs": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 3,
    "stop": ["a"],
    "max_tokens": 5,
    "n": 2,
    "stream": True,
}


def test_every_refused_field_of_the_openai_surface_has_an_example() -> None:
    rows = REFUSALS_ON[Surface.OPENAI]
    # A suffix is refused by mode, see `test_infill`.
    assert set(OPENAI_REFUSED) == {row.name for row in rows if row.refused_in} - {"suffix"}
    assert set(OPENAI_SEEDED) == {row.name for row in rows if row.needs_seeds}


@pytest.mark.parametrize(("name", "value"), OPENAI_REFUSED.items())
def test_what_the_worker_cannot_honour_is_refused(name: str, value: object) -> None:
    error = refusal({**CHAT, name: value})
    assert (error.code, error.param) == ("parameter-unsupported", name)
    assert error.hint


@pytest.mark.parametrize(("name", "value"), OPENAI_SEEDED.items())
def test_what_needs_seeded_blocks_is_refused_without_them(name: str, value: object) -> None:
    error = refusal({**CHAT, **UNSEEDED, name: value})
    assert (error.code, error.param) == ("parameter-unsupported", name)
    assert "seeded_blocks" in str(error.hint)


def test_log_probabilities_of_the_sampled_token_alone_need_seeded_blocks_as_well() -> None:
    assert refusal({"prompt": "a", "logprobs": 0, **UNSEEDED}).param == "logprobs"
    assert translate_openai({"prompt": "a", "logprobs": 0}, LIMITS)["logprobs"] == 0


def test_a_named_tool_needs_seeded_blocks() -> None:
    choice = {"type": "function", "function": {"name": "f"}}
    assert refusal({**CHAT, "tool_choice": choice, **UNSEEDED}).param == "tool_choice"
    assert translate_openai({**CHAT, "tool_choice": choice}, LIMITS)["tool_choice"] == choice


@pytest.mark.parametrize(("name", "value"), OPENAI_PASSED.items())
def test_what_changes_nothing_or_works_passes_through(name: str, value: object) -> None:
    assert translate_openai({**CHAT, name: value}, LIMITS)[name] == value


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"return_entropy": True}, "return_entropy"),
        ({"return_logprob": [False, True], "sampling_params": {"custom_params": UNSEEDED}}, "return_logprob"),
        ({"return_logprob": True, "sampling_params": [{}, {"custom_params": UNSEEDED}]}, "return_logprob"),
        ({"token_ids_logprob": [[1]]}, "token_ids_logprob"),
        ({"input_embeds": [[[0.5]]]}, "input_embeds"),
        ({"lora_path": ["a"]}, "lora_path"),
        ({"sampling_params": {"regex": "a", "custom_params": UNSEEDED}}, "sampling_params.regex"),
        ({"sampling_params": [{}, {"beam_width": 4}]}, "sampling_params.beam_width"),
        ({"sampling_params": {"custom_params": {"thinking_budget": 5}}}, "custom_params.thinking_budget"),
    ],
)
def test_generate_refuses_the_same_under_its_own_names(body: dict[str, object], param: str) -> None:
    assert refusal(body, translate_generate).param == param


def test_a_field_may_be_refused_in_some_modes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(
        replace(row, refused_in=frozenset({GenerationMode.DIFFUSION})) if row.name == "beam_width" else row
        for row in REFUSALS_ON[Surface.SAMPLING]
    )
    monkeypatch.setitem(REFUSALS_ON, Surface.SAMPLING, rows)
    beams = {"beam_width": 4}
    assert translate_generate({"text": "a", "sampling_params": beams}, LIMITS)
    sampling = {**beams, "custom_params": {"generation_mode": "diffusion"}}
    error = refusal({"text": "a", "sampling_params": [{}, sampling]}, translate_generate)
    assert error.param == "sampling_params.beam_width"
    assert "in diffusion mode" in error.message
    assert "autoregressive or self_speculation" in str(error.hint)


def test_generate_lets_neutral_values_pass() -> None:
    body: dict[str, object] = {
        "text": ["a", "b"],
        "return_logprob": [False, False],
        "lora_path": [None, None],
        "sampling_params": {"repetition_penalty": 1.0, "min_new_tokens": 0, "n": 2, "temperature": 0.5},
    }
    assert translate_generate(body, LIMITS)["return_logprob"] == [False, False]


names = st.sampled_from([*FIELD_BY_NAME, *OPENAI_REFUSED, "temperature", "custom_params", "dlm"]) | st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(names, values, max_size=5))
def test_whatever_passes_carries_parameters_that_the_worker_accepts(body: dict[str, object]) -> None:
    try:
        translated = translate_openai(body, LIMITS)
    except RequestError:
        return
    assert not set(translated) & set(FIELD_BY_NAME)
    custom = translated["custom_params"]
    assert isinstance(custom, dict)
    assert not set(custom) & set(FIELD_BY_NAME)
    DecodeParams.from_flat(custom["dlm"], LIMITS)
