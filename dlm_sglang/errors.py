"""Every error that this package raises on purpose: one tree, stable codes.

    DlmError
    ├── RequestError      a client's parameter cannot be served: HTTP 400
    ├── SettingsError     a flag, variable or YAML key is wrong: exit status 2
    ├── SeamError         a contact point with SGLang is not what we were built for: exit status 1
    └── CheckpointError   a checkpoint folder cannot be read: exit status 1

A message says what was expected, what came and the limit; `hint` says the way out.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_SHOWN_CHARS = 80


def shown(value: object) -> str:
    """`repr` of a value that someone sent, cut short so that it can stand in a message."""
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to print integers of more than 4300 digits.
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 3]}..."


class DlmError(Exception):
    """Base of the tree.

    Attributes:
        message: what was expected, what came, the limit.
        code: stable, machine-readable, in kebab-case.
        hint: the way out, or None.
    """

    default_code = "dlm-error"
    exit_status = 1

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RequestError(DlmError):
    """A request asks for something that cannot be served; becomes an HTTP 400 that names `param`."""

    default_code = "invalid-request"

    def __init__(self, message: str, *, param: str | None, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, code=code, hint=hint)
        self.param = param


class SettingsError(DlmError):
    """A server setting is unknown, of the wrong type or out of range; `source` says where it was read."""

    default_code = "invalid-setting"
    exit_status = 2

    def __init__(
        self,
        message: str,
        *,
        setting: str | None = None,
        source: str | None = None,
        code: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.setting = setting
        self.source = source


class SeamError(DlmError):
    """Contact points with SGLang that did not take effect; the message lists all of them."""

    default_code = "seam-broken"

    def __init__(self, lost: Sequence[str], *, code: str | None = None, hint: str | None = None) -> None:
        count = f"{len(lost)} contact point{'' if len(lost) == 1 else 's'} with SGLang did not take effect"
        super().__init__("\n  - ".join([f"{count}:", *lost]), code=code, hint=hint)
        self.lost = tuple(lost)


class CheckpointError(DlmError):
    """A checkpoint lacks, adds or misshapes something; the message names the file or tensor."""

    default_code = "invalid-checkpoint"
