"""Rejection sampling of drafts: against a loop, and by the distribution of what it emits."""

from __future__ import annotations

import pytest
import torch
from dlm_kernels.ops.accept_prefix import accept_rejection
from dlm_kernels.ops.sample_token import SamplingRows, filtered_probs
from dlm_kernels.testing.accept_rejection import Case, make_case
from scipy.stats import chisquare
from torch import Tensor

VOCAB, MASK, NUM = 6, 4, 40_000


def _loop(case: Case, row: int) -> tuple[int, int]:
    """The textbook procedure for one request."""
    sampling = case.sampling.select(torch.tensor([row]))
    for index in range(int(case.num_drafts[row]) + 1):
        logits = case.logits[int(case.first_row[row]) + index].clone()
        if sampling.temperature == 0:
            logits[MASK] = -torch.inf
            target = torch.nn.functional.one_hot(logits.argmax(), logits.numel()).double()
        else:
            filters = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
            target = filtered_probs(logits[None], *filters, MASK)[0]
        left = target
        if index < case.num_drafts[row]:
            draft = int(case.draft_ids[row, index])
            drafter = torch.nn.functional.one_hot(torch.tensor(draft), logits.numel()).double()
            if case.draft_probs is not None:
                drafter = case.draft_probs[row, index].double()
            if float(case.accept_uniform[row, index]) < float(target[draft] / drafter[draft]):
                continue
            left = (target - drafter).clamp(min=0)
        running = left.cumsum(0)
        return index, int((running > sampling.uniform * running[-1]).nonzero()[0])
    raise AssertionError("the row past the last draft always gives a token")


@pytest.mark.parametrize("seed", range(12))
def test_reference_equals_a_loop(seed: int) -> None:
    case = make_case(num_rows=6, length=seed % 4, vocab_size=11, one_hot=seed % 2 == 0, seed=seed)
    num_correct, bonus_ids = accept_rejection(**case.arguments(MASK))
    expected = [_loop(case, row) for row in range(6)]
    assert list(zip(num_correct.tolist(), bonus_ids.tolist(), strict=True)) == expected


def _drafters(kind: str, generator: torch.Generator) -> Tensor:
    """`[2, VOCAB]` distributions."""
    if kind == "sharp":
        return torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    if kind == "disjoint":
        # The first puts everything on the mask id, which the verifier never says.
        return torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]])
    return torch.softmax(torch.randn(2, VOCAB, generator=generator) * 2, dim=-1)


def _assert_follows(token_ids: Tensor, probs: Tensor) -> None:
    counts = torch.bincount(token_ids, minlength=VOCAB)
    possible = probs > 0
    assert counts[~possible].sum() == 0
    if int(possible.sum()) == 1:
        return
    expected = probs[possible] * len(token_ids)
    assert chisquare(counts[possible].numpy(), expected.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("filters", [(1.0, -1, 1.0, 0.0), (0.7, 4, 0.9, 0.05)])
@pytest.mark.parametrize("kind", ["soft", "sharp", "disjoint", "one-hot"])
def test_what_is_emitted_follows_the_verifier_whatever_the_drafter(
    kind: str, filters: tuple[float, int, float, float]
) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, VOCAB, generator=generator)
    drafters = _drafters("sharp" if kind == "one-hot" else kind, generator)
    draft_ids = torch.stack([torch.multinomial(q, NUM, True, generator=generator) for q in drafters], dim=1)
    temperature, top_k, top_p, min_p = filters
    sampling = SamplingRows(
        torch.full((NUM,), temperature),
        torch.full((NUM,), top_k),
        torch.full((NUM,), top_p),
        torch.full((NUM,), min_p),
        torch.rand(NUM, dtype=torch.float64, generator=generator),
    )
    num_correct, bonus_ids = accept_rejection(
        draft_ids,
        None if kind == "one-hot" else drafters.expand(NUM, 2, VOCAB),
        logits,
        torch.zeros(NUM, dtype=torch.int64),
        torch.full((NUM,), 2),
        sampling=sampling,
        accept_uniform=torch.rand(NUM, 2, dtype=torch.float64, generator=generator),
        excluded_token_id=MASK,
    )
    row = sampling.select(torch.zeros(3, dtype=torch.int64))
    targets = filtered_probs(logits, row.temperature, row.top_k, row.top_p, row.min_p, MASK)
    emitted = torch.cat([draft_ids, bonus_ids[:, None]], dim=1)
    emitted = emitted.scatter(1, num_correct[:, None], bonus_ids[:, None])
    for index in range(3):
        is_emitted = num_correct >= index
        if int(is_emitted.sum()) > 200:
            _assert_follows(emitted[is_emitted, index], targets[index])
    rate = float((num_correct >= 1).double().mean())
    assert rate == pytest.approx(float(torch.minimum(targets[0], drafters[0].double()).sum()), abs=0.01)


def test_shapes_that_do_not_agree_are_refused() -> None:
    arguments = make_case(num_rows=2, length=3, vocab_size=5, one_hot=False, seed=0).arguments(MASK)
    with pytest.raises(ValueError, match=r"\[T, V >= 2\]"):
        accept_rejection(**{**arguments, "logits": torch.zeros(8, 1)})
    with pytest.raises(ValueError, match="first_row must be"):
        accept_rejection(**{**arguments, "first_row": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(ValueError, match="draft_probs must be"):
        accept_rejection(**{**arguments, "draft_probs": torch.zeros(2, 3, 4)})
