"""Request parameters: resolution, refusals, and the flat form that crosses to the worker."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_sglang.errors import RequestError, SettingsError
from dlm_sglang.param_table import FIELD_BY_NAME, FIELDS
from dlm_sglang.params import DecodeParams, GenerationMode, ServerLimits, closest_field

LIMITS = ServerLimits()
thresholds = st.floats(0, 1, allow_nan=False, exclude_min=True)
json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers())


@st.composite
def server_limits(draw: st.DrawFn) -> ServerLimits:
    longest = draw(st.integers(2, 64))
    return ServerLimits(
        default_mode=draw(st.sampled_from(GenerationMode)),
        default_block_length=draw(st.integers(2, longest)),
        max_block_length=longest,
        default_confidence_threshold=draw(st.none() | thresholds),
        default_draft_threshold=draw(st.floats(0, 1)),
    )


@st.composite
def good_fields(draw: st.DrawFn, limits: ServerLimits) -> dict[str, object]:
    mode = draw(st.sampled_from(GenerationMode))
    fields: dict[str, object] = {"generation_mode": mode.value}
    if mode is GenerationMode.AUTOREGRESSIVE:
        return fields
    block_length = draw(st.integers(2, limits.max_block_length))
    fields["block_length"] = block_length
    if mode is GenerationMode.AUTO:
        return fields
    if mode is GenerationMode.DIFFUSION:
        fields |= draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "max_denoising_steps": st.integers(1, block_length),
                    "confidence_threshold": st.none() | thresholds | st.just(1),
                    "seeded_blocks": st.booleans(),
                    "latency_budget_ms": st.none() | st.integers(1, 3_600_000),
                },
            )
        )
        return fields
    fields["draft_threshold"] = draw(st.floats(0, 1))
    if fields["draft_threshold"] and draw(st.booleans()):
        fields["max_denoising_steps"] = draw(st.integers(1, block_length))
    return fields


def resolve(**fields: object) -> DecodeParams:
    return DecodeParams.from_fields(fields, LIMITS)


def outcome(fields: dict[str, object]) -> tuple[DecodeParams | None, RequestError | None]:
    try:
        return DecodeParams.from_fields(fields, LIMITS), None
    except RequestError as error:
        return None, error


def refusal(**fields: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        DecodeParams.from_fields(fields, LIMITS)
    return caught.value


@given(st.data(), server_limits())
def test_flat_form_round_trips_through_json(data: st.DataObject, limits: ServerLimits) -> None:
    params = DecodeParams.from_fields(data.draw(good_fields(limits)), limits)
    flat = json.loads(json.dumps(params.to_flat()))
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert DecodeParams.from_flat(flat, limits) == params


@given(server_limits())
def test_no_fields_give_the_defaults_of_the_server(limits: ServerLimits) -> None:
    params = DecodeParams.from_fields({}, limits)
    assert params.mode is limits.default_mode
    longest = limits.max_block_length if params.mode is GenerationMode.AUTO else limits.default_block_length
    assert params.block_length in (1, longest)
    assert DecodeParams.from_flat(params.to_flat(), limits) == params


@given(st.dictionaries(st.sampled_from([*FIELD_BY_NAME, "other"]), json_values))
def test_any_json_is_resolved_or_refused_by_name(fields: dict[str, object]) -> None:
    params, error = outcome(fields)
    if params is not None:
        assert 1 <= params.block_length <= LIMITS.max_block_length
        assert 0 <= params.max_denoising_steps <= params.block_length
    if error is not None:
        assert error.param in fields
        assert error.code.startswith(("parameter-", "mode-"))
        assert error.param in error.message


@given(st.dictionaries(st.sampled_from([*FIELD_BY_NAME, "other"]), json_values))
def test_any_flat_form_that_is_accepted_is_one_that_we_write(flat: dict[str, object]) -> None:
    try:
        params = DecodeParams.from_flat(flat, LIMITS)
    except RequestError:
        return
    assert params.to_flat() == flat


def test_modes_have_their_presets() -> None:
    assert resolve(generation_mode="ar") == DecodeParams(GenerationMode.AUTOREGRESSIVE, 1, 0)
    assert resolve(generation_mode="diffusion") == DecodeParams(GenerationMode.DIFFUSION, 32, 32, 0.9)
    assert resolve() == DecodeParams(GenerationMode.SELF_SPECULATION, 32, 1)
    assert resolve(generation_mode="auto") == DecodeParams(GenerationMode.AUTO, 32, 1)
    assert resolve(draft_threshold=0.5, block_length=8).max_denoising_steps == 8


def test_null_is_a_threshold_and_elsewhere_not_given() -> None:
    assert resolve(generation_mode="diffusion", confidence_threshold=None).confidence_threshold is None
    assert resolve(generation_mode="diffusion").confidence_threshold == 0.9
    assert resolve(generation_mode=None, block_length=None, draft_threshold=None, seeded_blocks=None) == resolve()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"generation_mode": "automatic"}, "generation_mode", "mode-unknown"),
        ({"generation_mode": "auto", "block_length": 33}, "block_length", "parameter-out-of-range"),
        ({"generation_mode": "auto", "draft_threshold": 0.5}, "draft_threshold", "parameter-not-honoured"),
        ({"generation_mode": "auto", "max_denoising_steps": 2}, "max_denoising_steps", "parameter-not-honoured"),
        ({"generation_mode": "difusion"}, "generation_mode", "mode-unknown"),
        ({"generation_mode": 3}, "generation_mode", "parameter-type"),
        ({"block_length": 1}, "block_length", "parameter-out-of-range"),
        ({"block_length": 33}, "block_length", "parameter-out-of-range"),
        ({"block_length": True}, "block_length", "parameter-type"),
        ({"block_length": 8.0}, "block_length", "parameter-type"),
        ({"block_length": "8"}, "block_length", "parameter-type"),
        ({"generation_mode": "ar", "block_length": 8}, "block_length", "parameter-not-honoured"),
        ({"max_denoising_steps": 4}, "max_denoising_steps", "parameter-not-honoured"),
        ({"draft_threshold": 0, "max_denoising_steps": 4}, "max_denoising_steps", "parameter-not-honoured"),
        ({"confidence_threshold": 0.5}, "confidence_threshold", "parameter-not-honoured"),
        ({"confidence_threshold": None}, "confidence_threshold", "parameter-not-honoured"),
        ({"seeded_blocks": True}, "seeded_blocks", "parameter-not-honoured"),
        ({"draft_threshold": 1.5}, "draft_threshold", "parameter-out-of-range"),
        ({"draft_threshold": True}, "draft_threshold", "parameter-type"),
        ({"generation_mode": "diffusion", "confidence_threshold": 0}, "confidence_threshold", "parameter-out-of-range"),
        ({"generation_mode": "diffusion", "draft_threshold": 0.5}, "draft_threshold", "parameter-not-honoured"),
        ({"generation_mode": "diffusion", "seeded_blocks": 1}, "seeded_blocks", "parameter-type"),
        (
            {"generation_mode": "diffusion", "block_length": 8, "max_denoising_steps": 9},
            "max_denoising_steps",
            "parameter-out-of-range",
        ),
        ({"stream_denoising": 1}, "stream_denoising", "parameter-type"),
        ({"generation_mode": "ar", "stream_denoising": True}, "stream_denoising", "parameter-not-honoured"),
        ({"latency_budget_ms": 100}, "latency_budget_ms", "parameter-not-honoured"),
        ({"generation_mode": "auto", "latency_budget_ms": 100}, "latency_budget_ms", "parameter-not-honoured"),
        ({"generation_mode": "diffusion", "latency_budget_ms": 0}, "latency_budget_ms", "parameter-out-of-range"),
        ({"generation_mode": "diffusion", "latency_budget_ms": 1.5}, "latency_budget_ms", "parameter-type"),
        ({"blok_length": 8}, "blok_length", "parameter-unknown"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(fields: dict[str, object], param: str, code: str) -> None:
    error = refusal(**fields)
    assert (error.param, error.code) == (param, code)
    assert param in error.message


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_denoising_that_is_not_streamed_is_as_good_as_left_out(mode: GenerationMode) -> None:
    fields: dict[str, object] = {"generation_mode": mode}
    assert DecodeParams.from_fields({**fields, "stream_denoising": False}, LIMITS) == DecodeParams.from_fields(
        fields, LIMITS
    )


@pytest.mark.parametrize("mode", [GenerationMode.DIFFUSION, GenerationMode.SELF_SPECULATION])
def test_streamed_denoising_crosses_to_the_worker(mode: GenerationMode) -> None:
    params = DecodeParams.from_fields({"generation_mode": mode, "stream_denoising": True}, LIMITS)
    assert params.stream_denoising
    assert DecodeParams.from_flat(params.to_flat(), LIMITS) == params


def test_a_refusal_names_the_value_the_limit_and_the_way_out() -> None:
    error = refusal(generation_mode="diffusion", block_length=8, max_denoising_steps=9)
    assert str(error) == "max_denoising_steps must be in 1..8, got 9 (lower it or raise block_length)"
    assert "settling for less" in refusal(generation_mode="ar", latency_budget_ms=100).message
    assert refusal(generation_mode="difusion").hint == "did you mean diffusion?"
    assert refusal(blok_length=8).hint == "did you mean block_length?"


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refusal(generation_mode="x" * 10_000).message) < 250
    assert len(refusal(draft_threshold=10**5000).message) < 250


@pytest.mark.parametrize(
    "flat",
    [
        {},
        {"generation_mode": "autoregressive"},
        {**DecodeParams.from_fields({}, LIMITS).to_flat(), "max_denoising_steps": 5},
        {**DecodeParams.from_fields({}, LIMITS).to_flat(), "block_length": 64},
        {**DecodeParams.from_fields({}, LIMITS).to_flat(), "confidence_threshold": 0.5},
        {**DecodeParams.from_fields({}, LIMITS).to_flat(), "other": 1},
    ],
)
def test_a_forged_flat_form_is_refused(flat: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        DecodeParams.from_flat(flat, LIMITS)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_block_length": 1},
        {"default_block_length": 64},
        {"default_confidence_threshold": 0.0},
        {"default_draft_threshold": 2.0},
    ],
)
def test_limits_that_contradict_each_other_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        ServerLimits(**limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_denoise_steps", "max_denoising_steps"),
        ("generationMode", "generation_mode"),
        ("generation-mode", "generation_mode"),
        ("confidence_treshold", "confidence_threshold"),
        ("seeded_block", "seeded_blocks"),
        ("stream_denoise", "stream_denoising"),
        ("stream_reasoning", None),
        ("temperature", None),
        ("max_tokens", None),
        ("model", None),
    ],
)
def test_misspelt_names_are_recognised(name: str, near: str | None) -> None:
    assert closest_field(name) == near


def test_the_table_names_each_field_once() -> None:
    assert len(FIELD_BY_NAME) == len(FIELDS)
