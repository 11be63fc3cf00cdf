"""Our part of the server's OpenAPI schema."""

from __future__ import annotations

from collections.abc import Mapping

from dlm_sglang.cli.reference import request_schema

# SGLang's names for the bodies of the routes that take our fields at the top level.
BODIES = ("ChatCompletionRequest", "CompletionRequest")


def with_our_fields(schema: dict[str, object]) -> dict[str, object]:
    """Add our request fields to the bodies of the OpenAI routes, in place; more than once changes nothing."""
    components = schema.get("components")
    schemas = components.get("schemas") if isinstance(components, Mapping) else None
    if not isinstance(schemas, Mapping):
        return schema
    fields = request_schema()["properties"]
    for name in BODIES:
        body = schemas.get(name)
        if isinstance(body, dict) and isinstance(fields, Mapping):
            body["properties"] = {**body.get("properties", {}), **fields}
    return schema
