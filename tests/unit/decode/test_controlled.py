"""Controls in every mode: causal choices are those of a plain loop, diffusion keeps what was asked for."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from dlm_sglang.decode.controls import Controls
from dlm_sglang.decode.policy import DecodePolicy, make_policy
from dlm_sglang.params import DecodeParams, ServerLimits
from dlm_sglang.reference.model import NldModel
from tests.plainly import Plain, decode_plainly
from tests.unit.decode.models import CONTEXT, MASK, VOCAB, random_model
from tests.unit.decode.rounds import Row, run_rows

STOP, END_THINK = 2, 13
HOWS: list[dict[str, bool]] = [{}, {"overlapped": True}]


@pytest.fixture(scope="module")
def model() -> NldModel:
    return random_model()


def _policy(mode: str, temperature: float, by_prefix: bool = False, **fields: Any) -> DecodePolicy:
    block = {} if mode == "autoregressive" else {"block_length": 8}
    return make_policy(
        DecodeParams.from_fields({"generation_mode": mode, **block, **fields}, ServerLimits()),
        temperature=temperature,
        top_k=-1,
        top_p=0.95,
        min_p=0.0,
        seed=5,
        stop_ids=(STOP,),
        max_new_tokens=16,
        commits_by_prefix=by_prefix,
    )


def _plainly(
    model: NldModel, prompt: list[int], policy: DecodePolicy, controls: Controls, allowed: Dfa | None = None
) -> Plain:
    return decode_plainly(
        model,
        prompt,
        controls,
        {STOP},
        policy.max_new_tokens,
        temperature=policy.temperature,
        top_p=policy.top_p,
        seed=policy.seed,
        may_follow=None if allowed is None else allowed.may_follow,
    )


ALL = Controls(
    frequency_penalty=0.4,
    presence_penalty=0.3,
    repetition_penalty=1.3,
    logit_bias=((7, 3.0), (9, -5.0)),
    min_new_tokens=12,
    banned_ids=(STOP,),
    max_thinking_tokens=9,
    end_think_id=END_THINK,
    wants_logprobs=True,
    num_top_logprobs=3,
)
EACH = {
    "frequency": replace(Controls(), frequency_penalty=1.5),
    "presence": replace(Controls(), presence_penalty=-1.0),
    "repetition": replace(Controls(), repetition_penalty=1.8),
    "bias": replace(Controls(), logit_bias=((STOP, 2.0), (5, 4.0))),
    "min tokens": replace(Controls(), min_new_tokens=20, banned_ids=(STOP,)),
    "thinking": replace(Controls(), max_thinking_tokens=5, end_think_id=END_THINK),
    "no thinking": replace(Controls(), max_thinking_tokens=0, end_think_id=END_THINK),
    "logprobs": replace(Controls(), wants_logprobs=True),
    "all": ALL,
}


@pytest.mark.parametrize("how", HOWS, ids=lambda how: "-".join(how) or "as they are")
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_autoregressive_and_self_speculative_rows_give_what_a_plain_loop_gives(
    model: NldModel, temperature: float, how: dict[str, bool]
) -> None:
    rows, expected = [], []
    for number, controls in enumerate([*EACH.values(), None]):
        prompt = [3, 4, 5 + number]
        for fields in (
            {"mode": "autoregressive"},
            {"mode": "self_speculation"},
            {"mode": "self_speculation", "draft_threshold": 0.5},
        ):
            policy = _policy(temperature=temperature, **fields)
            own = None if controls is None else replace(controls, first_position=len(prompt))
            rows.append(Row(policy, prompt, controls=own))
            expected.append(_plainly(model, prompt, policy, own or Controls()))
    order = list(range(len(rows)))
    random.Random(1).shuffle(order)
    run_rows(model, [rows[index] for index in order], CONTEXT, **how)
    for row, plain in zip(rows, expected, strict=True):
        assert row.output == plain.token_ids, row.controls
        if row.controls is not None and row.controls.wants_logprobs:
            assert row.logprobs[: len(row.output)] == pytest.approx(plain.logprobs, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_diffusion_rows_keep_bans_biases_and_budgets(model: NldModel, temperature: float, steps: int) -> None:
    forbidden = Controls(logit_bias=tuple((token_id, -100.0) for token_id in range(10, VOCAB)), first_position=3)
    late = Controls(min_new_tokens=20, banned_ids=(STOP,), logit_bias=((STOP, 8.0),), first_position=3)
    budget = Controls(max_thinking_tokens=6, end_think_id=END_THINK, first_position=3)
    policy = _policy("diffusion", temperature, max_denoising_steps=steps)
    rows = [Row(policy, [3, 4, 5], controls=controls) for controls in (forbidden, late, budget)]
    run_rows(model, rows, CONTEXT)
    assert all(token_id < 10 for token_id in rows[0].output)
    assert STOP not in rows[1].output[:20]
    assert END_THINK in rows[2].output[:7] or STOP in rows[2].output[:6]


def test_a_block_committed_by_prefix_is_the_block_committed_whole(model: NldModel) -> None:
    """Log-probabilities change nothing of the answer; those of the plain causal model come with it."""
    for steps in (1, 4, 8):
        whole, by_prefix = (_policy("diffusion", 0.0, by, max_denoising_steps=steps) for by in (False, True))
        controls = Controls(wants_logprobs=True, commits_by_prefix=True, first_position=3)
        rows = [Row(whole, [3, 4, 5]), Row(by_prefix, [3, 4, 5], controls=controls)]
        run_rows(model, rows, CONTEXT)
        assert rows[0].output == rows[1].output
        tokens = torch.tensor([[3, 4, 5, *rows[1].output]])
        total = tokens.shape[1]
        with torch.no_grad():
            logits, _ = model.forward(
                tokens, torch.arange(total)[None], torch.ones(total, total, dtype=torch.bool).tril()[None], None
            )
        expected = logits[0].log_softmax(-1)[torch.arange(2, total - 1), tokens[0, 3:]]
        assert rows[1].logprobs[: len(rows[1].output)] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("how", HOWS, ids=lambda how: "-".join(how) or "as they are")
@pytest.mark.parametrize("steps", [1, 8])
def test_fixed_tokens_stay_where_they_are_and_are_seen(model: NldModel, steps: int, how: dict[str, bool]) -> None:
    """Two blocks with blanks between fixed tokens; what stands behind a blank changes what fills it."""
    fixed = (-1, -1, 20, -1, 21, 22, -1, -1, -1, 23, 24, 25, 26, 27, 28, 29)
    policy = replace(_policy("diffusion", 0.0, max_denoising_steps=steps, seeded_blocks=False), stop_ids=())
    rows = [Row(policy, [3, 4, 5], controls=Controls(fixed_ids=fixed, first_position=3, is_seeded=False))]
    for other in range(6, 20):
        changed = (*fixed[:2], other, *fixed[3:])
        own = Controls(fixed_ids=changed, first_position=3, is_seeded=False)
        rows.append(Row(policy, [3, 4, 5], controls=own))
    run_rows(model, rows, CONTEXT, **how)
    for row in rows:
        assert row.controls is not None
        assert len(row.output) == 16
        for token_id, wanted in zip(row.output, row.controls.fixed_ids, strict=True):
            assert wanted in (-1, token_id)
            assert token_id != MASK
    assert len({tuple(row.output[:2]) for row in rows}) > 1


class Dfa:
    """A random regular grammar over token ids, in the form of SGLang's matchers."""

    def __init__(self, rng: random.Random, num_states: int = 5) -> None:
        self.edges = [
            {token_id: rng.randrange(num_states) for token_id in rng.sample(range(3, MASK), rng.randint(1, 6))}
            for _ in range(num_states)
        ]
        for edges in self.edges[::2]:
            edges[STOP] = -1
        self.path = [0]

    def may_follow(self, output: list[int], token_id: int) -> bool:
        state = 0
        for one in output:
            state = self.edges[state][one]
        return state >= 0 and token_id in self.edges[state]

    def accept_token(self, token: int) -> None:
        self.path.append(self.edges[self.path[-1]][token])

    def rollback(self, k: int) -> None:
        assert 0 < k < len(self.path)
        del self.path[-k:]

    def is_terminated(self) -> bool:
        return self.path[-1] == -1

    def fill_vocab_mask(self, vocab_mask: torch.Tensor, idx: int) -> None:
        assert not self.is_terminated()
        words = [0] * vocab_mask.shape[1]
        for token_id in self.edges[self.path[-1]]:
            words[token_id // 32] |= 1 << token_id % 32
        vocab_mask[idx] = torch.tensor([word - (word >> 31 << 32) for word in words], dtype=torch.int32)

    def allocate_vocab_mask(self, vocab_size: int, batch_size: int, device: object) -> torch.Tensor:
        return torch.full((batch_size, -(-vocab_size // 32)), -1, dtype=torch.int32)

    def apply_vocab_mask(self, logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
        ids = torch.arange(logits.shape[1])
        logits.masked_fill_((vocab_mask[:, ids // 32] >> ids % 32 & 1) == 0, float("-inf"))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_grammar_is_kept_in_every_mode(model: NldModel, seed: int, temperature: float) -> None:
    """Autoregressive and self-speculative rows give what a plain masked loop gives; diffusion rows are accepted."""
    prompt = [3, 4, 5 + seed]
    rows = []
    for mode, fields in (
        ("autoregressive", {}),
        ("self_speculation", {}),
        ("self_speculation", {"draft_threshold": 0.5}),
        ("diffusion", {"max_denoising_steps": 1}),
        ("diffusion", {"max_denoising_steps": 3, "confidence_threshold": None}),
        ("diffusion", {"confidence_threshold": 0.3}),
    ):
        by_prefix = mode == "diffusion"
        policy = _policy(mode, temperature, by_prefix, **fields)
        controls = Controls(commits_by_prefix=by_prefix, first_position=3) if by_prefix else None
        rows.append(Row(policy, prompt, controls=controls, matcher=Dfa(random.Random(seed))))
    rows.append(Row(_policy("self_speculation", temperature), prompt))
    run_rows(model, rows, CONTEXT)
    expected = _plainly(model, prompt, rows[0].policy, Controls(), Dfa(random.Random(seed))).token_ids
    for row in rows[:3]:
        assert row.output == expected
    grammar = Dfa(random.Random(seed))
    for row in rows[3:6]:
        for end, token_id in enumerate(row.output):
            assert grammar.may_follow(row.output[:end], token_id)
        assert row.output[-1] == STOP or len(row.output) == row.policy.max_new_tokens
    assert rows[-1].output == _plainly(model, prompt, rows[-1].policy, Controls()).token_ids
