"""JSON schemas as clients send them: one per feature, and some that mix them.

Everything in them is bounded, so that an answer under the schema must end: a small model may go on for ever in a text
or a list that has no limit.
"""

from __future__ import annotations

from collections.abc import Mapping

Schema = Mapping[str, object]

_NAME: Schema = {"type": "string", "maxLength": 8}
_DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}
_ADDRESS: Schema = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo", "Rome"]}, "number": _DIGIT},
    "required": ["city", "number"],
    "additionalProperties": False,
}


def _object(required: Mapping[str, object], optional: Mapping[str, object] | None = None) -> Schema:
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


SCHEMAS: Mapping[str, Schema] = {
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "const": {"const": "done"},
    "enum of texts": {"enum": ["red", "green", "blue"]},
    "enum of several types": {"enum": ["auto", 1, 2.5, True, None]},
    "integer in a range": {"type": "integer", "minimum": -20, "maximum": 300},
    "text of a length": {"type": "string", "minLength": 2, "maxLength": 6},
    "text of a pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "date": _object({"day": {"type": "string", "pattern": "^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9])$"}}),
    "list of integers": {"type": "array", "items": _DIGIT, "minItems": 1, "maxItems": 4},
    "list of enums": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3},
    "list of lists": {
        "type": "array",
        "items": {"type": "array", "items": _DIGIT, "minItems": 1, "maxItems": 2},
        "minItems": 1,
        "maxItems": 2,
    },
    "tuple": {
        "type": "array",
        "prefixItems": [{"enum": ["x", "y"]}, _DIGIT, {"type": "boolean"}],
        "items": False,
        "minItems": 3,
        "maxItems": 3,
    },
    "person": _object({"name": _NAME, "age": {"type": "integer", "minimum": 0, "maximum": 120}}),
    "optional fields": _object({"id": _DIGIT}, {"tag": {"enum": ["new", "old"]}, "done": {"type": "boolean"}}),
    "nullable field": _object({"name": {"type": ["string", "null"], "maxLength": 6}, "id": _DIGIT}),
    "nested objects": _object({"name": _NAME, "address": _ADDRESS}),
    "list of objects": _object({"people": {"type": "array", "items": _ADDRESS, "minItems": 1, "maxItems": 2}}),
    "references": {
        "$defs": {"address": _ADDRESS},
        **_object({"home": {"$ref": "#/$defs/address"}, "work": {"$ref": "#/$defs/address"}}),
    },
    "any of": {"anyOf": [{"enum": ["none"]}, _object({"value": _DIGIT})]},
    "any of in a field": _object({"size": {"anyOf": [_DIGIT, {"enum": ["large", "small"]}]}}),
    "tagged union": _object(
        {
            "shape": {
                "anyOf": [
                    _object({"kind": {"const": "circle"}, "radius": _DIGIT}),
                    _object({"kind": {"const": "square"}, "side": _DIGIT}),
                ]
            }
        }
    ),
    "tool call": _object(
        {
            "tool": {"enum": ["search", "add"]},
            "arguments": _object({"query": {"type": "string", "maxLength": 10}, "limit": _DIGIT}),
        }
    ),
    "names outside of ASCII": _object({"größe": _DIGIT, "名前": {"enum": ["花", "月"]}}),
    "field names to be escaped": _object({'a "quoted" name': _DIGIT, "back\\slash": {"type": "boolean"}}),
}
