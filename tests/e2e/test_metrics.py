"""Prometheus series against the `dlm` objects of the responses to the same requests."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from dlm_sglang.bundled.tasks import held_out_prompts
from tests.e2e.asks import AUTOREGRESSIVE, MODES, Ask
from tests.e2e.metrics import expected_of, grown, scrape
from tests.e2e.server import Server, wait_for


def answers_of(body: dict[str, Any]) -> list[tuple[dict[str, Any], str, int]]:
    """One row for each choice; their tokens are told together, which is all that the sums need."""
    stats = body["dlm"].get("choices", [body["dlm"]])
    tokens = [body["usage"]["completion_tokens"], *[0] * (len(stats) - 1)]
    reasons = [choice["finish_reason"] for choice in body["choices"]]
    return list(zip(stats, reasons, tokens, strict=True))


def test_series_are_the_sums_of_the_responses(front_server: Server) -> None:
    before = scrape(front_server)
    answers: list[tuple[dict[str, Any], str, int]] = []
    for number, (_, messages, _) in enumerate(held_out_prompts(12)):
        fields = {"generation_mode": MODES[number % 4], "n": 1 + number // 4 % 2, "max_tokens": (6, 40)[number % 2]}
        response = front_server.post("/v1/chat/completions", {"messages": messages, "temperature": 0, **fields})
        answers += answers_of(response.json())
    front_server.get("/health_generate")
    assert grown(before, scrape(front_server)) == pytest.approx(expected_of(answers), abs=1e-3)


def test_an_aborted_request_is_counted_with_its_work(front_server: Server, prompts: list[tuple[int, ...]]) -> None:
    before = scrape(front_server)
    body = Ask(prompt_ids=prompts[0], policy=AUTOREGRESSIVE, max_new_tokens=3000, ignore_eos=True).body(stream=True)
    running = ("dlm_requests_in_flight", (("mode", "autoregressive"),))
    with httpx.stream("POST", f"{front_server.url}/generate", json=body, timeout=60) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number > 6:
                assert scrape(front_server)[running] == before[running] + 1
                break
    aborted = ("dlm_requests_total", (("finish_reason", "abort"), ("mode", "autoregressive")))
    wait_for(lambda: scrape(front_server)[aborted] == before[aborted] + 1, 30, lambda: "the abort was not counted")
    changes = grown(before, scrape(front_server))
    work = (("mode", "autoregressive"),)
    assert changes["dlm_aborted_output_tokens_total", work] == changes["dlm_output_tokens_total", work] > 2
    assert changes["dlm_aborted_forwards_total", work] > 2
    assert scrape(front_server)[running] == before[running]
    front_server.wait_idle()


def test_a_refused_request_is_counted_by_its_code(front_server: Server) -> None:
    before = scrape(front_server)
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    front_server.post("/v1/chat/completions", {**chat, "block_length": 99})
    front_server.post("/v1/messages", {**chat, "model": "m", "max_tokens": 2, "top_k": 0, "temperature": 7})
    assert grown(before, scrape(front_server))["dlm_refused_requests_total", (("code", "parameter-out-of-range"),)] == 1
