"""Model names with a mode, and the metrics of what they decoded, on the real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.e2e.asks import MODES
from tests.e2e.conftest import SERVED_NAME
from tests.e2e.server import Server

CHAT: Any = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def client(front_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{front_server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_models_lists_the_served_name_and_each_mode_behind_it(client: OpenAI) -> None:
    names = [SERVED_NAME, *(f"{SERVED_NAME}:{mode}" for mode in MODES)]
    assert {model.id for model in client.models.list()} == set(names)
    for name in [*names, f"{SERVED_NAME}:ar"]:
        assert client.models.retrieve(name).id == name
    for name in (f"{SERVED_NAME}:fast", "other"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


@pytest.mark.parametrize("suffix", [*MODES, "ar"])
def test_every_route_decodes_in_the_mode_of_the_name(client: OpenAI, suffix: str) -> None:
    name, mode = f"{SERVED_NAME}:{suffix}", "autoregressive" if suffix == "ar" else suffix
    chat = client.chat.completions.create(model=name, messages=CHAT, max_tokens=8, temperature=0)
    text = client.completions.create(model=name, prompt="Sort 3, 1, 2.", max_tokens=8, temperature=0)
    events = list(client.chat.completions.create(model=name, messages=CHAT, max_tokens=8, temperature=0, stream=True))
    reports = [answer.model_extra["dlm"] for answer in (chat, text, events[-1]) if answer.model_extra]
    assert [report["generation_mode"] for report in reports] == [mode] * 3
    assert chat.model == SERVED_NAME


@pytest.mark.parametrize(
    ("name", "fields", "status", "param"),
    [
        (f"{SERVED_NAME}:ar", {"generation_mode": "diffusion"}, 400, "generation_mode"),
        (f"{SERVED_NAME}:ar", {"block_length": 8}, 400, "block_length"),
        (f"{SERVED_NAME}:fast", {}, 404, "model"),
    ],
)
def test_a_name_that_contradicts_the_request_is_refused(
    client: OpenAI, name: str, fields: dict[str, Any], status: int, param: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model=name, messages=CHAT, max_tokens=4, extra_body=fields)
    assert refused.value.status_code == status
    assert refused.value.param == param  # type: ignore[attr-defined]
