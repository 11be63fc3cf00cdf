"""The request parameters of one request, checked and resolved; the table is in `param_table.py`.

`DecodeParams` is the resolved form. It crosses to the decode worker once, as
`custom_params["dlm"]` (see `to_flat`): the HTTP front end writes it, the worker reads it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from dlm_sglang.errors import RequestError, SettingsError, shown
from dlm_sglang.param_table import (
    FIELD_BY_NAME,
    MAX_LATENCY_BUDGET_MS,
    MIN_BLOCK_LENGTH,
    MODE_BY_NAME,
    GenerationMode,
)

__all__ = [
    "DENOISING_KEY",
    "FLAT_KEY",
    "DecodeParams",
    "GenerationMode",
    "Scalar",
    "ServerLimits",
    "closest_field",
    "parse_mode",
    "unknown_field",
]

FLAT_KEY = "dlm"
# Under this name provisional blocks travel from the worker to the HTTP process, and clients get them.
DENOISING_KEY = "dlm_denoising"
# Longer than any parameter with a few letters too many.
_LONGEST_MISSPELLING = 64
_MOST_THINKING_TOKENS = 1 << 30
# SGLang's own field, which reads like `stream_denoising`.
_SPELT_RIGHT = frozenset({"stream_reasoning"})
_MODES_ALLOWED = f"one of {', '.join(GenerationMode)} (or ar)"
Scalar = bool | int | float | str


@dataclass(frozen=True)
class ServerLimits:
    """What the server allows and what it uses when a request does not say.

    Raises:
        SettingsError: the limits contradict each other.
    """

    default_mode: GenerationMode = GenerationMode.SELF_SPECULATION
    default_block_length: int = 32
    max_block_length: int = 32
    default_confidence_threshold: float | None = 0.9
    default_draft_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.max_block_length < MIN_BLOCK_LENGTH:
            self._refuse("max_block_length", self.max_block_length, f"at least {MIN_BLOCK_LENGTH}")
        if not MIN_BLOCK_LENGTH <= self.default_block_length <= self.max_block_length:
            allowed = f"in {MIN_BLOCK_LENGTH}..{self.max_block_length} (max_block_length)"
            self._refuse("default_block_length", self.default_block_length, allowed)
        threshold = self.default_confidence_threshold
        if threshold is not None and not 0 < threshold <= 1:
            self._refuse("default_confidence_threshold", threshold, "above 0 and at most 1")
        if not 0 <= self.default_draft_threshold <= 1:
            self._refuse("default_draft_threshold", self.default_draft_threshold, "in 0..1")

    def _refuse(self, setting: str, value: object, allowed: str) -> None:
        raise SettingsError(
            f"{setting} must be {allowed}, got {shown(value)}", setting=setting, code="setting-out-of-range"
        )


@dataclass(frozen=True)
class DecodeParams:
    """The parameters of one request after defaults and checks.

    Attributes:
        block_length: 1 in autoregressive mode, the longest that may be chosen in `auto`.
        max_denoising_steps: 0 in autoregressive mode, 1 in `auto` and in self-speculation without draft threshold.
        confidence_threshold: None spreads masks evenly over the steps; None outside diffusion mode.
        max_thinking_tokens: None lets thoughts end by themselves.
        stream_denoising: the client of this stream watches its blocks; False in autoregressive mode.
        latency_budget_ms: None is no budget.
    """

    mode: GenerationMode
    block_length: int
    max_denoising_steps: int
    confidence_threshold: float | None = None
    draft_threshold: float = 0.0
    seeded_blocks: bool = True
    max_thinking_tokens: int | None = None
    stream_denoising: bool = False
    latency_budget_ms: int | None = None

    @classmethod
    def from_fields(cls, fields: Mapping[str, object], limits: ServerLimits) -> DecodeParams:
        """Resolve the fields that a client sent.

        Raises:
            RequestError: a field is unknown, of the wrong JSON type, out of range, or not honoured
                in the chosen mode.
        """
        for name in fields:
            if name not in FIELD_BY_NAME:
                raise unknown_field(name)
        sent = {name: value for name, value in fields.items() if value is not None or FIELD_BY_NAME[name].nullable}
        mode = parse_mode(sent.pop("generation_mode", limits.default_mode))
        if sent.get("stream_denoising") is False:
            # Nothing to honour, in any mode.
            del sent["stream_denoising"]
        for name, value in sent.items():
            if mode not in FIELD_BY_NAME[name].modes:
                raise _not_honoured(name, value, mode)
        thinking = None
        if "max_thinking_tokens" in sent:
            thinking = _integer(sent, "max_thinking_tokens", 0, _MOST_THINKING_TOKENS, 0)
        if mode is GenerationMode.AUTOREGRESSIVE:
            return cls(mode, block_length=1, max_denoising_steps=0, max_thinking_tokens=thinking)
        watched = _boolean(sent, "stream_denoising", default=False)
        default_length = limits.max_block_length if mode is GenerationMode.AUTO else limits.default_block_length
        block_length = _integer(sent, "block_length", MIN_BLOCK_LENGTH, limits.max_block_length, default_length)
        if mode is GenerationMode.AUTO:
            return cls(
                mode, block_length, max_denoising_steps=1, max_thinking_tokens=thinking, stream_denoising=watched
            )
        if mode is GenerationMode.DIFFUSION:
            return cls(
                mode,
                block_length,
                _integer(sent, "max_denoising_steps", 1, block_length, block_length),
                _confidence_threshold(sent, limits.default_confidence_threshold),
                seeded_blocks=_boolean(sent, "seeded_blocks", default=True),
                max_thinking_tokens=thinking,
                stream_denoising=watched,
                latency_budget_ms=_integer(sent, "latency_budget_ms", 1, MAX_LATENCY_BUDGET_MS, 0) or None,
            )
        draft_threshold = _number(sent, "draft_threshold", limits.default_draft_threshold)
        if draft_threshold > 0:
            steps = _integer(sent, "max_denoising_steps", 1, block_length, block_length)
        elif "max_denoising_steps" in sent:
            raise _not_honoured("max_denoising_steps", sent["max_denoising_steps"], mode)
        else:
            steps = 1
        return cls(
            mode,
            block_length,
            steps,
            draft_threshold=draft_threshold,
            max_thinking_tokens=thinking,
            stream_denoising=watched,
        )

    def to_flat(self) -> dict[str, Scalar]:
        """The form that crosses to the worker: scalars; what is None, or a `stream_denoising` of False, is left out."""
        flat: dict[str, Scalar] = {
            "generation_mode": self.mode.value,
            "block_length": self.block_length,
            "max_denoising_steps": self.max_denoising_steps,
            "draft_threshold": self.draft_threshold,
            "seeded_blocks": self.seeded_blocks,
        }
        if self.confidence_threshold is not None:
            flat["confidence_threshold"] = self.confidence_threshold
        if self.max_thinking_tokens is not None:
            flat["max_thinking_tokens"] = self.max_thinking_tokens
        if self.stream_denoising:
            flat["stream_denoising"] = True
        if self.latency_budget_ms is not None:
            flat["latency_budget_ms"] = self.latency_budget_ms
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, object], limits: ServerLimits) -> DecodeParams:
        """Read what `to_flat` wrote, trusting nothing.

        Raises:
            RequestError: the mapping is not one that `to_flat` writes under these limits.
        """
        mode = parse_mode(flat.get("generation_mode"))
        one_step = mode is GenerationMode.SELF_SPECULATION and flat.get("draft_threshold") == 0
        fields = {
            name: value
            for name, value in {"confidence_threshold": None, **flat}.items()
            if name not in FIELD_BY_NAME or mode in FIELD_BY_NAME[name].modes
        }
        if one_step:
            fields.pop("max_denoising_steps", None)
        params = cls.from_fields(fields, limits)
        if params.to_flat() != dict(flat):
            raise RequestError(
                f"custom_params[{FLAT_KEY!r}] is not what the front end writes, got {shown(dict(flat))}",
                param=f"custom_params.{FLAT_KEY}",
                code="parameter-forged",
                hint="send generation_mode and its companions as request fields",
            )
        return params


def unknown_field(name: str) -> RequestError:
    """The error for a field that this server does not have, with the closest name as the hint."""
    near = closest_field(name)
    return RequestError(
        f"unknown parameter {shown(name)}; known are {', '.join(FIELD_BY_NAME)}",
        param=str(name),
        code="parameter-unknown",
        hint=f"did you mean {near}?" if near else None,
    )


@lru_cache(maxsize=512)
def closest_field(name: str) -> str | None:
    """The parameter that `name` is probably a misspelling of, or None.

    Every key of every request is asked about, and clients send the same ones again and again.
    """
    if len(name) > _LONGEST_MISSPELLING or name in _SPELT_RIGHT:
        return None
    near = difflib.get_close_matches(name.lower(), FIELD_BY_NAME, n=1, cutoff=0.75)
    return near[0] if near else None


def parse_mode(value: object) -> GenerationMode:
    """The mode that a name or alias stands for.

    Raises:
        RequestError: there is no such mode.
    """
    if not isinstance(value, str):
        raise _wrong_type("generation_mode", value, _MODES_ALLOWED)
    mode = MODE_BY_NAME.get(value)
    if mode is None:
        near = difflib.get_close_matches(value.lower(), MODE_BY_NAME, n=1)
        raise RequestError(
            f"generation_mode must be {_MODES_ALLOWED}, got {shown(value)}",
            param="generation_mode",
            code="mode-unknown",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return mode


def _integer(sent: Mapping[str, object], name: str, low: int, high: int, default: int) -> int:
    if name not in sent:
        return default
    value = sent[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, value, f"an integer in {low}..{high}")
    if not low <= value <= high:
        raise _out_of_range(name, value, f"in {low}..{high}")
    return value


def _number(sent: Mapping[str, object], name: str, default: float) -> float:
    if name not in sent:
        return default
    value = sent[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, value, f"a number, {FIELD_BY_NAME[name].allowed}")
    if not 0 <= value <= 1:
        raise _out_of_range(name, value, FIELD_BY_NAME[name].allowed)
    return float(value)


def _confidence_threshold(sent: Mapping[str, object], default: float | None) -> float | None:
    name = "confidence_threshold"
    if name not in sent:
        return default
    if sent[name] is None:
        return None
    value = _number(sent, name, 0.0)
    if value == 0:
        raise _out_of_range(name, value, FIELD_BY_NAME[name].allowed)
    return value


def _boolean(sent: Mapping[str, object], name: str, *, default: bool) -> bool:
    value = sent.get(name, default)
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "true or false")
    return value


def _wrong_type(name: str, value: object, allowed: str) -> RequestError:
    return RequestError(f"{name} must be {allowed}, got {shown(value)}", param=name, code="parameter-type")


def _out_of_range(name: str, value: object, allowed: str) -> RequestError:
    hint = "lower it or raise block_length" if name == "max_denoising_steps" and value != 0 else None
    return RequestError(
        f"{name} must be {allowed}, got {shown(value)}", param=name, code="parameter-out-of-range", hint=hint
    )


def _not_honoured(name: str, value: object, mode: GenerationMode) -> RequestError:
    field = FIELD_BY_NAME[name]
    condition = f", {field.condition}" if field.condition else ""
    reason = f": {field.elsewhere}" if field.elsewhere else ""
    return RequestError(
        f"{name} has no effect in {mode} mode, got {shown(value)}; it is honoured in "
        f"{', '.join(sorted(field.modes))}{condition}{reason}",
        param=name,
        code="parameter-not-honoured",
        hint=f"leave {name} out or choose another generation_mode",
    )
