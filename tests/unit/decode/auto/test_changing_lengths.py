"""Block lengths that change between blocks change no token, greedy or sampled."""

from __future__ import annotations

import random

import pytest

from dlm_sglang.decode.auto.row import AutoRow
from dlm_sglang.decode.policy import make_policy
from dlm_sglang.params import DecodeParams, GenerationMode
from dlm_sglang.reference.decoder import OracleParams, decode
from dlm_sglang.reference.model import NldModel
from tests.unit.decode.rounds import Row, run_rows
from tests.unit.decode.test_round import CONTEXT, HOWS, MASK, VOCAB
from tests.unit.decode.test_round import model as model

LENGTHS = (1, 2, 3, 8, 16, 32)


def _rows(rng: random.Random, temperature: float) -> list[Row]:
    rows = []
    for number in range(7):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 5, 60, 90, 95]))]
        is_auto = number != 3
        policy = make_policy(
            DecodeParams(GenerationMode.AUTO if is_auto else GenerationMode.SELF_SPECULATION, 32, 1),
            temperature=temperature,
            top_k=-1,
            top_p=0.9,
            min_p=0.0,
            seed=number,
            stop_ids=(2, 7),
            max_new_tokens=min(rng.randint(1, 60), CONTEXT - len(prompt)),
        )
        rows.append(Row(policy, prompt, auto=AutoRow(LENGTHS) if is_auto else None))
    return rows


@pytest.mark.parametrize("how", HOWS, ids=lambda how: "-".join(how) or "as they are")
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_those_of_autoregressive_decoding(
    model: NldModel, seed: int, temperature: float, how: dict[str, bool]
) -> None:
    rng = random.Random(seed)
    rows = _rows(rng, temperature)
    run_rows(model, rows, CONTEXT, lengths=rng, **how)
    used: set[int] = set()
    for row in rows:
        params = OracleParams(
            mode="autoregressive",
            block_length=1,
            max_denoising_steps=1,
            confidence_threshold=None,
            max_new_tokens=row.policy.max_new_tokens,
            temperature=temperature,
            top_p=0.9,
            seed=row.policy.seed,
        )
        assert row.output == decode(model, row.prompt, params, {2, 7}, CONTEXT).token_ids
        if row.auto is not None:
            used |= set(row.auto.blocks)
    assert len(used) >= 3, "the lengths never changed, so this shows nothing"
    assert MASK not in {token_id for row in rows for token_id in row.output}


@pytest.mark.parametrize("how", HOWS, ids=lambda how: "-".join(how) or "as they are")
def test_the_host_knows_the_length_of_each_verified_block(model: NldModel, how: dict[str, bool]) -> None:
    rng = random.Random(11)
    rows = _rows(rng, 0.0)
    run_rows(model, rows, CONTEXT, lengths=rng, **how)
    for row in rows:
        if row.auto is None or not row.stats.num_blocks:
            continue
        assert sum(row.auto.blocks.values()) >= row.stats.num_blocks
        # A block of one position is verified without a draft; the context's end may cut any block to one.
        num_drafted = sum(count for length, count in row.auto.blocks.items() if length > 1)
        assert num_drafted >= row.stats.num_denoise_forwards - 1
