"""Temperature above 0: seeds repeat, filters filter, and self-speculation samples as autoregressive decoding does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
from scipy.stats import chisquare

from dlm_sglang.reference.sampling import filtered_probs
from dlm_sglang.reference.sequence import CachedSequence
from tests.e2e.asks import AUTO, AUTOREGRESSIVE, Answer, Ask, Policy, ask, ask_all, diffusion, shuffled, speculation
from tests.e2e.oracle import Oracle
from tests.e2e.server import Server

POLICIES: tuple[Policy, ...] = (
    AUTOREGRESSIVE,
    AUTO,
    speculation(8),
    speculation(32),
    speculation(8, draft_threshold=0.5, max_denoising_steps=4),
    diffusion(8, 4, None),
    diffusion(16, 16, 0.5),
    diffusion(8, 8, 0.9, seeded_blocks=False),
)
FILTERS: tuple[dict[str, float | int], ...] = (
    {"temperature": 0.7},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.6, "top_k": 5},
    {"temperature": 1.2, "min_p": 0.2},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
)
NUM_OUTCOME_TOKENS = 2
RESTRICTED_TOP_K = 4
NUM_SAMPLES = 500
MIN_EXPECTED = 5.0
# The seeds are fixed, so a pass stays a pass; the weights are not, so a fair draw may not fail often.
MIN_P_VALUE = 1e-4


@pytest.fixture(scope="module")
def sampled(prompts: list[tuple[int, ...]]) -> list[Ask]:
    """Every policy with every filter, each with its own seed."""
    combinations = list(product(POLICIES, FILTERS))
    return [
        Ask(
            prompt_ids=prompts[number % len(prompts)],
            policy=policy,
            max_new_tokens=24,
            seed=1000 + number,
            ignore_eos=True,
            **filters,  # type: ignore[arg-type]
        )
        for number, (policy, filters) in enumerate(combinations)
    ]


def test_sampled_tokens_are_the_oracles_in_a_mixed_batch(
    each_server: Server, oracle: Oracle, sampled: list[Ask]
) -> None:
    mixed = shuffled(sampled, seed=1)
    answers = ask_all(each_server.url, mixed, concurrency=16)
    assert not (wrong := oracle.mismatches(mixed, answers)), "\n".join(wrong)


def test_equal_seeds_give_equal_tokens_alone_and_in_a_batch(
    each_server: Server, oracle: Oracle, sampled: list[Ask]
) -> None:
    some = sampled[:: len(FILTERS) + 1]
    answers = [ask(each_server.url, one) for one in some]
    assert not (wrong := oracle.mismatches(some, answers)), "\n".join(wrong)


def test_drafts_give_the_very_tokens_of_autoregressive_at_the_same_seed(
    each_server: Server, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    causal = [
        Ask(prompt_ids=prompts[seed], policy=AUTOREGRESSIVE, seed=seed, temperature=1.0, top_p=0.95)
        for seed in range(8)
    ]
    expected = ask_all(each_server.url, causal, concurrency=8)
    for policy in (policy for policy in POLICIES if policy.mode in ("self_speculation", "auto")):
        asks = [replace(one, policy=policy) for one in causal]
        for one, answer, other in zip(asks, ask_all(each_server.url, asks, concurrency=8), expected, strict=True):
            assert answer.output_ids == other.output_ids or oracle.is_tie(one, answer.output_ids), one


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.mode}-{policy.block_length}")
def test_different_seeds_and_no_seed_give_different_tokens(
    each_server: Server, prompts: list[tuple[int, ...]], policy: Policy
) -> None:
    seeds: list[int | None] = [0, 1, -1, 2**62 + 3, None, None]
    # Hot enough that two equal outputs of 32 tokens are no accident, whatever the weights.
    asks = [Ask(prompt_ids=prompts[0], policy=policy, seed=seed, temperature=20.0, ignore_eos=True) for seed in seeds]
    outputs = [tuple(answer.output_ids) for answer in ask_all(each_server.url, asks, concurrency=len(asks))]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize(
    "filters", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=lambda filters: next(iter(filters))
)
def test_filter_that_leaves_one_token_is_greedy(
    each_server: Server, oracle: Oracle, prompts: list[tuple[int, ...]], filters: dict[str, float | int]
) -> None:
    for policy in POLICIES:
        greedy = Ask(prompt_ids=prompts[1], policy=policy, max_new_tokens=16)
        filtered = replace(greedy, temperature=1.3, seed=5, **filters)  # type: ignore[arg-type]
        answer = ask(each_server.url, filtered)
        assert answer.output_ids == oracle.result(greedy).token_ids or oracle.is_tie(greedy, answer.output_ids)


def test_self_speculation_samples_from_the_autoregressive_distribution(
    each_server: Server, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    """Chi-square of outcomes against the exact distribution of the weights (spec 5.6 no. 6), for all three modes."""
    prompt_ids = prompts[2]
    temperature, expected = spread_distribution(oracle, prompt_ids)
    for first_seed, policy in (
        (0, AUTOREGRESSIVE),
        (10_000, speculation(2)),
        (20_000, speculation(8)),
        (30_000, AUTO),
    ):
        one = Ask(
            prompt_ids=prompt_ids,
            policy=policy,
            max_new_tokens=NUM_OUTCOME_TOKENS,
            temperature=temperature,
            top_k=RESTRICTED_TOP_K,
            ignore_eos=True,
        )
        answers = sample_many(each_server, one, range(first_seed, first_seed + NUM_SAMPLES))
        counts = Counter(tuple(answer.output_ids) for answer in answers)
        assert set(counts) <= set(expected), "an outcome that the filters rule out"
        observed_cells, expected_cells = pooled(counts, expected)
        p_value = float(chisquare(observed_cells, expected_cells).pvalue)
        assert p_value > MIN_P_VALUE, f"{policy}: p = {p_value}, {observed_cells} against {expected_cells}"


def sample_many(server: Server, one: Ask, seeds: range) -> list[Answer]:
    """One request of many prompts, so that HTTP is no part of the wait."""
    bodies = [replace(one, seed=seed).body() for seed in seeds]
    body = {
        "input_ids": [single["input_ids"] for single in bodies],
        "sampling_params": [single["sampling_params"] for single in bodies],
    }
    response = server.post("/generate", body)
    assert response.status_code == 200, response.text
    return [Answer.of(reply) for reply in response.json()]


def spread_distribution(oracle: Oracle, prompt_ids: tuple[int, ...]) -> tuple[float, dict[tuple[int, ...], float]]:
    """The lowest temperature at which at least ten outcomes are likely enough to count, and all outcomes' odds."""
    for temperature in (1.0, 2.0, 4.0, 8.0, 16.0, 64.0):
        odds = outcome_odds(oracle, prompt_ids, temperature)
        if sum(odd * NUM_SAMPLES >= MIN_EXPECTED for odd in odds.values()) >= 10:
            return temperature, odds
    raise AssertionError("top_k of four ids at temperature 64 is nearly uniform for any weights")


