"""Fields that SGLang looks into before it checks their type."""

from __future__ import annotations

import pytest

from dlm_sglang.api.shapes import check_shapes
from dlm_sglang.errors import RequestError


def _schema(schema: object) -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "schema": schema}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": ["json_schema"]}, "response_format"),
        ({"response_format": "json_schema"}, "response_format"),
        (_schema("object"), "response_format.schema"),
        (_schema({"properties": None}), "response_format.schema.properties"),
        (_schema({"properties": ["strict"]}), "response_format.schema.properties"),
        (_schema({"properties": {"strict": True}}), "response_format.schema.properties.strict"),
    ],
)
def test_what_is_no_object_is_refused_by_its_path(body: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError, match="must be an object") as told:
        check_shapes(body)
    assert told.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"response_format": None},
        {"response_format": {"type": "text", "schema": 5}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
        _schema(None),
        _schema({}),
        _schema({"properties": {"strict": {"default": True}}}),
        _schema({"properties": {"strict": None}}),
    ],
)
def test_objects_and_absent_ones_pass(body: dict[str, object]) -> None:
    check_shapes(body)
