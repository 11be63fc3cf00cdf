"""API keys stay out of the log: SGLang logs its whole command line when it starts."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any

from dlm_sglang.setting_table import SETTINGS

KEY_FLAGS = ("--api-key", "--admin-api-key")
SHOWN = "(set)"


def hide_keys() -> None:
    """Make every log record of this process show `(set)` where a key stands."""
    secrets = tuple(sorted(_keys(sys.argv), key=len, reverse=True))
    make = logging.getLogRecordFactory()
    if not secrets or getattr(make, "hides_keys", False):
        return

    def redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        text = record.getMessage()
        if any(secret in text for secret in secrets):
            for secret in secrets:
                text = text.replace(secret, SHOWN)
            record.msg, record.args = text, ()
        return record

    redacted.hides_keys = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(redacted)


def _keys(argv: Iterable[str]) -> set[str]:
    words = list(argv)
    found = {after for before, after in itertools.pairwise(words) if before in KEY_FLAGS}
    found |= {word.partition("=")[2] for word in words if word.partition("=")[0] in KEY_FLAGS}
    found |= {os.environ.get(setting.variable, "") for setting in SETTINGS if setting.secret}
    return found - {""}
