"""The conformance items of spec §5.6 on random NLD models; the number of the item stands at each test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlm_sglang.reference.decoder import Mode, OracleParams, OracleResult, decode
from dlm_sglang.reference.model import KvCache, NldModel
from dlm_sglang.reference.sampling import filtered_probs
from dlm_sglang.reference.sequence import CachedSequence, TriModeModel
from tests.unit.decode.models import CONFIG as SMALL_CONFIG

VOCAB, MASK, CONTEXT = 40, 33, 96
CONFIG = replace(
    SMALL_CONFIG,
    vocab_size=VOCAB,
    rope_theta=1e6,
    # Short, so that the frequency ramp and the query scale are at work inside the tests' contexts.
    original_max_position_embeddings=16,
    mask_token_id=MASK,
    eos_token_id=11,
)
AR = OracleParams(
    mode="autoregressive", block_length=1, max_denoising_steps=1, confidence_threshold=None, max_new_tokens=33
)
DIFFUSION = replace(AR, mode="diffusion", block_length=8, max_denoising_steps=8, confidence_threshold=0.7)
UNSEEDED = replace(DIFFUSION, seeded_blocks=False)
SPECULATION = replace(AR, mode="self_speculation", block_length=8)
ITERATED = replace(SPECULATION, draft_threshold=0.7, max_denoising_steps=4)
ALL_MODES = [AR, DIFFUSION, UNSEEDED, SPECULATION, ITERATED]

prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=24)
samplings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "top_k": st.sampled_from([-1, 1, 5]),
        "top_p": st.sampled_from([1.0, 0.8]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "seed": st.integers(0, 2**63 - 1),
    }
)
few = settings(max_examples=12, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # Forwards of a few thousand multiplications only wait for each other on several threads.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@cache
def random_model(dtype: torch.dtype = torch.float64, lora_scale: float = 0.0, seed: int = 7) -> NldModel:
    """Random weights, the head peaked so that confidences spread over 0..1; greedy text of the seed does not repeat."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int, std: float) -> Tensor:
        return std * torch.randn(*shape, generator=generator, dtype=torch.float64)

    model = NldModel(CONFIG).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.copy_(randn(*parameter.shape, std=parameter.shape[1] ** -0.5))
    model.encoder.embed_tokens.weight.mul_(CONFIG.hidden_size**0.5)
    model.diffusion_head.weight.mul_(3.0)
    model = model.to(dtype)
    if lora_scale:
        for layer in model.layers:
            projection = layer.self_attn.o_proj
            lora_a, lora_b = randn(4, projection.in_features, std=0.1), randn(projection.out_features, 4, std=0.1)
            projection.set_lora(lora_a.to(dtype), lora_b.to(dtype), lora_scale)
    return model


@dataclass(frozen=True)
class Call:
    """One forward: what went in, what came out."""

    token_ids: list[int]
    is_bidirectional: bool
    use_lora: bool
    past: KvCache | None
    logits: Tensor

    @property
    def cached_len(self) -> int:
        return 0 if self.past is None else self.past[0][0].shape[2]


@dataclass
class Recorder:
    """A model that keeps its forwards, and whose drafts (LoRA forwards) can be written by the test.

    Attributes:
        draft: the token drafted for an absolute position, or None to let the model draft.
    """

    model: TriModeModel
    draft: Callable[[int], int] | None = None
    calls: list[Call] = field(default_factory=list)

    @property
    def config(self) -> Any:
        return self.model.config

    def forward(
        self, input_ids: Tensor, positions: Tensor, attn_mask: Tensor, past: KvCache | None, use_lora: bool = False
    ) -> tuple[Tensor, KvCache]:
        before = [(k.clone(), v.clone()) for k, v in past or []]
        logits, kv = self.model.forward(input_ids, positions, attn_mask, past, use_lora)
        for (k, v), (k_before, v_before) in zip(past or [], before, strict=True):
            assert torch.equal(k, k_before) and torch.equal(v, v_before)
        if use_lora and self.draft is not None:
            logits = torch.zeros_like(logits)
            for row, position in enumerate(positions[0].tolist()):
                logits[0, row, self.draft(position)] = 9.0
        token_ids = input_ids[0].tolist()
        is_bidirectional = bool(attn_mask[0, 0, -1]) and (len(token_ids) > 1 or token_ids == [MASK])
        self.calls.append(Call(token_ids, is_bidirectional, use_lora, past, logits[0]))
        return logits, kv


