"""One real server for the whole tier, the oracle on the same weights, and held-out prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import dlm_sglang
from dlm_sglang.bundled.tasks import held_out_prompts
from dlm_sglang.measure.json_schemas.drive import FLAGS as JSON_FLAGS
from tests import closing
from tests.e2e.asks import AUTO, AUTOREGRESSIVE, DIFFUSIONS, SPECULATIONS, Ask
from tests.e2e.oracle import Oracle
from tests.e2e.server import Server, start_server

BUNDLED = Path(dlm_sglang.__file__).parent / "assets" / "bundled"
NUM_PROMPTS = 64
POOL_TOKENS = 20_000
SERVER_FLAGS = ("--max-total-tokens", str(POOL_TOKENS))
SMALL_CONTEXT = 256
SMALL_POOL_TOKENS = 900
SMALL_FLAGS = (
    *("--context-length", str(SMALL_CONTEXT), "--max-total-tokens", str(SMALL_POOL_TOKENS)),
    *("--chunked-prefill-size", "64"),
)
# Room for so many tokens to come lets a request in, and all of a test's requests fit: they grow past the pool and are
# retracted, however slowly they came in. With SGLang's own estimate it is chance whether any is.
OVERCOMMITTED = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "8"}
SERVED_NAME = "nld"
FRONT_FLAGS = (
    *("--max-total-tokens", str(POOL_TOKENS), "--served-model-name", SERVED_NAME),
    *("--enable-metrics", "--reasoning-parser", "qwen3", "--tool-call-parser", "qwen25"),
    *JSON_FLAGS,
)
DIFFUSIONS_PER_PROMPT = 2
# SGLang counts every KV slot after every round, not only when idle, and stops at the first one that is lost.
STRICT_CHECKS = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"}
OVERLAPPED = {"DLM_OVERLAP_SCHEDULE": "on"}
# No slot is free and owned at once; looks through the whole pool every round.
PAGE_CHECKS = {"SGLANG_CHECK_KV_PAGE_INVARIANTS": "1"}
SMALL_ENVIRONMENT = (PAGE_CHECKS, OVERCOMMITTED)

SERVER_FIXTURES = {"server", "small_server", "front_server", "each_server", "each_small_server"}

ORACLES = pytest.StashKey[list[Oracle]]()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: server and oracle see the same weights even while a training run replaces the bundled ones."""
    return Path(shutil.copytree(BUNDLED, tmp_path_factory.mktemp("checkpoint") / "bundled"))


@contextmanager
def running(
    checkpoint: Path,
    folders: pytest.TempPathFactory,
    name: str,
    flags: Sequence[str],
    *environments: dict[str, str],
) -> Iterator[Server]:
    """A server from its start to its end, its log in a folder of that name."""
    environment = {key: value for one in (STRICT_CHECKS, *environments) for key, value in one.items()}
    server = start_server(checkpoint, folders.mktemp(name) / "server.log", flags, environment)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(checkpoint, tmp_path_factory, "server", SERVER_FLAGS) as server:
        yield server


@pytest.fixture(scope="session")
def front_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of the tests of the front end: with a name, with metrics, with a parser of thoughts."""
    with running(checkpoint, tmp_path_factory, "front-server", FRONT_FLAGS) as server:
        yield server


@pytest.fixture(scope="session")
def small_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose context ends soon and whose KV pool is full soon, with prefills in several chunks."""
    with running(checkpoint, tmp_path_factory, "small-server", SMALL_FLAGS, *SMALL_ENVIRONMENT) as server:
        yield server


@pytest.fixture(scope="session")
def overlapped_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As `server`, in SGLang's overlapped loop: results reach the scheduler one round late."""
    with running(checkpoint, tmp_path_factory, "overlapped-server", SERVER_FLAGS, OVERLAPPED) as server:
        yield server


@pytest.fixture(scope="session")
def overlapped_small_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As `small_server`, in SGLang's overlapped loop."""
    with running(
        checkpoint, tmp_path_factory, "overlapped-small-server", SMALL_FLAGS, *SMALL_ENVIRONMENT, OVERLAPPED
    ) as server:
        yield server


@pytest.fixture(params=["server", "overlapped_server"])
def each_server(request: pytest.FixtureRequest) -> Server:
    """The big server with SGLang's synchronous loop, then with its overlapped one."""
    server: Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture(params=["small_server", "overlapped_small_server"])
def each_small_server(request: pytest.FixtureRequest) -> Server:
    """The small server with SGLang's synchronous loop, then with its overlapped one."""
    server: Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def oracle(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Oracle]:
    config = json.loads((checkpoint / "config.json").read_text())
    num_threads = torch.get_num_threads()
    # The model is tiny, and the server is running beside it.
    torch.set_num_threads(1)
    oracle = Oracle(checkpoint, eos_ids=[config["eos_token_id"]], context_length=int(config["max_position_embeddings"]))
    request.config.stash[ORACLES] = [oracle]
    yield oracle
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def small_oracle(checkpoint: Path, oracle: Oracle, request: pytest.FixtureRequest) -> Oracle:
    """The oracle under the small server's context length."""
    small = Oracle(checkpoint, eos_ids=oracle.eos_ids, context_length=SMALL_CONTEXT)
    request.config.stash[ORACLES].append(small)
    return small


@pytest.fixture(scope="session")
def prompts(tokenizer: PreTrainedTokenizerFast) -> list[tuple[int, ...]]:
    """Held-out questions as the chat template renders them."""
    rendered = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for _, chat, _ in held_out_prompts(NUM_PROMPTS)
    ]
    return [tuple(tokenizer(str(text), add_special_tokens=False)["input_ids"]) for text in rendered]


@pytest.fixture(scope="session")
def mixed_asks(prompts: list[tuple[int, ...]]) -> list[Ask]:
    """Every prompt in all modes, with two diffusion policies each; all policies occur."""
    speculations, diffusions = cycle(SPECULATIONS), cycle(DIFFUSIONS)
    made: list[Ask] = []
    for number, prompt_ids in enumerate(prompts):
        policies = [AUTOREGRESSIVE, next(speculations), AUTO]
        policies += [next(diffusions) for _ in range(DIFFUSIONS_PER_PROMPT)]
        # Past the end of the answer the text is odd, which is where decoding differs most.
        max_new_tokens, ignore_eos = (24, 31, 48)[number % 3], number % 2 == 1
        made += [
            Ask(prompt_ids=prompt_ids, policy=policy, max_new_tokens=max_new_tokens, ignore_eos=ignore_eos)
            for policy in policies
        ]
    return made


@pytest.fixture(autouse=True)
def server_stays_well(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test on a shared server: it lives, and told of no leak and no crash."""
    # Before the test: a parametrized fixture is gone after it.
    servers: list[Server] = [request.getfixturevalue(name) for name in SERVER_FIXTURES & set(request.fixturenames)]
    yield
    for server in servers:
        assert server.is_alive(), f"the server ended with status {server.process.returncode}"
        assert server.alarms() == []


def pytest_sessionfinish(session: pytest.Session) -> None:
    oracles = session.config.stash.get(ORACLES, [])
    if oracles:
        num_compared = sum(oracle.num_compared for oracle in oracles)
        num_ties = sum(len(oracle.ties) for oracle in oracles)
        closing.tell(
            session.config, f"oracle: {num_compared} answers compared, {num_ties} differed by a proven numerical tie"
        )
