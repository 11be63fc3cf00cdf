"""Stateless random numbers, filters and the inverse CDF of the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_sglang.reference import sampling
from dlm_sglang.reference.sampling import filtered_probs, pick_greedy, pick_token, uniform

PROBS = [0.1, 0.4, 0.2, 0.0, 0.3]
LOGITS = torch.tensor(PROBS).log()


def kept_ids(**filters: float) -> list[int]:
    return torch.nonzero(filtered_probs(LOGITS, 1.0, **filters)).flatten().tolist()  # type: ignore[arg-type]


def test_uniform_is_the_documented_hash() -> None:
    # splitmix64's first output for state 0 is a published constant.
    assert uniform(0, 0, 0) == (0xE220A8397B1DCDAF >> 40) / 2**24
    assert uniform(1, 0, 0) == (0x6E789E6AA1B965F4 >> 40) / 2**24
    assert uniform(2**64 + 5, 7, 3) == uniform(5, 7, 3)
    assert uniform(-1, 7, 3) == uniform(2**64 - 1, 7, 3)


def test_uniform_differs_by_seed_position_and_step() -> None:
    values = [uniform(seed, position, step) for seed in range(8) for position in range(64) for step in range(8)]
    assert all(0 <= u < 1 for u in values)
    assert len(set(values)) > 4000
    assert abs(sum(values) / len(values) - 0.5) < 0.02


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({}, [0, 1, 2, 4]),
        ({"top_k": 0}, [0, 1, 2, 4]),
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 4]),
        ({"top_k": 99}, [0, 1, 2, 4]),
        ({"top_p": 0.0}, [1]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 4]),
        ({"top_p": 0.75}, [1, 2, 4]),
        ({"min_p": 0.6}, [1, 4]),
        ({"min_p": 1.0}, [1]),
        # Of what top-k left, id 1 holds 4/7: more than one half, so top-p stops there.
        ({"top_k": 2, "top_p": 0.5}, [1]),
        ({"top_p": 0.75, "min_p": 0.6}, [1, 4]),
    ],
)
def test_filters_keep_exactly_these_ids(filters: dict[str, float], kept: list[int]) -> None:
    assert kept_ids(**filters) == kept
    probs = filtered_probs(LOGITS, 1.0, **filters)  # type: ignore[arg-type]
    mass = sum(PROBS[i] for i in kept)
    torch.testing.assert_close(
        probs, torch.tensor([p / mass if i in kept else 0.0 for i, p in enumerate(PROBS)], dtype=torch.float64)
    )


def test_equal_probabilities_are_kept_lowest_id_first() -> None:
    equal = torch.zeros(4)
    assert torch.nonzero(filtered_probs(equal, 1.0, top_k=2)).flatten().tolist() == [0, 1]
    assert torch.nonzero(filtered_probs(equal, 1.0, top_p=0.6)).flatten().tolist() == [0, 1, 2]
    assert pick_greedy(equal) == 0


def test_temperature_divides_the_logits() -> None:
    torch.testing.assert_close(filtered_probs(LOGITS, 0.5), torch.softmax(LOGITS.double() * 2, -1))
    assert pick_token(LOGITS, temperature=0.0, top_k=3, seed=1, position=2, step=3) == 1


@pytest.mark.parametrize(("u", "picked"), [(0.0, 1), (0.25, 2), (0.5, 4), (0.75, 5), (1 - 2**-24, 5)])
def test_a_boundary_belongs_to_the_next_id_with_any_probability(
    u: float, picked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "uniform", lambda seed, position, step: u)
    logits = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0]).log()
    assert pick_token(logits, temperature=1.0, seed=0, position=0, step=0) == picked


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8), min_size=1, max_size=12),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(-1, 12),
    top_p=st.floats(0.0, 1.0),
    min_p=st.floats(0.0, 1.0),
    seed=st.integers(-(2**63), 2**64 - 1),
    position=st.integers(0, 2**18),
)
def test_pick_is_the_inverse_cdf_in_id_order(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int, position: int
) -> None:
    row = torch.tensor(logits, dtype=torch.float64)
    picked = pick_token(
        row, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, position=position, step=0
    )
    probs = filtered_probs(row, temperature, top_k, top_p, min_p).tolist()
    assert math.isclose(sum(probs), 1.0)
    assert probs[picked] > 0
    u = uniform(seed, position, 0)
    assert sum(probs[:picked]) <= u + 1e-12
    assert sum(probs[: picked + 1]) > u - 1e-12


def test_draws_follow_the_distribution() -> None:
    counts = [0] * 5
    for seed in range(4000):
        counts[pick_token(LOGITS, temperature=1.0, seed=seed, position=9, step=0)] += 1
    assert counts[3] == 0
    chi_square = sum((n - 4000 * p) ** 2 / (4000 * p) for n, p in zip(counts, PROBS, strict=True) if p)
    assert chi_square < 22.5  # 3 degrees of freedom, one in 20,000
