"""No key in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from dlm_sglang.seams.redact import hide_keys


@pytest.fixture(autouse=True)
def _factory() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize("argv", [["x", "--api-key", "s3cret"], ["x", "--admin-api-key=s3cret"], ["x"]])
def test_a_key_is_not_logged_wherever_it_was_given(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setenv("DLM_API_KEY", "s3cret" if argv == ["x"] else "")
    hide_keys()
    with caplog.at_level(logging.INFO):
        logging.getLogger("a").info("server_args=%s", {"api_key": "s3cret"})
        logging.getLogger("a").info("api_key=s3cret and %d more", 2)
    assert "s3cret" not in caplog.text
    assert caplog.text.count("(set)") == 2
    assert "and 2 more" in caplog.text


def test_without_a_key_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x"])
    monkeypatch.delenv("DLM_API_KEY", raising=False)
    hide_keys()
    assert logging.getLogRecordFactory() is logging.LogRecord
