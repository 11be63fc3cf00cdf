"""Exit 0 when the server in this container generates in every mode, else 1 with the reason.

A server that is full is healthy: one that refuses for load, or whose scheduler tells of waiting requests, has only no
time for us. The requests are left out of the metrics. Only the standard library: the images hold no curl.

    python healthcheck.py [SECONDS]      SECONDS: give up after so many; 22 unless told otherwise
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request

MODES = ("autoregressive", "self_speculation", "diffusion", "auto")
NUM_TOKENS = 4
# Docker and Kubernetes are told to give up a little later.
TIMEOUT_S = 22.0
LOAD_TIMEOUT_S = 2.0
FULL_CODES = ("server-overloaded", "too-many-requests")


class UnhealthyError(Exception):
    """Says what is wrong."""


def main() -> int:
    """Ask once in every mode and return an exit status."""
    url = f"http://127.0.0.1:{os.environ.get('DLM_PORT') or '30000'}"
    timeout_s = float(sys.argv[1]) if len(sys.argv) > 1 else TIMEOUT_S
    deadline = time.monotonic() + timeout_s - LOAD_TIMEOUT_S
    for mode in MODES:
        try:
            check_mode(url, mode, max(1.0, deadline - time.monotonic()))
        except UnhealthyError as error:
            print(f"unhealthy: {mode}: {error}", file=sys.stderr)
            return 1
        except (OSError, ValueError) as error:
            if is_full(url, error):
                return 0
            print(f"unhealthy: {mode}: {url}: {error}", file=sys.stderr)
            return 1
    return 0


def check_mode(url: str, mode: str, timeout_s: float) -> None:
    """Have a few tokens made in a mode.

    Raises:
        UnhealthyError: the answer is not of that mode, or empty.
        OSError: no answer, or one with an error status.
        ValueError: the answer is not JSON.
    """
    sampling = {"max_new_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    body = {
        "input_ids": [0],
        "sampling_params": {**sampling, "custom_params": {"generation_mode": mode}},
        "log_metrics": False,
    }
    answer = ask(f"{url}/generate", timeout_s, body)
    told = answer.get("meta_info", {})
    if told.get("dlm", {}).get("generation_mode") != mode or not told.get("completion_tokens"):
        raise UnhealthyError(f"the answer tells of {told.get('dlm')} and {told.get('completion_tokens')} tokens")


def is_full(url: str, error: Exception) -> bool:
    """Whether a request failed only because the server has too many."""
    if isinstance(error, urllib.error.HTTPError):
        try:
            code = json.load(error)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            return False
        return code in FULL_CODES
    if not isinstance(error, TimeoutError):
        return False
    try:
        loads = ask(f"{url}/v1/loads", LOAD_TIMEOUT_S)["loads"]
        return any(load["num_waiting_reqs"] > 0 for load in loads)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def ask(url: str, timeout_s: float, body: object = None) -> dict:
    """A JSON answer to a GET, or to a POST where there is a body."""
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if key := os.environ.get("DLM_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    # A proxy in the environment is not for this machine's own server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_s) as response:
        answer = json.load(response)
    if not isinstance(answer, dict):
        raise ValueError(f"the answer is no object: {answer!r:.80}")
    return answer


if __name__ == "__main__":
    sys.exit(main())
