"""The server's settings, resolved; the table is in `setting_table.py`.

A flag goes before its `DLM_*` variable, that before the YAML file, that before the default. The
decode settings have no flag in SGLang: `dlm-sglang serve` writes them back into their variables, so
that every process of the server reads the same (`DecodeSettings.from_env`), and a server started by
`python -m sglang.launch_server` takes them from the same variables.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from dlm_sglang.decode.budget import BudgetBounds
from dlm_sglang.errors import RequestError, SettingsError, shown
from dlm_sglang.param_table import MIN_BLOCK_LENGTH, GenerationMode
from dlm_sglang.params import ServerLimits, parse_mode
from dlm_sglang.setting_table import SETTING_BY_NAME, SETTINGS, Setting, Value

NULL_WORDS = ("null", "none")
_BOOLEAN_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Resolved:
    """A value and where it came from: `flag`, `variable`, the YAML file's path or `default`."""

    value: Value
    source: str


def resolve(
    flags: Mapping[str, str], environ: Mapping[str, str], yaml_values: Mapping[str, object], yaml_source: str = "YAML"
) -> dict[str, Resolved]:
    """The value of every setting.

    Args:
        flags: what the command line gave, by setting name.
        environ: the process environment.
        yaml_values: the YAML file's mapping.
        yaml_source: the file's path, for messages.

    Raises:
        SettingsError: a key is unknown, or a value of the wrong type or out of range.
    """
    for key in yaml_values:
        if key not in SETTING_BY_NAME:
            raise _unknown_key(str(key), yaml_source)
    resolved: dict[str, Resolved] = {}
    for setting in SETTINGS:
        if setting.name in flags:
            resolved[setting.name] = Resolved(_from_text(setting, flags[setting.name], setting.flag), "flag")
        elif environ.get(setting.variable, "") != "":
            text = environ[setting.variable]
            resolved[setting.name] = Resolved(_from_text(setting, text, setting.variable), "variable")
        elif setting.name in yaml_values:
            value = _checked(setting, yaml_values[setting.name], f"{yaml_source}: {setting.name}")
            resolved[setting.name] = Resolved(value, yaml_source)
        else:
            resolved[setting.name] = Resolved(setting.default, "default")
    return resolved


@dataclass(frozen=True)
class DecodeSettings:
    """What the decode worker and the HTTP front end need and SGLang has no flag for."""

    max_block_length: int
    default_mode: GenerationMode
    default_block_length: int | None
    default_confidence_threshold: float | None
    default_draft_threshold: float
    budget_bounds: BudgetBounds = BudgetBounds(0.5, 2)  # noqa: RUF009 - frozen
    overlap_schedule: str = "auto"
    pad_rounds: str = "auto"
    max_padded_tokens: int = 1024
    prefill_attention: str = "auto"
    round_trace: str | None = None
    round_trace_reads: str = "off"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> DecodeSettings:
        """Read the `DLM_*` variables; what is not set has its default.

        Raises:
            SettingsError: a variable has a value of the wrong type or out of range.
        """
        resolved = resolve({}, os.environ if environ is None else environ, {})
        return cls.from_resolved(resolved)

    @classmethod
    def from_resolved(cls, resolved: Mapping[str, Resolved]) -> DecodeSettings:
        """Take the decode settings out of all settings."""

        def number(name: str) -> float | None:
            value = resolved[name].value
            return float(value) if isinstance(value, int | float) else None

        block_length = number("default_block_length")
        return cls(
            max_block_length=int(number("max_block_length") or 0),
            default_mode=parse_mode(resolved["default_generation_mode"].value),
            default_block_length=None if block_length is None else int(block_length),
            default_confidence_threshold=number("default_confidence_threshold"),
            default_draft_threshold=number("default_draft_threshold") or 0.0,
            budget_bounds=BudgetBounds(number("budget_min_threshold") or 0.0, int(number("budget_min_steps") or 1)),
            overlap_schedule=str(resolved["overlap_schedule"].value),
            pad_rounds=str(resolved["pad_rounds"].value),
            max_padded_tokens=int(number("max_padded_tokens") or 0),
            prefill_attention=str(resolved["prefill_attention"].value),
            round_trace=None if resolved["round_trace"].value is None else str(resolved["round_trace"].value),
            round_trace_reads=str(resolved["round_trace_reads"].value),
        )

    def limits(
        self, *, max_block_length: int | None = None, checkpoint_block_length: int | None = None
    ) -> ServerLimits:
        """What a request may ask for on this server.

        Args:
            max_block_length: SGLang's `--speculative-num-draft-tokens`, where it is set; it goes
                before the variable, as any flag does.
            checkpoint_block_length: `block_size` of the checkpoint's config.json.

        Raises:
            SettingsError: the default block length does not fit under the maximum.
        """
        longest = max_block_length or self.max_block_length
        default_length = self.default_block_length
        if default_length is None:
            default_length = max(MIN_BLOCK_LENGTH, min(checkpoint_block_length or longest, longest))
        return ServerLimits(
            default_mode=self.default_mode,
            default_block_length=default_length,
            max_block_length=longest,
            default_confidence_threshold=self.default_confidence_threshold,
            default_draft_threshold=self.default_draft_threshold,
        )


