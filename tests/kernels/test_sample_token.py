"""The choice of tokens: against the oracle's plain-Python sampler, and by distribution."""

from __future__ import annotations

import pytest
import torch
from dlm_kernels.ops.sample_token import confidence_of, greedy_token, sample_token, uniform_from_seed
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from dlm_sglang.reference.sampling import pick_token

VOCAB, MASK = 13, 4


@given(
    seed=st.integers(0, 2**62 - 1),
    position=st.integers(0, 2**20),
    step=st.integers(0, 64),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([-1, 1, 3, 50]),
    top_p=st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.9]),
)
def test_sample_equals_the_oracles(
    seed: int, position: int, step: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed % 2**31)) * 3
    masked = logits.clone()
    masked[MASK] = -torch.inf
    expected = pick_token(
        masked, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, position=position, step=step
    )
    uniform = uniform_from_seed(torch.tensor([seed]), torch.tensor([position]), torch.tensor([step]))
    token_ids = sample_token(
        logits[None],
        uniform,
        torch.tensor([temperature]),
        torch.tensor([top_k]),
        torch.tensor([top_p]),
        torch.tensor([min_p]),
        MASK,
    )
    assert token_ids.tolist() == [expected]


def test_samples_follow_the_distribution() -> None:
    num = 20000
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(num)
    uniform = uniform_from_seed(torch.full((num,), 77), positions, torch.zeros(num, dtype=torch.int64))
    ones = torch.ones(num)
    token_ids = sample_token(
        logits.expand(num, VOCAB), uniform, ones, torch.full((num,), -1), ones, torch.zeros(num), MASK
    )
    probs = torch.softmax(logits.double().index_fill(0, torch.tensor([MASK]), -torch.inf), 0)
    kept = [token for token in range(VOCAB) if token != MASK]
    counts = torch.bincount(token_ids, minlength=VOCAB)
    assert counts[MASK] == 0
    assert chisquare(counts[kept].numpy(), (probs[kept] * num).numpy()).pvalue > 1e-3


def test_confidence_near_one_keeps_its_order() -> None:
    logits = torch.zeros(40, VOCAB)
    logits[:, 2] = torch.linspace(20, 30, 40)
    confidence = confidence_of(logits, greedy_token(logits, MASK))
    assert (confidence.diff() > 0).all()
    torch.testing.assert_close(confidence, torch.softmax(logits.double(), -1)[:, 2], rtol=1e-9, atol=0)


def test_greedy_skips_the_mask_but_counts_it_and_leaves_logits_alone() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0, 9.0]])
    before = logits.clone()
    token_ids = greedy_token(logits, MASK)
    assert token_ids.tolist() == [1]
    assert confidence_of(logits, token_ids).item() == pytest.approx(torch.softmax(before, -1)[0, 1].item())
    assert torch.equal(logits, before)
