"""The oracle on a scripted model, where every token, forward and cache entry can be said in advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm_sglang.reference.decoder import OracleParams, OracleResult, decode
from dlm_sglang.reference.sampling import pick_token
from dlm_sglang.reference.unmask import confident_or_best, ends_at_eos, most_confident_first, spread_evenly

MASK, EOS, VOCAB = 30, 29, 31
TEXT = [(7 * i + 3) % 28 for i in range(200)]
CONTEXT = 200


@dataclass(frozen=True)
class Call:
    """One forward that the decoder asked for."""

    token_ids: list[int]
    positions: list[int]
    is_bidirectional: bool
    use_lora: bool
    cached_ids: list[int]

    def num_masks(self) -> int:
        return self.token_ids.count(MASK)


@dataclass
class ScriptedModel:
    """Knows a text by heart: causal rows give the next token of it, bidirectional rows their own.

    Attributes:
        text: token by absolute position.
        draft_text: what rows of LoRA forwards give instead; None is `text`.
        height: logit of the given token by position; the others have 0.
        mask_logit: logit of the mask id.
    """

    text: list[int]
    draft_text: list[int] | None = None
    height: Callable[[int], float] = lambda position: 5.0
    mask_logit: float = 0.0
    calls: list[Call] = field(default_factory=list)
    config: Any = field(default_factory=lambda: SimpleNamespace(mask_token_id=MASK))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        attn_mask: Tensor,
        past: list[tuple[Tensor, Tensor]] | None,
        use_lora: bool = False,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        num_new, num_cached = input_ids.shape[1], 0 if past is None else past[0][0].shape[2]
        assert attn_mask.shape == (1, num_new, num_cached + num_new) and attn_mask.dtype == torch.bool
        assert positions.tolist() == [list(range(num_cached, num_cached + num_new))]
        ids = input_ids[0].tolist()
        # One lone position sees itself either way; what it holds tells the two kinds apart.
        is_bidirectional = bool(attn_mask[0, 0, -1]) and (num_new > 1 or ids == [MASK])
        expected = torch.ones_like(attn_mask[0]) if is_bidirectional else torch.ones_like(attn_mask[0]).tril(num_cached)
        assert torch.equal(attn_mask[0], expected)
        cached_ids = [] if past is None else past[0][0].flatten().long().tolist()
        self.calls.append(Call(ids, positions[0].tolist(), is_bidirectional, use_lora, cached_ids))

        text = self.draft_text if use_lora and self.draft_text is not None else self.text
        logits = torch.zeros(1, num_new, VOCAB)
        logits[:, :, MASK] = self.mask_logit
        for row, position in enumerate(positions[0].tolist()):
            predicted = position if is_bidirectional else position + 1
            logits[0, row, text[predicted]] = self.height(predicted)
        keys = torch.tensor(cached_ids + ids, dtype=torch.float64)[None, None, :, None]
        return logits, [(keys, keys)]

    @property
    def denoise_calls(self) -> list[Call]:
        return [call for call in self.calls if call.is_bidirectional]

    @property
    def commit_calls(self) -> list[Call]:
        return [call for call in self.calls[1:] if not call.is_bidirectional]


AR = OracleParams(
    mode="autoregressive", block_length=1, max_denoising_steps=0, confidence_threshold=None, max_new_tokens=20
)
DIFFUSION = replace(AR, mode="diffusion", block_length=8, max_denoising_steps=8, confidence_threshold=0.9)
SPECULATION = replace(AR, mode="self_speculation", block_length=8, max_denoising_steps=1)
ALL_MODES = [AR, DIFFUSION, replace(DIFFUSION, seeded_blocks=False), SPECULATION]
PROMPT = TEXT[:5]


def run(model: ScriptedModel, params: OracleParams, prompt: list[int] = PROMPT, **kwargs: Any) -> OracleResult:
    return decode(model, prompt, params, kwargs.pop("eos_ids", {EOS}), kwargs.pop("context_length", CONTEXT))


def with_eos_at(*positions: int) -> list[int]:
    return [EOS if i in positions else token_id for i, token_id in enumerate(TEXT)]


@pytest.mark.parametrize("params", ALL_MODES)
@pytest.mark.parametrize("prompt_len", [1, 5])
@pytest.mark.parametrize("max_new_tokens", [1, 2, 7, 8, 9, 16, 17, 20])
def test_every_mode_recites_the_text(params: OracleParams, prompt_len: int, max_new_tokens: int) -> None:
    model = ScriptedModel(TEXT)
    result = run(model, replace(params, max_new_tokens=max_new_tokens), TEXT[:prompt_len])
    assert result.token_ids == TEXT[prompt_len : prompt_len + max_new_tokens]
    assert result.finish_reason == "length"
    assert sum(result.accept_lens) == max_new_tokens - params.seeded_blocks
    assert result.num_forwards == len(model.calls) - 1
    assert result.num_denoise_forwards == len(model.denoise_calls)
    assert result.num_commit_forwards == len(model.commit_calls)
    assert result.num_blocks == len(result.accept_lens)
    for call in model.calls:
        assert call.cached_ids == TEXT[: len(call.cached_ids)]
        assert call.use_lora == (params.mode == "self_speculation" and call.is_bidirectional)


def test_autoregressive_runs_one_forward_per_token_after_the_first() -> None:
    result = run(ScriptedModel(TEXT), AR)
    assert (result.num_denoise_forwards, result.num_commit_forwards, result.num_blocks) == (0, 19, 19)
    assert result.accept_lens == [1] * 19


def test_single_shot_speculation_runs_two_forwards_per_cycle() -> None:
    result = run(ScriptedModel(TEXT), SPECULATION)
    assert (result.num_denoise_forwards, result.num_commit_forwards) == (3, 3)
    # 1 token from the prefill, then 7 accepted drafts and a bonus per cycle; the last cycle is cut.
    assert result.accept_lens == [8, 8, 3]


def test_the_first_wrong_draft_ends_a_cycle_and_is_cropped() -> None:
    draft_text = TEXT.copy()
    draft_text[8] = (draft_text[8] + 1) % 28
    model = ScriptedModel(TEXT, draft_text)
    result = run(model, SPECULATION)
    assert result.token_ids == TEXT[5:25]
    # The seed stands at 5; drafts 6 and 7 are right, 8 is wrong: two matched and the correction.
    assert result.accept_lens[0] == 3
    assert model.calls[3].token_ids == [TEXT[8]] + [MASK] * 7
    assert model.calls[3].cached_ids == TEXT[:8]


def test_a_wrong_drafter_costs_forwards_but_no_tokens() -> None:
    result = run(ScriptedModel(TEXT, [(t + 1) % 28 for t in TEXT]), SPECULATION)
    assert result.token_ids == TEXT[5:25]
    assert result.accept_lens == [1] * 19
    assert (result.num_denoise_forwards, result.num_commit_forwards) == (19, 19)


@pytest.mark.parametrize(("draft_threshold", "steps", "num_drafts"), [(0.0, 8, 1), (0.99, 8, 7), (0.99, 3, 3)])
def test_draft_threshold_iterates_the_draft(draft_threshold: float, steps: int, num_drafts: int) -> None:
    model = ScriptedModel(TEXT)
    params = replace(SPECULATION, draft_threshold=draft_threshold, max_denoising_steps=steps, max_new_tokens=9)
    result = run(model, params)
    assert (result.num_denoise_forwards, result.num_commit_forwards) == (num_drafts, 1)
    assert [call.num_masks() for call in model.denoise_calls] == list(range(7, 7 - num_drafts, -1))


@pytest.mark.parametrize(("seeded", "masks"), [(True, 7), (False, 8)])
def test_a_reached_threshold_fills_the_block_in_one_step(seeded: bool, masks: int) -> None:
    model = ScriptedModel(TEXT, height=lambda position: 20.0)
    result = run(model, replace(DIFFUSION, seeded_blocks=seeded, max_new_tokens=24))
    assert [call.num_masks() for call in model.denoise_calls] == [masks] * 3
    # The third block ends the request: it is not committed.
    assert (result.num_denoise_forwards, result.num_commit_forwards, result.num_blocks) == (3, 2, 3)
    assert result.accept_lens == ([8, 8, 7] if seeded else [8, 8, 8])


def test_a_limit_reached_by_the_next_seed_needs_the_commit_but_no_block() -> None:
    result = run(ScriptedModel(TEXT, height=lambda position: 20.0), replace(DIFFUSION, max_new_tokens=9))
    assert (result.num_denoise_forwards, result.num_commit_forwards, result.num_blocks) == (1, 1, 1)
    assert result.accept_lens == [8]


def test_below_the_threshold_only_the_best_mask_is_filled() -> None:
    heights = {6: 1.0, 7: 0.5, 8: 2.5, 9: 3.0, 10: 2.0, 11: 1.5, 12: 0.2}
    model = ScriptedModel(TEXT, height=lambda position: heights.get(position, 1.0))
    run(model, replace(DIFFUSION, max_new_tokens=8))
    assert order_of_filling(model) == [9, 8, 10, 11, 6, 7]
    assert model.denoise_calls[-1].num_masks() == 1


def order_of_filling(model: ScriptedModel) -> list[int]:
    """Positions in the order in which a single block's masks went, as far as its last denoise forward shows."""
    order = []
    for before, after in pairwise(model.denoise_calls):
        triples = zip(before.positions, before.token_ids, after.token_ids, strict=True)
        order += [position for position, old, new in triples if old != new]
    return order


