"""Limits on how much a request may ask for: prompt tokens, output tokens and choices; numbers that fit the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlm_sglang.errors import RequestError, shown

# As many as OpenAI's own API takes.
MAX_CHOICES = 128
# What SGLang takes for a request of `/generate` that does not say.
SGLANG_DEFAULT_NEW_TOKENS = 128
# SGLang puts these into integers of 32 or 64 bits behind its own checks.
_INTEGERS = ("top_k", "min_tokens", "min_new_tokens", "stop_token_ids", "priority")
_MOST = (1 << 31) - 1

# Most alternatives of a token. OpenAI's API has 20.
MAX_TOP_LOGPROBS = 256
_RANGES = {
    **dict.fromkeys(_INTEGERS, (-_MOST, _MOST)),
    "logprob_start_len": (-1, _MOST),
    "top_logprobs_num": (0, MAX_TOP_LOGPROBS),
}


def check_size(body: Mapping[str, object], max_output_tokens: int | None) -> None:
    """Refuse a `/v1/*` body that asks for too many tokens or choices, or holds a number that no engine takes.

    Raises:
        RequestError: naming the field.
    """
    check_integers(body)
    for name in ("n", "best_of"):
        _check_choices(body, name, name)
    for name in ("max_tokens", "max_completion_tokens"):
        _check_tokens(body, name, name, max_output_tokens)


def sized(sampling: object, max_output_tokens: int | None) -> object:
    """SGLang's sampling parameters, for one prompt or a list, with the limit where no number stands.

    Raises:
        RequestError: too many tokens or choices are asked for, or a number is larger than the engine takes.
    """
    if isinstance(sampling, list):
        return [sized(one, max_output_tokens) for one in sampling]
    if not isinstance(sampling, Mapping):
        return sampling
    check_integers(sampling, "sampling_params.")
    _check_choices(sampling, "n", "sampling_params.n")
    if max_output_tokens is None:
        return sampling
    _check_tokens(sampling, "max_new_tokens", "sampling_params.max_new_tokens", max_output_tokens)
    asked = sampling.get("max_new_tokens", min(SGLANG_DEFAULT_NEW_TOKENS, max_output_tokens))
    return {**sampling, "max_new_tokens": max_output_tokens if asked is None else asked}


def check_integers(fields: Mapping[str, object], prefix: str = "") -> None:
    """Refuse numbers that would end the scheduler, which makes tensors of them or stumbles over them.

    Args:
        fields: of a request on any surface; a list holds one value per prompt.
        prefix: what stands before a field's name in messages.

    Raises:
        RequestError: naming the field.
    """
    for name, (low, high) in _RANGES.items():
        sent = fields.get(name)
        for value in sent if isinstance(sent, list | set | tuple) else [sent]:
            if isinstance(value, int | float) and not low <= value <= high:
                raise _out_of_range(f"{prefix}{name}", f"in {low}..{high}", value)


def check_prompt(token_ids: Sequence[int], most: int | None, vocab_size: int, param: str) -> None:
    """Refuse a prompt of too many tokens or none, or of ids that are no tokens.

    Raises:
        RequestError: naming `param`.
    """
    if most is not None and len(token_ids) > most:
        raise RequestError(
            f"the prompt must have at most {most} tokens (max_prompt_tokens), got {len(token_ids)}",
            param=param,
            code="prompt-too-long",
        )
    if not token_ids:
        raise RequestError("the prompt must have at least one token, got none", param=param, code="prompt-empty")
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"token ids of the prompt must be in 0..{vocab_size - 1}, got {shown(token_id)}",
                param=param,
                code="token-id-out-of-range",
            )


def _check_choices(fields: Mapping[str, object], name: str, shown_name: str) -> None:
    value = fields.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and not 1 <= value <= MAX_CHOICES:
        raise _out_of_range(shown_name, f"in 1..{MAX_CHOICES}", value)


def _check_tokens(fields: Mapping[str, object], name: str, shown_name: str, most: int | None) -> None:
    value = fields.get(name)
    if most is not None and isinstance(value, int | float) and value > most:
        raise _out_of_range(shown_name, f"at most {most} (max_output_tokens)", value)


def _out_of_range(name: str, allowed: str, value: object) -> RequestError:
    return RequestError(f"{name} must be {allowed}, got {shown(value)}", param=name, code="parameter-out-of-range")
