"""Send many requests under JSON schemas, in every mode, and check each answer with an independent validator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import aiohttp
import jsonschema

from dlm_sglang.measure.json_schemas.schemas import SCHEMAS, Schema

# Whitespace between the parts of a JSON text has no limit in SGLang's grammars, and a small model hardly ever ends it.
FLAGS = ("--constrained-json-disable-any-whitespace",)
MODES = ("autoregressive", "self_speculation", "diffusion")
TEMPERATURES = (0.0, 0.7, 1.3)
PROMPTS = ("Give me an example as JSON.", "Anna is 31 years old and lives in Oslo.", "Sort 3, 1, 2.")
MAX_TOKENS = 384
STREAMED = 4  # every so many requests
TIMEOUT_S = 600
SHOWN = 300


@dataclass(frozen=True)
class Probe:
    """One request."""

    number: int
    schema_name: str
    mode: str
    temperature: float
    prompt: str

    @property
    def is_streamed(self) -> bool:
        return self.number % STREAMED == 0

    def body(self, model: str) -> dict[str, object]:
        """For `/v1/chat/completions`."""
        schema = {"name": "answer", "schema": SCHEMAS[self.schema_name], "strict": True}
        return {
            "model": model,
            "messages": [{"role": "user", "content": self.prompt}],
            "response_format": {"type": "json_schema", "json_schema": schema},
            "generation_mode": self.mode,
            "temperature": self.temperature,
            "seed": self.number,
            "max_tokens": MAX_TOKENS,
            "stream": self.is_streamed,
        }


def probes(count: int) -> list[Probe]:
    """`count` requests: schemas change fastest, then modes, temperatures and prompts; seeds differ."""
    kinds = [(name, mode, temperature, prompt) for prompt, temperature, mode, name in _kinds()]
    return [Probe(number, *kinds[number % len(kinds)]) for number in range(count)]


def _kinds() -> list[tuple[str, float, str, str]]:
    return list(product(PROMPTS, TEMPERATURES, MODES, SCHEMAS))


@dataclass
class Outcome:
    """What came of some requests.

    Attributes:
        valid: answers that follow their schema.
        cut: answers that max_tokens ended; they count as wrong.
        wrong: the others that do not follow it, and refused requests, one line each.
    """

    valid: int = 0
    cut: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, probe: Probe, finish_reason: str, text: str) -> str | None:
        """Count an answer.

        Returns:
            What is wrong with it, or None.
        """
        problem = problem_of(text, SCHEMAS[probe.schema_name])
        if problem is None and finish_reason == "stop":
            self.valid += 1
            return None
        self.cut += finish_reason == "length"
        return self.add_wrong(probe, f"ended by {finish_reason}, {problem}: {text[:SHOWN]!r}")

    def add_wrong(self, probe: Probe, problem: str) -> str:
        """Count a request without a valid answer; returns its line."""
        self.wrong.append(f"{probe}: {problem}")
        return self.wrong[-1]


def problem_of(text: str, schema: Schema) -> str | None:
    """What is wrong with an answer, or None."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return f"no JSON ({error})"
    errors = jsonschema.Draft202012Validator(schema).iter_errors(value)
    return next((str(error.message) for error in errors), None)


async def drive(
    url: str, model: str, asked: Sequence[Probe], concurrency: int, say: Callable[[str], None] = lambda line: None
) -> dict[str, Outcome]:
    """Send the requests, at most `concurrency` at a time.

    Args:
        url: of the server.
        model: its served name.
        asked: the requests.
        concurrency: requests at a time.
        say: told of progress and of each wrong answer.

    Returns:
        By mode.
    """
    outcomes = {mode: Outcome() for mode in MODES}
    gate = asyncio.Semaphore(concurrency)
    done = 0

    async def one(session: aiohttp.ClientSession, probe: Probe) -> None:
        nonlocal done
        async with gate:
            outcome = outcomes[probe.mode]
            try:
                answer = await _answer(session, url, probe.body(model), is_streamed=probe.is_streamed)
                problem = outcome.add(probe, *answer)
            except (aiohttp.ClientError, TimeoutError, _Refused) as error:
                problem = outcome.add_wrong(probe, f"{type(error).__name__} {str(error)[:SHOWN]}")
            if problem is not None:
                say(problem)
            done += 1
            if done % 100 == 0:
                say(f"{done} of {len(asked)}")

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_S), connector=connector) as session:
        await asyncio.gather(*(one(session, probe) for probe in asked))
    return outcomes


class _Refused(Exception):
    """The server answered with an error."""


async def _answer(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, object], *, is_streamed: bool
) -> tuple[str, str]:
    """Finish reason and text."""
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise _Refused(f"{response.status} {await response.text()}")
        if not is_streamed:
            choice = (await response.json())["choices"][0]
            return choice["finish_reason"], choice["message"]["content"] or ""
        finish_reason, parts = "", []
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line.removeprefix(b"data: "))
            if "error" in chunk:
                raise _Refused(str(chunk["error"]))
            for choice in chunk["choices"]:
                parts.append(choice["delta"].get("content") or "")
                finish_reason = choice["finish_reason"] or finish_reason
        return finish_reason, "".join(parts)