@pytest.mark.parametrize(
    ("steps", "seeded", "masks_seen"),
    [
        (1, True, [7]),
        (2, True, [7, 3]),
        (3, True, [7, 4, 2]),
        (3, False, [8, 5, 2]),
        (7, True, [7, 6, 5, 4, 3, 2, 1]),
        (8, True, [7, 6, 5, 4, 3, 2, 1]),
        (8, False, [8, 7, 6, 5, 4, 3, 2, 1]),
    ],
)
def test_without_threshold_masks_are_spread_over_the_steps(steps: int, seeded: bool, masks_seen: list[int]) -> None:
    model = ScriptedModel(TEXT)
    params = replace(
        DIFFUSION, confidence_threshold=None, max_denoising_steps=steps, seeded_blocks=seeded, max_new_tokens=8
    )
    assert run(model, params).token_ids == TEXT[5:13]
    assert [call.num_masks() for call in model.denoise_calls] == masks_seen


def test_the_last_step_fills_all_masks_left() -> None:
    model = ScriptedModel(TEXT, height=lambda position: 1.0)
    result = run(model, replace(DIFFUSION, max_denoising_steps=3, max_new_tokens=8))
    assert [call.num_masks() for call in model.denoise_calls] == [7, 6, 5]
    assert result.token_ids == TEXT[5:13]


