"""Requests made from the server's own OpenAPI schema: no 5xx, no hang, and nothing left behind.

`make fuzz` sends many more: DLM_FUZZ_CASES is their number, DLM_FUZZ_SECONDS the time that they may take.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from dlm_sglang.cli.reference import request_schema
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
MAX_SHOWN = 3000
FINE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Sort 3, 1, 2."}]},
    "/v1/completions": {"prompt": "Sort 3, 1, 2."},
    "/generate": {"text": "Sort 3, 1, 2."},
}
FINE_SHARE = 0.7
# A body that is fine may ask for thousands of tokens; what is looked for is how the server takes it, not its text.
MAX_TOKENS = 8


# Deeper down, every combination of the types of messages, parts and tools is a case of its own, and their number
# explodes before the first request.
MAX_DEPTH = 3
# SGLang's schema says nothing of this body.
NUMBER = {"type": ["number", "null"]}
INTEGER = {"type": ["integer", "null"]}
TEXTS = {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}]}
IDS = {"type": "array", "items": {"type": "integer"}}
SAMPLING = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("temperature", "top_p", "min_p", "frequency_penalty", "repetition_penalty"), NUMBER),
        **dict.fromkeys(("max_new_tokens", "min_new_tokens", "top_k", "n", "sampling_seed"), INTEGER),
        **dict.fromkeys(("stop", "stop_regex"), TEXTS),
        "stop_token_ids": IDS,
        "ignore_eos": {"type": "boolean"},
        "regex": {"type": ["string", "null"]},
        "logit_bias": {"type": "object"},
        "custom_params": {"type": "object", "properties": request_schema()["properties"]},
    },
}
GENERATE = {
    "type": "object",
    "properties": {
        "text": TEXTS,
        "input_ids": {"anyOf": [IDS, {"type": "array", "items": IDS}]},
        "sampling_params": {"anyOf": [SAMPLING, {"type": "array", "items": SAMPLING}]},
        "rid": TEXTS,
        "stream": {"type": "boolean"},
        "return_logprob": {"type": "boolean"},
        **dict.fromkeys(("logprob_start_len", "top_logprobs_num", "priority"), INTEGER),
        "image_data": {},
        "session_params": {"type": "object"},
    },
}


def shallow(node: Any, schemas: dict[str, Any], depth: int = MAX_DEPTH) -> Any:
    """A schema with its references written out, open below `depth` levels of nesting."""
    if isinstance(node, list):
        return [shallow(one, schemas, depth) for one in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return shallow(schemas[node["$ref"].rpartition("/")[2]], schemas, depth)
    if depth <= 0 and {"properties", "items", "anyOf", "oneOf", "allOf"} & set(node):
        return {"type": node["type"]} if isinstance(node.get("type"), str) else {}
    made = {key: value for key, value in node.items() if key not in ("discriminator", "examples", "title")}
    for key in ("anyOf", "oneOf", "allOf", "items"):
        if key in made:
            made[key] = shallow(made[key], schemas, depth - 1)
    if "properties" in made:
        made["properties"] = {name: shallow(one, schemas, depth - 1) for name, one in made["properties"].items()}
    return made


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
    sampling = body.get("sampling_params")
    if isinstance(sampling, list):
        body["sampling_params"] = [shortened(one) for one in sampling]
    elif isinstance(sampling, dict):
        body["sampling_params"] = {"max_new_tokens": MAX_TOKENS, **shortened(sampling)}
    if "messages" in body and not ({"max_tokens", "max_completion_tokens"} & set(body)):
        body["max_tokens"] = MAX_TOKENS
    return body


@pytest.fixture(scope="module")
def schema(front_server: Server) -> Any:
    whole = front_server.get("/openapi.json").json()
    schemas = whole["components"]["schemas"]
    paths: dict[str, Any] = {}
    for method, path in ROUTES:
        operation = dict(whole["paths"][path][method.lower()])
        # What a server may answer is not looked at, and its models are large.
        operation["responses"] = {"200": {"description": "fine"}}
        if method == "POST":
            told = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            body = GENERATE if path == "/generate" else shallow(told, schemas)
            content = {"application/json": {"schema": body}}
            operation["requestBody"] = {"required": True, "content": content}
        paths[path] = {method.lower(): operation}
    return schemathesis.openapi.from_dict({"openapi": whole["openapi"], "info": whole["info"], "paths": paths})


@dataclass
class Run:
    """Requests of one route, and what came of them."""

    server: Server
    path: str
    deadline: float
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def send(self, case: Any, seed: int) -> None:
        chance = random.Random(seed)
        if time.monotonic() > self.deadline or self.failures:
            return
        if self.path in FINE and isinstance(case.body, dict) and chance.random() < FINE_SHARE:
            # A body with everything wrong at once is refused for the first thing: a few fields in a fine body get far.
            names = chance.sample(sorted(case.body), min(len(case.body), chance.randint(1, 3)))
            case.body = {**FINE[self.path], **{name: case.body[name] for name in names}}
        case.body = shortened(case.body)
        begin = time.monotonic()
        try:
            response = case.call(base_url=self.server.url, timeout=HANG_S)
        except (requests.Timeout, requests.ConnectionError) as error:
            told = f"{type(error).__name__} after {time.monotonic() - begin:.1f} s"
            self.failures.append(f"{told}: {case.as_curl_command()[:MAX_SHOWN]}")
            return
        except (ValueError, UnicodeError):
            # No client could send it.
            return
        self.statuses[response.status_code] += 1
        if response.status_code >= 500:
            told = f"{response.status_code} {response.text[:300]}"
            self.failures.append(f"{told}: {case.as_curl_command()[:MAX_SHOWN]}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_request_breaks_the_server(front_server: Server, schema: Any, method: str, path: str) -> None:
    operation = schema[path][method]
    run = Run(front_server, path, time.monotonic() + MAX_SECONDS / len(ROUTES))
    for mode in GenerationMode:
        limited = settings(
            max_examples=max(1, NUM_CASES // len(ROUTES) // len(GenerationMode)),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        cases = operation.as_strategy(generation_mode=mode)
        with contextlib.suppress(Unsatisfiable):
            # Nothing can be wrong where nothing is sent.
            limited(given(case=cases, seed=st.integers(0, 2**32))(run.send))()
    print(f"{method} {path}: {dict(run.statuses)}")
    assert run.failures == []
    assert sum(run.statuses.values()) > 0
    front_server.wait_idle()
    assert front_server.get("/health_generate").status_code == 200
