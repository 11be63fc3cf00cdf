"""Our part of SGLang's HTTP process, with the decode side played by a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.sampling.sampling_params import SamplingParams

from dlm_sglang.api import report
from dlm_sglang.api.front import Front
from dlm_sglang.api.middleware import DlmMiddleware
from dlm_sglang.api.translate import FOREIGN_NAMES
from dlm_sglang.api.unsupported import REFUSALS_ON, Surface
from dlm_sglang.errors import SeamError
from dlm_sglang.param_table import FIELD_BY_NAME
from dlm_sglang.params import DecodeParams, ServerLimits, closest_field
from dlm_sglang.seams import http, http_requests
from dlm_sglang.seams.check import check_shape
from dlm_sglang.seams.http_table import HTTP_SEAMS
from dlm_sglang.seams.table import Seam
from dlm_sglang.setting_table import SETTINGS

LIMITS = ServerLimits()
FRONT = Front(LIMITS)
DEFAULTS = DecodeParams.from_fields({}, LIMITS).to_flat()
STATS = {"generation_mode": "diffusion", "num_forwards": 4}


@pytest.fixture(autouse=True)
def _our_algorithm_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_requests, "front_of", lambda manager: FRONT)
    monkeypatch.setattr(http_requests, "is_ours", lambda: True)


@pytest.mark.parametrize("seam", HTTP_SEAMS, ids=lambda seam: seam.target.removeprefix("sglang.srt."))
def test_row_has_the_shape_that_we_rely_on(seam: Seam) -> None:
    assert check_shape(seam) is None


def test_everything_is_in_force_after_plugins_loaded() -> None:
    assert http.check_http() == []


def test_a_lost_layer_or_hook_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.entrypoints.http_server import app

    monkeypatch.setattr(app, "user_middleware", [])
    original = TokenizerManager.generate_request.__wrapped__
    monkeypatch.setattr(TokenizerManager, "generate_request", original)
    lost = "\n".join(http.check_http())
    assert "our layer is not in front of the routes" in lost
    assert "generate_request: our hook is not in force" in lost


def test_installing_twice_adds_one_layer_and_it_is_the_innermost() -> None:
    from sglang.srt.entrypoints.http_server import app

    http.install_http()
    assert [layer.cls for layer in app.user_middleware].count(DlmMiddleware) == 1
    assert app.user_middleware[-1].cls is DlmMiddleware


def test_a_server_that_lost_a_hook_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.entrypoints.http_server import app

    monkeypatch.setattr(http, "check_http", lambda: ["x: lost"])

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pytest.fail("started")

    with pytest.raises(SeamError, match="x: lost"):
        asyncio.run(start())


@pytest.mark.parametrize("surface", [Surface.NATIVE, Surface.SAMPLING])
def test_refused_names_are_those_of_sglang(surface: Surface) -> None:
    known = set(
        GenerateReqInput.__dataclass_fields__ if surface is Surface.NATIVE else SamplingParams.__struct_fields__
    )
    assert {row.name for row in REFUSALS_ON[surface]} <= known


@pytest.mark.parametrize("request_class", [ChatCompletionRequest, CompletionRequest])
def test_no_field_of_sglangs_is_taken_for_one_of_ours(request_class: Any) -> None:
    names = set(request_class.model_fields)
    assert "custom_params" in names
    assert not names & (set(FIELD_BY_NAME) | set(FOREIGN_NAMES))
    assert not [name for name in names if closest_field(name)]


def test_no_field_of_generate_is_taken_for_one_of_ours() -> None:
    names = {*GenerateReqInput.__dataclass_fields__, *SamplingParams.__struct_fields__}
    # Of the same meaning, on routes where ours is not read.
    names.remove("max_thinking_tokens")
    assert not [name for name in names if name in FIELD_BY_NAME or name in FOREIGN_NAMES or closest_field(name)]


def test_our_part_of_custom_params_survives_the_wire() -> None:
    import msgspec

    sent = SamplingParams(custom_params={"dlm": DEFAULTS, "theirs": [1, 2.0, None]})
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=SamplingParams)
    assert DecodeParams.from_flat(received.custom_params["dlm"], LIMITS).to_flat() == DEFAULTS


def run_request(obj: Any, outputs: list[Any], manager: Any = None) -> list[Any]:
    async def original(_manager: Any, _obj: Any, _request: Any) -> AsyncIterator[Any]:
        for output in outputs:
            yield output

    async def drain() -> list[Any]:
        manager_ = manager or SimpleNamespace(gracefully_exit=False, rid_to_state={})
        return [output async for output in http_requests.generate_request(original, manager_, obj)]

    return asyncio.run(drain())


def test_a_request_by_any_route_gets_its_parameters() -> None:
    obj = GenerateReqInput(text="a", sampling_params={"custom_params": {"generation_mode": "ar"}})
    run_request(obj, [])
    assert obj.sampling_params["custom_params"]["dlm"]["generation_mode"] == "autoregressive"
    plain = GenerateReqInput(text="a")
    run_request(plain, [])
    assert plain.sampling_params == {"custom_params": {"dlm": DEFAULTS}}


def test_a_request_that_cannot_be_served_is_a_value_error_for_sglang() -> None:
    forged = {"custom_params": {"dlm": {**DEFAULTS, "block_length": 999}}}
    for obj in (
        GenerateReqInput(text="a", return_entropy=True),
        GenerateReqInput(text="a", sampling_params={"beam_width": 2}),
        GenerateReqInput(text="a", sampling_params=forged),
    ):
        with pytest.raises(ValueError, match=r"not supported|block_length"):
            run_request(obj, [])


def test_an_embedding_request_and_another_algorithm_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    run_request(EmbeddingReqInput(text="a"), [])
    monkeypatch.setattr(http_requests, "front_of", lambda manager: None)
    obj = GenerateReqInput(text="a", sampling_params={"beam_width": 2})
    run_request(obj, [])
    assert obj.sampling_params == {"beam_width": 2}


def test_what_ran_is_told_to_the_http_request_that_asked() -> None:
    current = report.Collector()
    token = report.collector.set(current)
    output = {"text": "a", "meta_info": {"dlm": STATS}}
    assert run_request(GenerateReqInput(text="a"), [output]) == [output]
    report.collector.reset(token)
    assert current.summary() == STATS


def stumbling(after: int) -> Any:
    async def original(_manager: Any, _obj: Any, _request: Any) -> AsyncIterator[Any]:
        for number in range(after):
            yield {"text": str(number)}
        raise IndexError("list index out of range")

    async def drain() -> None:
        manager = SimpleNamespace(gracefully_exit=False, rid_to_state={})
        async for _ in http_requests.generate_request(original, manager, GenerateReqInput(text="a")):
            pass

    return asyncio.run(drain())


def test_what_sglang_stumbles_over_before_it_decodes_is_a_400_and_later_is_not() -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        stumbling(0)
    with pytest.raises(IndexError):
        stumbling(1)


@pytest.mark.parametrize("token_ids", [[], [-1], [100]])
def test_ids_that_would_end_the_scheduler_are_refused(token_ids: list[int]) -> None:
    manager = SimpleNamespace(model_config=SimpleNamespace(vocab_size=100))

    def original(*_: Any) -> None:
        pytest.fail("SGLang was given the ids")

    with pytest.raises(ValueError, match="token"):
        http_requests.validate_one_request(original, manager, GenerateReqInput(input_ids=token_ids), token_ids)


def test_closing_our_generator_closes_sglangs() -> None:
    closed: list[bool] = []

    async def original(_manager: Any, _obj: Any, _request: Any) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    async def leave_early() -> None:
        generator = http_requests.generate_request(
            original, SimpleNamespace(gracefully_exit=False, rid_to_state={}), GenerateReqInput(text="a")
        )
        assert await anext(generator) == 1
        await generator.aclose()

    asyncio.run(leave_early())
    assert closed == [True]


def test_states_that_sglang_never_sent_are_dropped_after_a_stream() -> None:
    obj = GenerateReqInput(text="a", rid=["sent", "unsent"], sampling_params={"n": 2})
    states = {name: SimpleNamespace(dispatched=name != "unsent") for name in ("sent", "unsent", "other")}
    run_request(obj, [], SimpleNamespace(gracefully_exit=False, rid_to_state=states))
    assert set(states) == {"sent", "other"}


@pytest.mark.parametrize(
    ("reported", "expected"),
    [({"dlm": [[], [STATS]]}, STATS), ({"dlm": [[STATS], []]}, None), ({"dlm": [None, None]}, None), ({}, None)],
)
def test_statistics_are_one_object_in_meta_info(reported: dict[str, Any], expected: object) -> None:
    state = SimpleNamespace(customized_info_accumulated={})
    meta_info: dict[str, Any] = {}
    info = {**reported, "theirs": [[1], [2]]}
    manager = object.__new__(TokenizerManager)
    manager.update_request_meta_info(meta_info, state, info, 1, None)
    assert meta_info == {"theirs": [2]} | ({"dlm": expected} if expected else {})
    assert set(state.customized_info_accumulated) == {"theirs"}


def test_http_workers_start_on_our_app() -> None:
    started: list[Any] = []

    def run(app: Any, **kwargs: Any) -> None:
        started.append(app)

    http.run_uvicorn(run, "sglang.srt.entrypoints.http_server:app", workers=2)
    http.run_uvicorn(run, "elsewhere:app")
    assert started == [http.WORKER_APP, "elsewhere:app"]
    with pytest.raises(SeamError):
        http.run_uvicorn(run, "sglang.srt.entrypoints.moved:app")


def test_the_app_of_http_workers_is_sglangs_own() -> None:
    from sglang.srt.entrypoints.http_server import app
    from uvicorn.importer import import_from_string

    assert import_from_string(http.WORKER_APP) is app
    with pytest.raises(AttributeError):
        http.no_such_name  # noqa: B018


def test_limits_come_from_the_server_and_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt import runtime_context

    monkeypatch.undo()
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    manager = SimpleNamespace(
        served_model_name="m", model_config=SimpleNamespace(hf_config=SimpleNamespace(block_size=8))
    )
    for algorithm, expected in (("DLM", ServerLimits(default_block_length=8, max_block_length=16)), (None, None)):
        spec = SimpleNamespace(speculative_algorithm=algorithm, speculative_num_draft_tokens=16)
        monkeypatch.setattr(runtime_context, "get_spec", lambda spec=spec: spec)
        at = http_requests.front_of.__wrapped__(manager)
        assert (at and at.limits) == expected
    assert http_requests.front() is None


def test_http2_with_several_workers_is_refused() -> None:
    started: list[int] = []
    http.run_granian(lambda **kwargs: started.append(1), tokenizer_worker_num=1)
    with pytest.raises(SeamError, match="enable-http2"):
        http.run_granian(lambda **kwargs: started.append(2), tokenizer_worker_num=2)
    assert started == [1]


def test_sglangs_own_routes_are_behind_our_layer() -> None:
    from sglang.srt.entrypoints.http_server import app

    async def ask() -> httpx.Response:
        inner = DlmMiddleware(app.router, lambda: FRONT)
        transport = httpx.ASGITransport(app=inner)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post("/v1/chat/completions", json={"messages": [], "block_length": 999})

    answer = asyncio.run(ask())
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "block_length"