def test_a_committed_block_has_no_mask_and_no_lora() -> None:
    model = ScriptedModel(TEXT)
    run(model, DIFFUSION)
    assert [call.token_ids for call in model.commit_calls] == [TEXT[5:13], TEXT[13:21]]
    assert not any(call.use_lora for call in model.calls)


@pytest.mark.parametrize("params", ALL_MODES)
@pytest.mark.parametrize("eos_at", [5, 6, 9, 12, 13, 14, 20, 21, 24])
@pytest.mark.parametrize("second_eos_at", [None, 11, 15])
def test_output_ends_at_the_first_eos(params: OracleParams, eos_at: int, second_eos_at: int | None) -> None:
    # Blocks begin at 5, 13 and 21: seed, inside, last slot, bonus, next seed, and the token limit.
    text = with_eos_at(eos_at, *[at for at in [second_eos_at] if at is not None])
    result = run(ScriptedModel(text), params)
    first = text.index(EOS)
    assert result.token_ids == text[5 : first + 1]
    assert result.finish_reason == "stop"


@pytest.mark.parametrize("params", [AR, DIFFUSION, SPECULATION])
def test_an_eos_from_the_prefill_needs_no_forward(params: OracleParams) -> None:
    result = run(ScriptedModel(with_eos_at(5)), params)
    assert (result.token_ids, result.num_forwards, result.num_blocks) == ([EOS], 0, 0)


