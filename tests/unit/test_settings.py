"""Server settings: where a value comes from, and what is refused."""

from __future__ import annotations

import pytest

from dlm_sglang.decode.budget import BudgetBounds
from dlm_sglang.errors import SettingsError
from dlm_sglang.params import DecodeParams, GenerationMode
from dlm_sglang.setting_table import SETTING_BY_NAME, SETTINGS
from dlm_sglang.settings import DecodeSettings, allowed, resolve


def test_a_flag_goes_before_a_variable_before_yaml_before_the_default() -> None:
    yaml_values = {"port": 1003, "host": "yaml", "tp_size": 4}
    environ = {"DLM_PORT": "1002", "DLM_HOST": "variable"}
    resolved = resolve({"port": "1001"}, environ, yaml_values, "a.yaml")
    assert (resolved["port"].value, resolved["port"].source) == (1001, "flag")
    assert (resolved["host"].value, resolved["host"].source) == ("variable", "variable")
    assert (resolved["tp_size"].value, resolved["tp_size"].source) == (4, "a.yaml")
    assert (resolved["dtype"].value, resolved["dtype"].source) == ("auto", "default")


def test_every_setting_has_a_default_that_it_accepts() -> None:
    resolved = resolve({}, {}, {setting.name: setting.default for setting in SETTINGS})
    assert {name: item.value for name, item in resolved.items()} == {s.name: s.default for s in SETTINGS}
    assert all(allowed(setting) for setting in SETTINGS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "0"),
        ("port", "65536"),
        ("port", "http"),
        ("tp_size", "1.5"),
        ("dtype", "int4"),
        ("host", ""),
        ("mem_fraction_static", "nan"),
        ("default_generation_mode", "fast"),
        ("default_draft_threshold", "null"),
        ("max_block_length", "1"),
    ],
)
def test_a_bad_flag_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve({name: text}, {}, {})
    assert SETTING_BY_NAME[name].flag in caught.value.message
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("key", "value"), [("port", "30000"), ("port", True), ("port", 1.0), ("host", 3), ("dtype", None)]
)
def test_a_yaml_value_of_the_wrong_type_is_refused(key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"a.yaml: {key} must be"):
        resolve({}, {}, {key: value}, "a.yaml")


def test_an_unknown_yaml_key_is_refused_with_the_closest_name() -> None:
    with pytest.raises(SettingsError) as caught:
        resolve({}, {}, {"max-block-lenght": 8}, "a.yaml")
    assert caught.value.code == "setting-unknown"
    assert caught.value.hint == "did you mean max_block_length?"


def test_a_secret_is_not_in_the_message() -> None:
    with pytest.raises(SettingsError) as caught:
        resolve({}, {}, {"api_key": 987654}, "a.yaml")
    assert "987654" not in str(caught.value)


def test_auto_may_be_the_mode_of_requests_that_name_none() -> None:
    settings = DecodeSettings.from_env({"DLM_DEFAULT_GENERATION_MODE": "auto", "DLM_MAX_BLOCK_LENGTH": "16"})
    assert DecodeParams.from_fields({}, settings.limits()) == DecodeParams(GenerationMode.AUTO, 16, 1)


def test_bounds_of_latency_budgets_come_from_the_variables() -> None:
    environ = {"DLM_BUDGET_MIN_THRESHOLD": "0.7", "DLM_BUDGET_MIN_STEPS": "5"}
    assert DecodeSettings.from_env(environ).budget_bounds == BudgetBounds(0.7, 5)
    assert DecodeSettings.from_env({}).budget_bounds == BudgetBounds(0.5, 2)


def test_decode_settings_come_from_the_variables() -> None:
    settings = DecodeSettings.from_env(
        {
            "DLM_MAX_BLOCK_LENGTH": "16",
            "DLM_DEFAULT_GENERATION_MODE": "ar",
            "DLM_DEFAULT_CONFIDENCE_THRESHOLD": "null",
            "DLM_DEFAULT_BLOCK_LENGTH": "8",
        }
    )
    limits = settings.limits()
    assert (limits.max_block_length, limits.default_block_length) == (16, 8)
    assert limits.default_mode is GenerationMode.AUTOREGRESSIVE
    assert limits.default_confidence_threshold is None
    assert limits.default_draft_threshold == 0.0


@pytest.mark.parametrize(
    ("flag", "checkpoint", "expected"),
    [(None, None, (32, 32)), (16, 32, (16, 16)), (None, 8, (32, 8)), (64, 16, (64, 16)), (2, 1, (2, 2))],
)
def test_default_block_length_is_the_checkpoints_under_the_maximum(
    flag: int | None, checkpoint: int | None, expected: tuple[int, int]
) -> None:
    limits = DecodeSettings.from_env({}).limits(max_block_length=flag, checkpoint_block_length=checkpoint)
    assert (limits.max_block_length, limits.default_block_length) == expected


def test_a_default_block_above_the_maximum_is_refused() -> None:
    with pytest.raises(SettingsError, match="default_block_length"):
        DecodeSettings.from_env({"DLM_DEFAULT_BLOCK_LENGTH": "64"}).limits()


def test_an_empty_variable_counts_as_not_set() -> None:
    assert resolve({}, {"DLM_PORT": ""}, {})["port"].source == "default"
