"""The engine's rounds give the oracle's tokens, alone and in any mixed batch."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dlm_sglang.decode import choose
from dlm_sglang.decode.policy import DecodePolicy, make_policy
from dlm_sglang.params import DecodeParams, GenerationMode
from dlm_sglang.reference.decoder import OracleParams, OracleResult, decode
from dlm_sglang.reference.model import NldModel
from tests.unit.decode.models import CONTEXT, MASK, VOCAB, random_model
from tests.unit.decode.rounds import Row, run_rows

HOWS: list[dict[str, bool]] = [{}, {"padded": True}, {"overlapped": True}, {"padded": True, "overlapped": True}]


@pytest.fixture(scope="module")
def model() -> NldModel:
    return random_model()


def _draw(rng: random.Random) -> dict[str, Any]:
    mode = rng.choice(["autoregressive", "diffusion", "self_speculation"])
    block_length = 1 if mode == "autoregressive" else rng.choice([2, 3, 8, 16, 32])
    steps = rng.randint(1, block_length)
    draft_threshold = 0.0
    if mode == "self_speculation":
        draft_threshold = rng.choice([0.0, 0.05, 0.5])
        steps = steps if draft_threshold else 1
    return {
        "mode": mode,
        "block_length": block_length,
        "max_denoising_steps": steps,
        "confidence_threshold": rng.choice([None, 0.05, 0.2, 0.9]) if mode == "diffusion" else None,
        "draft_threshold": draft_threshold,
        "seeded_blocks": rng.random() < 0.6 or mode != "diffusion",
        "max_new_tokens": rng.randint(1, 40),
        "temperature": rng.choice([0.0, 0.0, 0.7, 1.3]),
        "top_k": rng.choice([-1, 5]),
        "top_p": rng.choice([1.0, 0.8]),
        "min_p": rng.choice([0.0, 0.1]),
        "seed": rng.randrange(1 << 40),
    }


def _policy(drawn: dict[str, Any], stop_ids: tuple[int, ...]) -> DecodePolicy:
    params = DecodeParams(
        GenerationMode(drawn["mode"]),
        drawn["block_length"],
        drawn["max_denoising_steps"],
        drawn["confidence_threshold"],
        drawn["draft_threshold"],
        drawn["seeded_blocks"],
    )
    sampling = {key: drawn[key] for key in ("temperature", "top_k", "top_p", "min_p", "seed", "max_new_tokens")}
    return make_policy(params, stop_ids=stop_ids, **sampling)


def _blocks(policy: DecodePolicy, expected: OracleResult) -> list[dict[str, object]]:
    """What the stream of a watched request tells; the denoise forward that ends the request has no block to tell of."""
    steps = expected.steps
    if policy.accepts_whole_block and expected.num_commit_forwards < expected.num_blocks:
        steps = steps[:-1]
    return [
        {
            "step": step.step,
            "positions": list(range(step.begin, step.begin + len(step.canvas))),
            "token_ids": step.canvas,
            "is_final": [
                token_id is not None and (policy.accepts_whole_block or offset == 0)
                for offset, token_id in enumerate(step.canvas)
            ],
        }
        for step in steps
    ]


def _check(
    model: NldModel,
    requests: list[tuple[list[int], dict[str, Any]]],
    stop_ids: tuple[int, ...],
    **how: bool,
) -> None:
    rows = []
    for prompt, drawn in requests:
        # As SGLang does: the output limit never reaches past the context.
        limit = min(drawn["max_new_tokens"], CONTEXT - len(prompt))
        policy = _policy(drawn | {"max_new_tokens": limit}, stop_ids)
        rows.append(Row(policy, prompt, is_watched=len(rows) % 3 != 1))
    run_rows(model, rows, CONTEXT, **how)
    for row, (prompt, drawn) in zip(rows, requests, strict=True):
        expected = decode(model, prompt, OracleParams(**drawn), set(stop_ids), CONTEXT)
        assert row.output == expected.token_ids, drawn
        assert row.stats.num_denoise_forwards == expected.num_denoise_forwards, drawn
        assert row.stats.num_commit_forwards == expected.num_commit_forwards, drawn
        if row.stats.num_forwards:
            assert row.stats.num_blocks == expected.num_blocks, drawn
        if row.is_watched:
            assert row.blocks == _blocks(row.policy, expected), drawn


@pytest.mark.parametrize("how", HOWS, ids=lambda how: "-".join(how) or "as they are")
@pytest.mark.parametrize("seed", range(6))
def test_mixed_batch_gives_every_row_the_oracles_tokens(model: NldModel, seed: int, how: dict[str, bool]) -> None:
    rng = random.Random(seed)
    requests = []
    for _ in range(8):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 5, 60, 90, 95]))]
        requests.append((prompt, _draw(rng)))
    _check(model, requests, stop_ids=(2, 7), **how)


@pytest.mark.parametrize("how", HOWS[::3], ids=lambda how: "-".join(how) or "as they are")
def test_logits_that_nobody_needs_are_not_looked_at(
    model: NldModel, how: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "MIN_LOGITS_TO_SKIP", 0)
    rng = random.Random(31)
    _check(model, [([1, 2, 3], _draw(rng)) for _ in range(8)], stop_ids=(2, 7), **how)


def test_row_alone_gives_what_it_gives_in_a_batch(model: NldModel) -> None:
    rng = random.Random(99)
    for _ in range(6):
        prompt = [rng.randrange(VOCAB) for _ in range(7)]
        _check(model, [(prompt, _draw(rng))], stop_ids=(2,))


def test_no_stop_ids_runs_to_the_limit(model: NldModel) -> None:
    rng = random.Random(5)
    _check(model, [([1, 2, 3], _draw(rng) | {"max_new_tokens": 33}) for _ in range(6)], stop_ids=())


def test_mask_id_in_prompt_is_ordinary_text(model: NldModel) -> None:
    rng = random.Random(6)
    _check(model, [([MASK, 4, MASK], _draw(rng)) for _ in range(6)], stop_ids=(2,))


@pytest.mark.parametrize("how", HOWS[1:], ids=lambda how: "-".join(how))
def test_autoregressive_batch_gives_the_oracles_tokens(model: NldModel, how: dict[str, bool]) -> None:
    rng = random.Random(7)
    drawn = [_draw(rng) | {"mode": "autoregressive", "block_length": 1, "max_denoising_steps": 1} for _ in range(5)]
    drawn = [one | {"confidence_threshold": None, "draft_threshold": 0.0, "seeded_blocks": True} for one in drawn]
    _check(model, [([1, 2, 3], one) for one in drawn] + [([5] * 90, drawn[0])], stop_ids=(2,), **how)