def test_denoising_stops_once_an_eos_has_no_mask_before_it() -> None:
    heights = {8: 4.0, 7: 3.0, 6: 2.0}
    model = ScriptedModel(with_eos_at(8), height=lambda position: heights.get(position, 1.0))
    result = run(model, DIFFUSION)
    assert result.token_ids == [*TEXT[5:8], EOS]
    # The EOS is placed first and waits for 7 and 6; the masks behind it are never filled.
    assert [call.num_masks() for call in model.denoise_calls] == [7, 6, 5]
    assert (result.num_blocks, result.num_commit_forwards) == (1, 0)


def test_masks_behind_an_eos_that_must_wait_are_filled_like_any_other() -> None:
    heights = {6: 2.5, 7: 2.0, 8: 4.0, 9: 1.0, 10: 0.8, 11: 3.0, 12: 0.6}
    model = ScriptedModel(with_eos_at(8), height=lambda position: heights.get(position, 1.0))
    run(model, DIFFUSION)
    assert [call.num_masks() for call in model.denoise_calls] == [7, 6, 5, 4]
    assert order_of_filling(model) == [8, 11, 6]


@pytest.mark.parametrize("params", ALL_MODES)
def test_without_eos_ids_an_eos_is_ordinary_text(params: OracleParams) -> None:
    text = with_eos_at(9)
    assert run(ScriptedModel(text), params, eos_ids=set()).token_ids == text[5:25]


@pytest.mark.parametrize("params", ALL_MODES)
def test_an_eos_at_the_limit_is_a_stop_and_behind_it_is_not(params: OracleParams) -> None:
    params = replace(params, max_new_tokens=4)
    assert run(ScriptedModel(with_eos_at(8)), params).finish_reason == "stop"
    assert run(ScriptedModel(with_eos_at(9)), params).finish_reason == "length"


@pytest.mark.parametrize("params", ALL_MODES)
@pytest.mark.parametrize("context_length", [6, 7, 12, 13, 14, 20])
def test_the_context_end_shortens_the_last_block(params: OracleParams, context_length: int) -> None:
    model = ScriptedModel(TEXT)
    result = run(model, replace(params, max_new_tokens=100), context_length=context_length)
    assert result.token_ids == TEXT[5:context_length]
    assert result.finish_reason == "length"
    assert max(call.positions[-1] for call in model.calls) < context_length


@pytest.mark.parametrize("params", [DIFFUSION, SPECULATION])
def test_max_new_tokens_does_not_shorten_a_block(params: OracleParams) -> None:
    model = ScriptedModel(TEXT)
    run(model, replace(params, max_new_tokens=3))
    assert all(len(call.token_ids) == 8 for call in model.calls[1:])


@pytest.mark.parametrize("params", ALL_MODES)
def test_the_mask_is_never_chosen_but_lowers_confidence(params: OracleParams) -> None:
    sure = ScriptedModel(TEXT, height=lambda position: 20.0)
    rivalled = ScriptedModel(TEXT, height=lambda position: 20.0, mask_logit=21.0)
    without, with_rival = run(sure, params), run(rivalled, params)
    assert without.token_ids == with_rival.token_ids
    if params.mode == "diffusion":
        assert with_rival.num_denoise_forwards > without.num_denoise_forwards


