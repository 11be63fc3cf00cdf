"""The generated reference: current, complete, and in agreement with the checks."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from dlm_sglang.cli import reference
from dlm_sglang.cli.main import main
from dlm_sglang.param_table import FIELDS
from dlm_sglang.setting_table import SETTINGS

PAGE = Path(__file__).parents[3] / "docs" / "parameters.md"


def test_docs_parameters_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.markdown(), "run: dlm-sglang params > docs/parameters.md"


def test_markdown_names_every_field_and_setting() -> None:
    page = reference.markdown()
    assert all(f"`{field.name}`" in page for field in FIELDS)
    assert all(f"`{setting.variable}`" in page for setting in SETTINGS)


def test_both_forms_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params"]) == 0
    assert capsys.readouterr().out == reference.markdown()
    assert main(["params", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"request", "settings"}


@pytest.mark.parametrize(
    ("settings", "accepted"),
    [
        ({"port": 30000, "dtype": "auto", "default_generation_mode": "ar"}, True),
        ({"default_confidence_threshold": None}, True),
        ({"port": 0}, False),
        ({"prot": 30000}, False),
        ({"default_draft_threshold": None}, False),
    ],
)
def test_the_yaml_schema_agrees_with_the_checks(settings: dict[str, object], accepted: bool) -> None:
    validator = jsonschema.Draft202012Validator(reference.settings_schema())
    assert validator.is_valid(settings) is accepted


@pytest.mark.parametrize(
    ("fields", "accepted"),
    [
        ({"generation_mode": "diffusion", "confidence_threshold": None}, True),
        ({"generation_mode": "auto"}, True),
        ({"generation_mode": "fast"}, False),
        ({"confidence_threshold": 0}, False),
        ({"draft_threshold": 0, "block_length": 2}, True),
        ({"block_length": 1}, False),
        ({"messages": []}, True),
    ],
)
def test_the_request_schema_agrees_with_the_checks(fields: dict[str, object], accepted: bool) -> None:
    assert jsonschema.Draft202012Validator(reference.request_schema()).is_valid(fields) is accepted
