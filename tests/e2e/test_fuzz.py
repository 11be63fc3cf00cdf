"""Requests made from the server's own OpenAPI schema: no 5xx, no hang, and nothing left behind.

`make fuzz` sends many more: DLM_FUZZ_CASES is their number, DLM_FUZZ_SECONDS the time that they may take.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.e2e.server import Server

ROUTES = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/generate"),
    ("GET", "/v1/models"),
)
NUM_CASES = int(os.environ.get("DLM_FUZZ_CASES", "200"))
MAX_SECONDS = float(os.environ.get("DLM_FUZZ_SECONDS", "60"))
HANG_S = 60
# A body that is fine may ask for thousands of tokens; what is looked for is how the server takes it, not its text.
MAX_TOKENS = 8


class TimeIsUp(Exception):
    """Ends a run that did what it could in its time."""


def shortened(body: Any) -> Any:
    """The body with at most a few tokens and choices to decode, where it asks for more."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
        if isinstance(body.get(name), int) and body[name] > MAX_TOKENS:
            body[name] = MAX_TOKENS
    if isinstance(body.get("n"), int) and body["n"] > 2:
        body["n"] = 2
    for name in ("sampling_params",):
        if isinstance(body.get(name), dict):
            body[name] = {"max_new_tokens": MAX_TOKENS, **shortened(body[name])}
    if "messages" in body and not ({"max_tokens", "max_completion_tokens"} & set(body)):
        body["max_tokens"] = MAX_TOKENS
    return body


@pytest.fixture(scope="module")
def schema(front_server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{front_server.url}/openapi.json")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_request_breaks_the_server(front_server: Server, schema: Any, method: str, path: str) -> None:
    operation = schema[path][method]
    deadline = time.monotonic() + MAX_SECONDS / len(ROUTES)
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    strategies = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    def send(case: Any) -> None:
        if time.monotonic() > deadline or failures:
            return
        case.body = shortened(case.body)
        begin = time.monotonic()
        try:
            response = case.call(base_url=front_server.url, timeout=HANG_S)
        except (requests.Timeout, requests.ConnectionError) as error:
            failures.append(f"{type(error).__name__} after {time.monotonic() - begin:.1f} s: {case.as_curl_command()}")
            return
        except (ValueError, UnicodeError, requests.exceptions.InvalidHeader):
            # No client could send it.
            return
        statuses[response.status_code] += 1
        if response.status_code >= 500:
            failures.append(f"{response.status_code} {response.text[:300]}: {case.as_curl_command()[:3000]}")

    for strategy in strategies:
        run = settings(
            max_examples=max(1, NUM_CASES // len(ROUTES) // len(strategies)),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        run(given(case=strategy)(send))()
    print(f"{method} {path}: {dict(statuses)}")
    assert failures == []
    assert sum(statuses.values()) > 0
    front_server.wait_idle()
    assert front_server.get("/health_generate").status_code == 200
