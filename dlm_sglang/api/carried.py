"""Our fields inside `chat_template_kwargs.dlm`, for what stands between a client and us and drops fields unknown to it.

SGLang's router is such: of a chat request it hands on the fields that it knows, and `chat_template_kwargs` whole.
"""

from __future__ import annotations

from collections.abc import Mapping

from dlm_sglang.errors import RequestError, shown
from dlm_sglang.param_table import FIELD_BY_NAME

CARRIER = "chat_template_kwargs"
KEY = "dlm"


def unpacked(body: Mapping[str, object]) -> Mapping[str, object]:
    """The body with the fields that are carried in it in their own places.

    Raises:
        RequestError: what is carried is no object, holds a field that is none of ours, or one that the body has, too.
    """
    carrier = body.get(CARRIER)
    if not isinstance(carrier, Mapping) or KEY not in carrier:
        return body
    carried = carrier[KEY]
    where = f"{CARRIER}.{KEY}"
    if not isinstance(carried, Mapping):
        raise RequestError(
            f"{where} must be an object with our fields, got {shown(carried)}", param=where, code="parameter-type"
        )
    for name in carried:
        if name not in FIELD_BY_NAME:
            raise RequestError(
                f"{where} knows no field {shown(name)}; it takes {', '.join(FIELD_BY_NAME)}",
                param=f"{where}.{name}",
                code="parameter-unknown",
            )
        if name in body:
            raise RequestError(f"{name} is given in {where} and beside it", param=name, code="parameter-conflict")
    rest = {name: value for name, value in carrier.items() if name != KEY}
    return {**body, CARRIER: rest, **carried}