@dataclass(frozen=True)
class FrontSettings:
    """What the HTTP front end enforces and SGLang has no flag for; None is no limit.

    Attributes:
        served_model_name: the name with a colon that SGLang itself would not start with, or None.
        cors_origins: empty is off.
    """

    served_model_name: str | None = None
    max_concurrent_requests_per_key: int | None = None
    max_request_bytes: int | None = None
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    request_timeout_s: float | None = None
    drain_timeout_s: float | None = None
    cors_origins: tuple[str, ...] = ()
    playground: bool = True

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> FrontSettings:
        """Read the `DLM_*` variables; what is not set has its default.

        Raises:
            SettingsError: a variable has a value of the wrong type or out of range.
        """
        resolved = resolve({}, os.environ if environ is None else environ, {})

        def integer(name: str) -> int | None:
            value = resolved[name].value
            return value if isinstance(value, int) else None

        def number(name: str) -> float | None:
            value = resolved[name].value
            return value if isinstance(value, float) else None

        origins = resolved["cors_origins"].value
        name = resolved["served_model_name"].value
        return cls(
            served_model_name=name if isinstance(name, str) and ":" in name else None,
            max_concurrent_requests_per_key=integer("max_concurrent_requests_per_key"),
            max_request_bytes=integer("max_request_bytes"),
            max_prompt_tokens=integer("max_prompt_tokens"),
            max_output_tokens=integer("max_output_tokens"),
            request_timeout_s=number("request_timeout_s"),
            drain_timeout_s=number("drain_timeout_s"),
            cors_origins=tuple(part.strip() for part in str(origins or "").split(",") if part.strip()),
            playground=resolved["playground"].value is True,
        )


def _from_text(setting: Setting, text: str, source: str) -> Value:
    """A value as a flag or variable gives it."""
    if setting.nullable and text.lower() in NULL_WORDS:
        return None
    if setting.kind == "boolean":
        return _checked(setting, _BOOLEAN_WORDS.get(text.lower(), text), source)
    try:
        if setting.kind == "integer":
            return _checked(setting, int(text), source)
        if setting.kind == "number":
            return _checked(setting, float(text), source)
    except ValueError:
        raise _wrong(setting, text, source) from None
    return _checked(setting, text, source)


def _checked(setting: Setting, value: object, source: str) -> Value:
    """The value if the table allows it."""
    if value is None and setting.nullable:
        return None
    if setting.kind == "mode":
        try:
            return parse_mode(value).value
        except RequestError as error:
            raise SettingsError(f"{source}: {error.message}", setting=setting.name, hint=error.hint) from None
    if setting.kind == "boolean":
        if not isinstance(value, bool):
            raise _wrong(setting, value, source)
        return value
    if setting.kind == "string":
        if not isinstance(value, str) or not value or (setting.choices and value not in setting.choices):
            raise _wrong(setting, value, source)
        return value
    if isinstance(value, bool) or not isinstance(value, int if setting.kind == "integer" else int | float):
        raise _wrong(setting, value, source)
    low = float("-inf") if setting.low is None else setting.low
    high = float("inf") if setting.high is None else setting.high
    if not low <= value <= high:
        raise _wrong(setting, value, source)
    return value if setting.kind == "integer" else float(value)


def as_text(value: Value) -> str:
    """A value as a flag or variable takes it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def allowed(setting: Setting) -> str:
    """The values of a setting in words."""
    if setting.kind == "mode":
        words = ", ".join(GenerationMode)
    elif setting.choices:
        words = ", ".join(setting.choices)
    elif setting.kind == "boolean":
        words = "true or false"
    elif setting.kind == "string":
        words = "text"
    else:
        noun = "an integer" if setting.kind == "integer" else "a number"
        bounds = "" if setting.low is None else f" of at least {setting.low:g}"
        bounds = bounds if setting.high is None else f" in {setting.low:g}..{setting.high:g}"
        words = noun + bounds
    return f"{words}, or null" if setting.nullable else words


def _wrong(setting: Setting, value: object, source: str) -> SettingsError:
    got = "another value" if setting.secret else shown(value)
    return SettingsError(
        f"{source} must be {allowed(setting)}, got {got}",
        setting=setting.name,
        source=source,
        code="setting-out-of-range",
    )


def _unknown_key(key: str, source: str) -> SettingsError:
    near = difflib.get_close_matches(key.replace("-", "_").lower(), SETTING_BY_NAME, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(SETTING_BY_NAME)}"
    return SettingsError(f"{source}: unknown key {shown(key)}", source=source, code="setting-unknown", hint=hint)
