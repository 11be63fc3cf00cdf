"""Fields that SGLang looks into before it checks their type: refused here, where it would answer with an error 500."""

from __future__ import annotations

from collections.abc import Mapping

from dlm_sglang.errors import RequestError, shown

# In a response format of type `json_schema`, from one to the next.
_SCHEMA_PATH = ("schema", "properties", "strict")


def check_shapes(body: Mapping[str, object]) -> None:
    """Refuse a `/v1/*` body in which something else stands where SGLang expects an object.

    Raises:
        RequestError: naming the field, with the path to it.
    """
    path = "response_format"
    found = _object(body.get(path), path)
    if found is None or found.get("type") != "json_schema":
        return
    for name in _SCHEMA_PATH:
        path = f"{path}.{name}"
        if found is None or name not in found:
            return
        # Where the others may be null, SGLang looks into these all the same.
        found = _object(found[name], path, may_be_null=name != "properties")


def _object(value: object, path: str, *, may_be_null: bool = True) -> Mapping[str, object] | None:
    if isinstance(value, Mapping) or (value is None and may_be_null):
        return value
    raise RequestError(f"{path} must be an object, got {shown(value)}", param=path, code="parameter-type")
