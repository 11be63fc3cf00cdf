"""Virtual model names: `NAME:diffusion` is the served model with `generation_mode` set.

For clients that can name a model and cannot send more fields. SGLang knows the served name alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from dlm_sglang.errors import RequestError, shown
from dlm_sglang.param_table import MODE_BY_NAME, GenerationMode
from dlm_sglang.params import parse_mode

MODELS_PATH = "/v1/models"


def split_name(name: str, served: str) -> tuple[str, GenerationMode | None]:
    """The model and the mode that a name stands for; a name that is not the served one stays as it is.

    Raises:
        RequestError: what stands behind the served name is no mode.
    """
    if name == served or not name.startswith(f"{served}:"):
        return name, None
    suffix = name[len(served) + 1 :]
    if suffix not in MODE_BY_NAME:
        raise RequestError(
            f"model must be {served} or {served}:MODE with MODE one of {', '.join(MODE_BY_NAME)}, got {shown(name)}",
            param="model",
            code="model_not_found",
        )
    return served, MODE_BY_NAME[suffix]


def resolve_model(body: Mapping[str, object], served: str) -> dict[str, object]:
    """The body with the served name and, where the name told it, with `generation_mode`.

    Raises:
        RequestError: the name's mode is unknown, or the request names another one.
    """
    name = body.get("model")
    if not isinstance(name, str):
        return dict(body)
    model, mode = split_name(name, served)
    if mode is None:
        return dict(body)
    resolved = {**body, "model": model}
    custom = body.get("custom_params")
    for sent in (body.get("generation_mode"), custom.get("generation_mode") if isinstance(custom, Mapping) else None):
        if sent is None:
            continue
        if parse_mode(sent) is not mode:
            raise RequestError(
                f"model {shown(name)} decodes in {mode} mode, but generation_mode is {shown(sent)}",
                param="generation_mode",
                code="parameter-conflict",
                hint=f"leave generation_mode out or send model {served}",
            )
        # It says the same, where it stands.
        return resolved
    return {**resolved, "generation_mode": mode.value}


def with_virtual_cards(listing: bytes, served: str) -> bytes:
    """The answer of `/v1/models` with a card for each mode behind the served model's."""
    models = orjson.loads(listing)
    cards = []
    for card in models["data"]:
        cards.append(card)
        if card.get("id") == served:
            cards += [_virtual(card, served, mode) for mode in GenerationMode]
    return orjson.dumps({**models, "data": cards})


def virtual_card(card: bytes, name: str, served: str) -> bytes:
    """The answer of `/v1/models/NAME:MODE`, from that of `/v1/models/NAME`."""
    _, mode = split_name(name, served)
    return card if mode is None else orjson.dumps({**_virtual(orjson.loads(card), served, mode), "id": name})


def _virtual(card: Mapping[str, object], served: str, mode: GenerationMode) -> dict[str, object]:
    return {**card, "id": f"{served}:{mode}", "root": served, "parent": served}