def outcome_odds(oracle: Oracle, prompt_ids: tuple[int, ...], temperature: float) -> dict[tuple[int, ...], float]:
    """Exact probabilities of every continuation of `NUM_OUTCOME_TOKENS` tokens."""
    odds: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NUM_OUTCOME_TOKENS):
        longer: dict[tuple[int, ...], float] = {}
        for outcome, odd in odds.items():
            with torch.no_grad():
                logits = CachedSequence(oracle.model).prefill([*prompt_ids, *outcome])[-1].clone()
            logits[oracle.mask_token_id] = -torch.inf
            probs = filtered_probs(logits, temperature, RESTRICTED_TOP_K)
            for token_id in probs.nonzero().flatten().tolist():
                longer[*outcome, token_id] = odd * float(probs[token_id])
        odds = longer
    return odds


def pooled(counts: Counter[tuple[int, ...]], odds: dict[tuple[int, ...], float]) -> tuple[list[float], list[float]]:
    """Observed and expected counts, the outcomes too rare for a chi-square in one cell."""
    cells: list[tuple[float, float]] = []
    rest_observed, rest_expected = 0.0, 0.0
    for outcome, odd in odds.items():
        if odd * NUM_SAMPLES >= MIN_EXPECTED:
            cells.append((counts[outcome], odd * NUM_SAMPLES))
        else:
            rest_observed += counts[outcome]
            rest_expected += odd * NUM_SAMPLES
    if rest_expected >= MIN_EXPECTED:
        cells.append((rest_observed, rest_expected))
    else:
        last_observed, last_expected = cells[-1]
        cells[-1] = (last_observed + rest_observed, last_expected + rest_expected)
    return [observed for observed, _ in cells], [expected for _, expected in cells]
