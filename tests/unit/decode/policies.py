"""Policies from request fields, for tests of rounds."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_sglang.decode.policy import DecodePolicy, make_policy
from dlm_sglang.params import DecodeParams, GenerationMode, ServerLimits

LIMITS = ServerLimits(default_mode=GenerationMode.AUTOREGRESSIVE)


def policies_of(
    requests: Sequence[dict[str, object]], temperature: float, *, top_p: float, max_new_tokens: int
) -> list[DecodePolicy]:
    """One policy per request, each with a seed of its own and stop id 2."""
    return [
        make_policy(
            DecodeParams.from_fields(fields, LIMITS),
            temperature=temperature,
            top_k=-1,
            top_p=top_p,
            min_p=0.0,
            seed=number,
            stop_ids=(2,),
            max_new_tokens=max_new_tokens,
        )
        for number, fields in enumerate(requests)
    ]
