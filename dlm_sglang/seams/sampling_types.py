"""The types of SGLang's sampling parameters, checked where `/generate` takes any JSON for them.

SGLang itself checks ranges only. What has the wrong type fails where it is used, in the scheduler, and ends it.
"""

from __future__ import annotations

import typing
from functools import cache
from typing import Any

import msgspec
from sglang.srt.sampling.sampling_params import SamplingParams

from dlm_sglang.errors import RequestError, shown

# Ours is nested deeper than SGLang's type says, and checked by `api/translate.py`.
_OURS = "custom_params"


def check_types(sampling: object) -> None:
    """Refuse sampling parameters, for one prompt or a list, of which one has another type than SGLang declares.

    Names that SGLang does not know are left to it; null stands for its default.

    Raises:
        RequestError: naming the field, with the type that it must have.
    """
    for one in sampling if isinstance(sampling, list) else [sampling]:
        if isinstance(one, dict):
            _check(one)


def _check(sampling: dict[str, Any]) -> None:
    types = _types()
    for name, value in sampling.items():
        if value is None or name not in types:
            continue
        try:
            msgspec.convert(value, types[name])
        except msgspec.ValidationError as error:
            told = str(error).replace(" | null", "").replace("`", "").partition(", got")[0]
            raise RequestError(
                f"sampling_params.{name}: {told[:1].lower()}{told[1:]}, got {shown(value)}",
                param=f"sampling_params.{name}",
                code="parameter-type",
            ) from None


@cache
def _types() -> dict[str, Any]:
    return {name: kind for name, kind in typing.get_type_hints(SamplingParams).items() if name != _OURS}