@pytest.mark.parametrize("params", ALL_MODES)
def test_a_mask_id_in_the_prompt_is_ordinary_text(params: OracleParams) -> None:
    model = ScriptedModel(TEXT)
    result = run(model, params, prompt=[MASK, 1, MASK])
    assert result.token_ids == TEXT[3:23]
    assert model.calls[0].token_ids == [MASK, 1, MASK]
    assert all(call.cached_ids[:3] == [MASK, 1, MASK] for call in model.calls[1:])


def test_draws_use_the_absolute_position_and_the_denoise_step() -> None:
    # A flat model: the tokens are the random numbers themselves.
    flat = torch.zeros(VOCAB).index_fill(0, torch.tensor([MASK]), -torch.inf)

    def flat_model() -> ScriptedModel:
        return ScriptedModel(TEXT, height=lambda position: 0.0)

    def drawn(position: int, step: int) -> int:
        return pick_token(flat, temperature=1.0, seed=3, position=position, step=step)

    sampled: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_new_tokens": 16}
    causal = [drawn(position, 0) for position in range(5, 21)]
    assert run(flat_model(), replace(AR, **sampled), eos_ids=set()).token_ids == causal
    assert run(flat_model(), replace(SPECULATION, **sampled), eos_ids=set()).token_ids == causal
    # Three steps fill 3, 2 and 2 masks; where all is flat, the leftmost.
    expected = []
    for seed_position in (5, 13):
        expected.append(drawn(seed_position, 0))
        for offset, step in zip(range(1, 8), [1, 1, 1, 2, 2, 3, 3], strict=True):
            expected.append(drawn(seed_position + offset, step))
    spread = replace(DIFFUSION, confidence_threshold=None, max_denoising_steps=3, **sampled)
    assert run(flat_model(), spread, eos_ids=set()).token_ids == expected


def test_drafts_are_greedy_at_any_temperature() -> None:
    model = ScriptedModel(TEXT, height=lambda position: 1.0)
    run(model, replace(SPECULATION, temperature=2.0, seed=1), eos_ids=set())
    for call in model.commit_calls:
        assert call.token_ids[1:] == [TEXT[position] for position in call.positions[1:]]


def test_confidence_comes_from_the_raw_logits_at_any_temperature() -> None:
    # 0.93 as it is, 0.40 at temperature 2; top-k leaves the sampler no choice.
    model = ScriptedModel(TEXT, height=lambda position: 6.0)
    result = run(model, replace(DIFFUSION, temperature=2.0, top_k=1, max_new_tokens=8))
    assert (result.token_ids, result.num_denoise_forwards) == (TEXT[5:13], 1)


def test_parameters_out_of_range_are_refused() -> None:
    for change in ({"mode": "ar"}, {"block_length": 0}, {"max_denoising_steps": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(DIFFUSION, **change)
    for prompt in ([], TEXT[:CONTEXT]):
        with pytest.raises(ValueError, match=r"prompt must have 1\.\.199 tokens"):
            run(ScriptedModel(TEXT), AR, prompt=prompt)


def test_selection_rules() -> None:
    assert spread_evenly(7, 3) == [3, 2, 2]
    assert spread_evenly(8, 8) == [1] * 8
    assert most_confident_first({3: 0.5, 1: 0.5, 2: 0.9}) == [2, 1, 3]
    assert confident_or_best({0: 0.2, 4: 0.7, 5: 0.9}, 0.7) == [4, 5]
    assert confident_or_best({4: 0.2, 5: 0.2}, 0.7) == [4]
    # 0.9 as float32 lies below 0.9: a float32 confidence of that value reaches the threshold.
    assert confident_or_best({0: float(torch.tensor(0.9, dtype=torch.float32)), 1: 1.0}, 0.9) == [0, 1]
    assert ends_at_eos([1, EOS, None], {EOS})
    assert not ends_at_eos([None, EOS, 1], {EOS})
    assert not ends_at_eos([1, 2], {EOS})
