"""Provisional blocks between SGLang's tokenizer manager and the response."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers import tokenizer_manager
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.scheduler_components import output_streamer
from sglang.srt.managers.tokenizer_manager import ReqState, TokenizerManager

from dlm_sglang.api import report
from dlm_sglang.seams import http_requests
from dlm_sglang.seams.http_denoising import with_blocks


class Tokenizer:
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return "".join(f"<{one}>" for one in token_ids)


TOKENIZER = Tokenizer()


def block(step: int) -> dict[str, Any]:
    return {"step": step, "positions": [0, 1], "token_ids": [5, None], "is_final": [True, False]}


def told(step: int) -> dict[str, Any]:
    return {**block(step), "tokens": ["<5>", None]}


def new_state() -> Any:
    return SimpleNamespace(
        customized_info_accumulated={},
        ttft_observed=False,
        last_completion_tokens=1,
        time_stats=SimpleNamespace(first_token_time=0.0),
    )


def noted(state: Any, num_tokens: int, reported: Any) -> dict[str, Any]:
    """`meta_info` of an output, as SGLang's manager makes it."""
    meta_info: dict[str, Any] = {"id": "r", "completion_tokens": num_tokens, "finish_reason": None}
    info = {} if reported is None else {"dlm_denoising": [None, reported]}
    object.__new__(TokenizerManager).update_request_meta_info(meta_info, state, info, 1, None)
    return meta_info


def test_what_we_keep_in_sglangs_state_is_where_we_think() -> None:
    fields = ReqState.__dataclass_fields__
    assert {"ttft_observed", "last_completion_tokens", "time_stats"} <= set(fields)
    source = inspect.getsource(tokenizer_manager)
    assert "if state.time_stats.first_token_time == 0.0" in source, "seams/http_denoising.py _keep_first_token_open"
    # Blocks of one request may differ in number from its tokens.
    assert "additional_customized_info" in inspect.getsource(output_streamer)


def test_blocks_wait_with_the_request_and_the_oldest_give_way() -> None:
    state = new_state()
    noted(state, 1, None)
    assert list(noted(state, 1, block(1))["dlm_denoising"]) == [(1, block(1))]
    assert list(noted(state, 4, None)["dlm_denoising"]) == [(1, block(1))]
    for step in range(1000):
        waiting = noted(state, 4, block(step))["dlm_denoising"]
    assert len(waiting) < 200
    assert waiting[-1] == (4, block(999))
    assert state.customized_info_accumulated == {}


def test_a_request_that_is_not_watched_has_no_blocks_and_keeps_none() -> None:
    state = new_state()
    assert "dlm_denoising" not in noted(state, 1, None)
    assert vars(state).keys() == vars(new_state()).keys()


def test_the_first_tokens_time_is_taken_when_it_comes() -> None:
    state = new_state()
    noted(state, 0, block(1))
    # As SGLang would go on: with 0 new tokens it observes nothing.
    assert (state.ttft_observed, state.last_completion_tokens) == (True, 0)
    state.time_stats.first_token_time = 5.0
    noted(state, 0, block(2))
    assert state.ttft_observed
    noted(state, 3, None)
    assert (state.ttft_observed, state.time_stats.first_token_time) == (False, 0.0)


def output(
    num_tokens: int, steps: list[tuple[int, int]], index: int | None = None, finish: Any = None
) -> dict[str, Any]:
    """An output with the blocks that wait: tokens before each, and its step."""
    waiting = deque((before, block(step)) for before, step in steps)
    meta_info = {"id": f"r{index}", "completion_tokens": num_tokens, "finish_reason": finish, "dlm_denoising": waiting}
    return {"meta_info": meta_info} | ({} if index is None else {"index": index})


def run(outputs: list[dict[str, Any]], *, is_openai: bool) -> list[Any]:
    """What went out, in its order: numbers of tokens, and blocks."""
    went: list[Any] = []

    async def source() -> AsyncIterator[Any]:
        for each in outputs:
            yield each

    async def show(index: int, request_id: str, each: dict[str, object]) -> None:
        went.append((index, request_id, each["step"]))

    async def drain() -> None:
        current = report.Collector()
        current.show_block = show if is_openai else None
        token = report.collector.set(current)
        async for each in with_blocks(source(), TOKENIZER):
            meta_info = each["meta_info"]
            went.append((each.get("index", 0), meta_info["completion_tokens"], meta_info.get("dlm_denoising")))
        report.collector.reset(token)

    asyncio.run(drain())
    return went


def test_on_openai_routes_blocks_are_where_they_were_decoded() -> None:
    outputs = [output(1, []), output(1, [(1, 1)]), output(9, [(1, 2), (1, 3), (9, 1)]), output(9, [(9, 2)])]
    shown = [(0, "rNone", step) for step in (1, 2, 3, 1, 2)]
    assert run(outputs, is_openai=True) == [(0, 1, None), *shown[:3], (0, 9, None), *shown[3:]]
    assert not outputs[2]["meta_info"].get("dlm_denoising"), "told once"


def test_the_first_output_begins_the_response_even_without_tokens() -> None:
    went = run([output(0, [(0, 1)]), output(0, [(0, 2)]), output(4, [])], is_openai=True)
    assert went == [(0, 0, None), (0, "rNone", 1), (0, "rNone", 2), (0, 4, None)]


def test_each_choice_has_its_own_blocks() -> None:
    begun = [output(1, [], 0), output(1, [], 1)]
    later = [output(1, [(1, 1)], 1), output(1, [(1, 2)], 0), output(1, [(1, 2)], 1)]
    went = run(begun + later, is_openai=True)
    assert went == [(0, 1, None), (1, 1, None), (1, "r1", 1), (0, "r0", 2), (1, "r1", 2)]


@pytest.mark.parametrize("num_tokens", [3, 5])
def test_the_end_comes_last_and_always(num_tokens: int) -> None:
    outputs = [output(3, [(3, 1)]), output(num_tokens, [(3, 2)], finish={"type": "abort"})]
    assert run(outputs, is_openai=True) == [(0, 3, None), (0, "rNone", 1), (0, "rNone", 2), (0, num_tokens, None)]


def test_elsewhere_meta_info_has_them_with_text() -> None:
    went = run([output(1, []), output(2, [(1, 1), (2, 2)])], is_openai=False)
    assert went == [(0, 1, None), (0, 2, [told(1), told(2)])]


@pytest.mark.parametrize("is_stream", [True, False])
def test_only_streams_may_be_watched(monkeypatch: pytest.MonkeyPatch, is_stream: bool) -> None:
    from dlm_sglang.api.front import Front

    monkeypatch.setattr(http_requests, "front_of", lambda manager: Front())
    obj = GenerateReqInput(
        text="a", stream=is_stream, sampling_params={"custom_params": {"stream_denoising": True, "block_length": 4}}
    )

    async def original(_manager: Any, _obj: Any, _request: Any) -> AsyncIterator[Any]:
        yield output(1, [(1, 1)])

    async def drain() -> list[Any]:
        manager = SimpleNamespace(rid_to_state={}, tokenizer=TOKENIZER, gracefully_exit=False)
        return [each async for each in http_requests.generate_request(original, manager, obj)]

    if is_stream:
        assert asyncio.run(drain())[0]["meta_info"]["dlm_denoising"] == [told(1)]
    else:
        with pytest.raises(ValueError, match="stream_denoising"):
            asyncio.run(drain())