def run(
    model: TriModeModel, prompt: list[int], params: OracleParams, eos_ids: frozenset[int] = frozenset()
) -> OracleResult:
    return decode(model, prompt, params, eos_ids, CONTEXT)


def fixed_prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_the_random_model_is_a_worthy_subject() -> None:
    # Otherwise the tests below could pass on text that repeats or on confidences that are all alike.
    for prompt in (fixed_prompt(12, seed) for seed in range(4)):
        text = run(random_model(), prompt, AR).token_ids
        assert len(set(text)) > 7
        assert all(token_id != following for token_id, following in pairwise(text))
        # Four blocks with 7 masks each: between one step per block and one per mask.
        assert 8 < run(random_model(), prompt, DIFFUSION).num_denoise_forwards < 28


@few
@given(prompt=prompts, block=prompts)
def test_1_causal_forward_equals_single_cached_steps(prompt: list[int], block: list[int]) -> None:
    whole, stepped = CachedSequence(random_model()), CachedSequence(random_model())
    rows = torch.cat([whole.prefill(prompt), whole.commit(block)])
    steps = torch.cat([stepped.prefill([token_id]) for token_id in prompt + block])
    torch.testing.assert_close(rows, steps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("params", ALL_MODES)
def test_2_denoise_forwards_leave_the_committed_cache_as_it_was(params: OracleParams) -> None:
    recorder = Recorder(random_model(lora_scale=4.0))
    run(recorder, fixed_prompt(9), params)
    for call, following in pairwise(recorder.calls):
        if call.is_bidirectional:
            assert following.past is call.past


@few
@given(prompt=prompts, block=st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=16), change=st.data())
def test_3_later_block_content_reaches_earlier_rows_only_when_denoising(
    prompt: list[int], block: list[int], change: st.DataObject
) -> None:
    position = change.draw(st.integers(1, len(block) - 1))
    other = change.draw(st.integers(0, VOCAB - 1).filter(lambda token_id: token_id != block[position]))
    changed = [*block[:position], other, *block[position + 1 :]]
    denoised, committed = [], []
    for content in (block, changed):
        sequence = CachedSequence(random_model())
        sequence.prefill(prompt)
        denoised.append(sequence.denoise(list(content), use_lora=False)[:position])
        committed.append(sequence.commit(list(content))[:position])
    assert not torch.allclose(denoised[0], denoised[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(*committed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block_length", [2, 4, 8, 16])
def test_4_true_drafts_are_all_accepted_and_shifted_ones_are_not(block_length: int) -> None:
    prompt = fixed_prompt(10, seed=3)
    params = replace(SPECULATION, block_length=block_length, max_new_tokens=1 + 3 * block_length)
    text = prompt + run(random_model(), prompt, replace(AR, max_new_tokens=64)).token_ids
    true = run(Recorder(random_model(), draft=lambda position: text[position]), prompt, params)
    assert true.accept_lens == [block_length] * 3

    def shifted_text(shift: int, position: int) -> int:
        return text[position + shift]

    for shift in (-1, 1):
        shifted = Recorder(random_model(), draft=partial(shifted_text, shift))
        result = run(shifted, prompt, params)
        assert result.token_ids == true.token_ids
        assert sum(result.accept_lens) / result.num_blocks < 1.5


@pytest.mark.parametrize(("lora_scale", "dtype"), [(0.0, torch.float32), (4.0, torch.float64), (400.0, torch.float32)])
@pytest.mark.parametrize("block_length", [2, 4, 8, 16, 32])
def test_5_greedy_self_speculation_equals_greedy_autoregression(
    block_length: int, lora_scale: float, dtype: torch.dtype
) -> None:
    model = random_model(dtype, lora_scale)
    for prompt_len in (1, 13):
        prompt = fixed_prompt(prompt_len, seed=block_length)
        expected = run(model, prompt, AR).token_ids
        for params in (SPECULATION, ITERATED):
            result = run(model, prompt, replace(params, block_length=block_length))
            assert result.token_ids == expected
            assert result.num_commit_forwards == result.num_blocks


@few
@given(
    prompt=prompts,
    sampling=samplings,
    block_length=st.integers(1, 20),
    quality=st.sampled_from([0, 50, 80, 100]),
    noise=st.randoms(use_true_random=False),
)
def test_5_equal_seeds_give_equal_tokens_for_drafts_of_any_quality(
    prompt: list[int], sampling: dict[str, Any], block_length: int, quality: int, noise: Any
) -> None:
    expected = run(random_model(), prompt, replace(AR, **sampling)).token_ids
    text = prompt + expected + [0] * 32
    is_right = [noise.randrange(100) < quality for _ in text]
    drafter = Recorder(random_model(), draft=lambda i: text[i] if is_right[i] else (text[i] + 1) % MASK)
    params = replace(SPECULATION, block_length=block_length, **sampling)
    assert run(drafter, prompt, params).token_ids == expected
    assert run(random_model(lora_scale=4.0), prompt, params).token_ids == expected


class MarkovModel:
    """Five tokens, the last of them the mask; a causal row depends on the two tokens before, so 64 outputs exist."""

    config = SimpleNamespace(mask_token_id=4)

    def __init__(self) -> None:
        self.table = 1.5 * torch.randn(5, 5, 5, generator=torch.Generator().manual_seed(5))

    def forward(
        self, input_ids: Tensor, positions: Tensor, attn_mask: Tensor, past: KvCache | None, use_lora: bool = False
    ) -> tuple[Tensor, KvCache]:
        cached = torch.zeros(1, 1, 0, 1, dtype=torch.int64) if past is None else past[0][0]
        ids = torch.cat([cached, input_ids[:, None, :, None]], dim=2)
        history = torch.nn.functional.pad(ids.flatten(), (1, 0))
        logits = self.table[history[:-1], history[1:]][-input_ids.shape[1] :]
        return logits[None], [(ids, ids)]


SAMPLED = replace(SPECULATION, block_length=3, max_new_tokens=3, temperature=0.9)
MARKOV_PROMPT = [2, 0, 3]


def exact_distribution(params: OracleParams) -> dict[tuple[int, ...], float]:
    """Probability of every 3-token output by autoregressive sampling, by enumeration."""
    table = MarkovModel().table.clone()
    table[:, :, 4] = -torch.inf

    def next_probs(history: list[int]) -> list[float]:
        row = table[history[-2], history[-1]]
        return filtered_probs(row, params.temperature, params.top_k, params.top_p, params.min_p).tolist()

    outcomes: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        outcomes = {
            (*output, token_id): mass * p
            for output, mass in outcomes.items()
            for token_id, p in enumerate(next_probs(MARKOV_PROMPT + list(output)))
            if p > 0
        }
    return outcomes


def chi_square_excess(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Standard deviations by which the chi-square statistic exceeds its mean (Wilson-Hilferty); rare cells pooled."""
    total = counts.total()
    assert set(counts) <= set(expected)
    cells: list[tuple[float, float]] = []
    rare = [0.0, 0.0]
    for output, mass in expected.items():
        if total * mass >= 5:
            cells.append((counts[output], total * mass))
        else:
            rare = [rare[0] + counts[output], rare[1] + total * mass]
    if rare[1] > 0:
        cells.append((rare[0], rare[1]))
    df = len(cells) - 1
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    variance = 2 / (9 * df)
    return (math.cbrt(statistic / df) - 1 + variance) / math.sqrt(variance)


def sampled_outputs(params: OracleParams, draft: Callable[[int], int], first_seed: int) -> Counter[tuple[int, ...]]:
    model = Recorder(MarkovModel(), draft)
    results = (
        decode(model, MARKOV_PROMPT, replace(params, seed=seed), set(), CONTEXT)
        for seed in range(first_seed, first_seed + 600)
    )
    return Counter(tuple(result.token_ids) for result in results)


@pytest.mark.parametrize("filters", [{}, {"top_k": 3, "top_p": 0.9, "min_p": 0.05}])
def test_6_sampled_self_speculation_has_the_autoregressive_distribution(filters: dict[str, Any]) -> None:
    params = replace(SAMPLED, **filters)
    expected = exact_distribution(params)
    assert sum(expected.values()) == pytest.approx(1.0)
    likeliest = max(expected, key=lambda output: expected[output])
    least_likely = min(expected, key=lambda output: expected[output])
    # The drafts of both cycles' positions: the likeliest text, the least likely one, and one that never comes.
    drafts: list[Callable[[int], int]] = [
        lambda position: likeliest[min(position - 3, 2)],
        lambda position: least_likely[min(position - 3, 2)],
        lambda position: 0,
    ]
    for i, draft in enumerate(drafts):
        assert chi_square_excess(sampled_outputs(params, draft, 10_000 * i), expected) < 4
    autoregressive = sampled_outputs(replace(params, mode="autoregressive"), drafts[0], 50_000)
    assert chi_square_excess(autoregressive, expected) < 4
    # The test can fail: a slightly different temperature is told apart.
    assert chi_square_excess(autoregressive, exact_distribution(replace(params, temperature=1.2))) > 4


@few
@given(
    prompt=prompts,
    block_length=st.integers(1, 20),
    steps=st.integers(1, 20),
    threshold=st.one_of(st.none(), st.floats(0, 1.1)),
    seeded=st.booleans(),
    sampling=samplings,
)
@example(prompt=[MASK], block_length=2, steps=1, threshold=None, seeded=False, sampling={})
def test_7_a_block_takes_at_most_its_steps_and_fills_masks_in_every_one(
    prompt: list[int], block_length: int, steps: int, threshold: float | None, seeded: bool, sampling: dict[str, Any]
) -> None:
    recorder = Recorder(random_model())
    params = replace(
        UNSEEDED,
        block_length=block_length,
        max_denoising_steps=steps,
        confidence_threshold=threshold,
        seeded_blocks=seeded,
        **sampling,
    )
    run(recorder, prompt, params)
    # A prompt of one token looks as bidirectional as it looks causal.
    denoised = [call for call in recorder.calls if call.is_bidirectional and call.cached_len >= len(prompt)]
    by_block: dict[int, list[Call]] = {}
    for call in denoised:
        by_block.setdefault(call.cached_len, []).append(call)
    for calls in by_block.values():
        num_masks = [call.token_ids.count(MASK) for call in calls]
        assert num_masks[0] == block_length - seeded
        assert len(calls) <= min(steps, num_masks[0])
        assert all(later < earlier for earlier, later in pairwise(num_masks))
        for call, following in pairwise(calls):
            # A token once filled in stays.
            pairs = zip(call.token_ids, following.token_ids, strict=True)
            assert all(old in (MASK, new) for old, new in pairs)


@pytest.mark.parametrize("block_length", [2, 5, 8])
@pytest.mark.parametrize("seeded", [True, False])
def test_7_extreme_thresholds_give_one_token_or_one_block_per_step(block_length: int, seeded: bool) -> None:
    params = replace(UNSEEDED, block_length=block_length, max_denoising_steps=block_length, seeded_blocks=seeded)
    params = replace(params, max_new_tokens=3 * block_length)
    one_by_one = run(random_model(), fixed_prompt(7), replace(params, confidence_threshold=1.1))
    assert one_by_one.num_denoise_forwards == 3 * (block_length - seeded)
    at_once = run(random_model(), fixed_prompt(7), replace(params, confidence_threshold=0.0))
    assert at_once.num_denoise_forwards == 3
    even = run(random_model(), fixed_prompt(7), replace(params, confidence_threshold=None))
    assert even.token_ids == one_by_one.token_ids


@few
@given(prompt=prompts, sampling=samplings, mode=st.sampled_from(["diffusion", "self_speculation"]))
def test_8_blocks_of_one_reduce_to_autoregression(prompt: list[int], sampling: dict[str, Any], mode: Mode) -> None:
    params = replace(AR, **sampling)
    assert run(random_model(), prompt, replace(params, mode=mode)) == run(random_model(), prompt, params)


@few
@given(prompt=prompts, params=st.sampled_from(ALL_MODES), sampling=samplings)
def test_9_the_cache_always_equals_a_fresh_causal_prefill(
    prompt: list[int], params: OracleParams, sampling: dict[str, Any]
) -> None:
    recorder = Recorder(random_model(lora_scale=4.0))
    result = run(recorder, prompt, replace(params, **sampling))
    fresh = CachedSequence(random_model())
    fresh.prefill(prompt + result.token_ids)
    assert fresh.cache is not None
    for call in recorder.calls[1:]:
        assert call.past is not None
        for kept, expected in zip(call.past, fresh.cache, strict=True):
            for kept_side, expected_side in zip(kept, expected, strict=True):
                torch.testing.assert_close(kept_side, expected_side[:, :, : call.cached_len], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("params", ALL_MODES)
def test_12_lora_is_on_in_drafts_and_nowhere_else(params: OracleParams) -> None:
    prompt = fixed_prompt(9)
    with_lora, without = Recorder(random_model(lora_scale=4.0)), Recorder(random_model())
    results = [run(model, prompt, params) for model in (with_lora, without)]
    assert results[0].token_ids == results[1].token_ids
    is_speculation = params.mode == "self_speculation"
    assert all(call.use_lora == (is_speculation and call.is_bidirectional) for call in with_lora.calls)
    if not is_speculation:
        assert results[0] == results[1]
        return
    # Same prompt, same first block: the draft's logits move; the first verified row, the seed's, does not.
    (prefill, draft), (prefill_without, draft_without) = with_lora.calls[:2], without.calls[:2]
    torch.testing.assert_close(prefill.logits, prefill_without.logits, rtol=0, atol=0)
    assert draft.token_ids == draft_without.token_ids
    assert not torch.allclose(draft.logits, draft_without.logits, rtol=0, atol=1e-2)
    first_commits = [next(c for c in r.calls[1:] if not c.is_bidirectional) for r in (with_lora, without)]
    torch.testing.assert_close(first_commits[0].logits[0], first_commits[1].logits[0], rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    prompt=prompts,
    params=st.sampled_from(ALL_MODES),
    sampling=samplings,
    block_length=st.integers(1, 12),
    steps=st.integers(1, 12),
    threshold=st.sampled_from([None, 0.7]),
    cut=st.data(),
)
def test_13_eos_and_token_limit_cut_exactly(
    prompt: list[int],
    params: OracleParams,
    sampling: dict[str, Any],
    block_length: int,
    steps: int,
    threshold: float | None,
    cut: st.DataObject,
) -> None:
    params = replace(params, block_length=block_length, max_denoising_steps=steps, **sampling)
    params = replace(params, confidence_threshold=threshold, max_new_tokens=30)
    whole = run(random_model(), prompt, params)
    assert (len(whole.token_ids), whole.finish_reason) == (30, "length")

    limit = cut.draw(st.integers(1, 30), label="limit")
    limited = run(random_model(), prompt, replace(params, max_new_tokens=limit))
    assert limited.token_ids == whole.token_ids[:limit]

    eos_id = cut.draw(st.sampled_from(whole.token_ids), label="eos_id")
    stopped = run(random_model(), prompt, params, frozenset({eos_id}))
    assert stopped.token_ids == whole.token_ids[: whole.token_ids.index(eos_id) + 1]
    assert stopped.finish_reason == "stop"
    for shorter in (limited, stopped):
        assert shorter.num_forwards <= whole.num_forwards
        assert sum(shorter.accept_lens) == len(shorter.token_ids) - (params.mode != "diffusion" or params.seeded_blocks)


@few
@given(prompt=prompts, params=st.sampled_from(ALL_MODES), room=st.integers(1, 30))
def test_13_the_context_end_cuts_exactly(prompt: list[int], params: OracleParams, room: int) -> None:
    recorder = Recorder(random_model())
    params = replace(params, max_new_tokens=100)
    result = decode(recorder, prompt, params, set(), len(prompt) + room)
    assert (len(result.token_ids), result.finish_reason) == (room, "length")
    assert max(call.cached_len + len(call.token_ids) for call in recorder.calls) <= len(prompt) + room
    roomy = run(random_model(), prompt, replace(params, max_new_tokens=room))
    # Only a diffusion block that the context end shortened may differ.
    same = room if params.mode != "diffusion" else room // 8 * 8
    assert result.token_ids[:same] == roomy.token_ids[:same]
