"""The oracle: one sequence, three modes, plain torch, a line-by-line reading of spec §3.1 - §3.3.

Slow and obvious on purpose: no batching, no SGLang, one token at a time in Python. The server is tested against
it, token for token. What the specification leaves open is settled here, and the engine follows: the mask id is
never chosen, but counts in the softmax of a confidence; ties go to the lowest position and the lowest id; random
numbers are a function of (seed, position, step), see `sampling`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from dlm_sglang.reference.sampling import CAUSAL_STEP, pick_token
from dlm_sglang.reference.sequence import CachedSequence, Canvas, TriModeModel
from dlm_sglang.reference.unmask import confidence, confident_or_best, ends_at_eos, most_confident_first, spread_evenly

Mode = Literal["autoregressive", "diffusion", "self_speculation"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class OracleParams:
    """The decoding parameters of one request, all of them resolved.

    Attributes:
        block_length: positions of a block, the seed included; ignored in autoregressive mode.
        max_denoising_steps: denoise forwards allowed per block; ignored in autoregressive mode.
        confidence_threshold: diffusion only; None spreads the masks evenly over the steps.
        draft_threshold: self-speculation only; 0 drafts a block in one denoise forward.
        seeded_blocks: diffusion only; False starts every block all masked.
        temperature: 0 is greedy. The filters are those of `sampling.filtered_probs`.
    """

    mode: Mode
    block_length: int
    max_denoising_steps: int
    confidence_threshold: float | None
    draft_threshold: float = 0.0
    seeded_blocks: bool = True
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.mode != "autoregressive" and min(self.block_length, self.max_denoising_steps) < 1:
            raise ValueError(
                "block_length and max_denoising_steps must be at least 1,"
                f" got {self.block_length} and {self.max_denoising_steps}"
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True)
class DenoiseStep:
    """A block after one of its denoise forwards.

    Attributes:
        step: which one, from 1 on.
        begin: place in the output of the block's first position, its seed's where it has one.
        canvas: the block's tokens, None where masked.
    """

    step: int
    begin: int
    canvas: Canvas


@dataclass(frozen=True)
class OracleResult:
    """What one request gave and what it cost; the prefill forward is not counted.

    Attributes:
        token_ids: the output, cut behind the first EOS, at `max_new_tokens` or at the context end.
        num_forwards: `num_denoise_forwards + num_commit_forwards`.
        num_commit_forwards: causal forwards; a diffusion block that ends the request needs none.
        num_blocks: blocks begun; an autoregressive block is one token.
        accept_lens: output tokens that each block added, after the cut. In all modes but unseeded diffusion
            the first output token comes from the prefill, so they sum to `len(token_ids) - 1`.
        steps: what each denoise forward left.
    """

    token_ids: list[int]
    finish_reason: FinishReason
    num_forwards: int
    num_denoise_forwards: int
    num_commit_forwards: int
    num_blocks: int
    accept_lens: list[int]
    steps: list[DenoiseStep] = field(default_factory=list, repr=False)


def decode(
    model: TriModeModel, prompt_ids: Sequence[int], params: OracleParams, eos_ids: Collection[int], context_length: int
) -> OracleResult:
    """Generate the answer to one prompt.

    Args:
        model: in any float dtype; its LoRA, if it has one, is on in self-speculation drafts only.
        prompt_ids: at least one id; a mask id in it is ordinary text.
        eos_ids: ids that end the output, which includes them.
        context_length: prompt, output and blocks stay below this position.

    Raises:
        ValueError: the prompt is empty or leaves no room for a token.
    """
    if not 0 < len(prompt_ids) < context_length:
        raise ValueError(f"the prompt must have 1..{context_length - 1} tokens, got {len(prompt_ids)}")
    request = _Request(CachedSequence(model), params, frozenset(eos_ids), context_length, len(prompt_ids))
    with torch.no_grad():
        rows = request.sequence.prefill(prompt_ids)
        _MODES[params.mode](request, rows[-1])
    return request.result()


class _Request:
    """The output of one request, and the rules for adding to it."""

    def __init__(
        self,
        sequence: CachedSequence,
        params: OracleParams,
        eos_ids: Collection[int],
        context_length: int,
        prompt_len: int,
    ) -> None:
        self.sequence = sequence
        self.params = params
        self.eos_ids = eos_ids
        self.context_length = context_length
        self.max_output_len = min(params.max_new_tokens, context_length - prompt_len)
        self.output: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.accept_lens: list[int] = []
        self.prompt_len = prompt_len
        self.steps: list[DenoiseStep] = []

    def emit(self, token_ids: Iterable[int | None]) -> None:
        """Append to the output up to the first EOS or the limit, and finish there; an EOS at the limit is a stop."""
        for token_id in token_ids:
            if self.finish_reason is not None:
                return
            assert token_id is not None, "masks are left only behind an EOS"
            self.output.append(token_id)
            if token_id in self.eos_ids:
                self.finish_reason = "stop"
            elif len(self.output) == self.max_output_len:
                self.finish_reason = "length"

    def fill(self, canvas: Canvas, picks: Mapping[int, int], step: int) -> None:
        """Put tokens into a block, as a denoise forward does."""
        for i, token_id in picks.items():
            canvas[i] = token_id
        self.steps.append(DenoiseStep(step, self.sequence.cached_len - self.prompt_len, list(canvas)))

    def next_block_length(self) -> int:
        """`block_length`, less only where the context ends; `max_new_tokens` does not shorten a block."""
        return min(self.params.block_length, self.context_length - self.sequence.cached_len)

    def pick(self, row: Tensor, position: int, step: int = CAUSAL_STEP, *, greedy: bool = False) -> int:
        """The token for an absolute position from logits `[V]`; never the mask."""
        params = self.params
        row = row.clone()
        row[self.sequence.mask_token_id] = -torch.inf
        return pick_token(
            row,
            temperature=0.0 if greedy else params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=params.seed,
            position=position,
            step=step,
        )

    def result(self) -> OracleResult:
        assert self.finish_reason is not None
        num_denoise_forwards = self.sequence.num_denoise_forwards
        num_commit_forwards = self.sequence.num_commit_forwards
        return OracleResult(
            token_ids=self.output,
            finish_reason=self.finish_reason,
            num_forwards=num_denoise_forwards + num_commit_forwards,
            num_denoise_forwards=num_denoise_forwards,
            num_commit_forwards=num_commit_forwards,
            num_blocks=len(self.accept_lens),
            accept_lens=self.accept_lens,
            steps=self.steps,
        )


def _autoregressive(request: _Request, prefill_row: Tensor) -> None:
    """Spec §3.1: one causal forward per token."""
    sequence = request.sequence
    seed = request.pick(prefill_row, sequence.cached_len)
    request.emit([seed])
    while request.finish_reason is None:
        rows = sequence.commit([seed])
        seed = request.pick(rows[-1], sequence.cached_len)
        request.emit([seed])
        request.accept_lens.append(1)


def _diffusion(request: _Request, prefill_row: Tensor) -> None:
    """Spec §3.2: denoise a block, commit it, take the next seed from the commit's last row."""
    sequence, seeded = request.sequence, request.params.seeded_blocks
    seeds: list[int] = []
    if seeded:
        seeds = [request.pick(prefill_row, sequence.cached_len)]
        request.emit(seeds)
    while request.finish_reason is None:
        len_before = len(request.output)
        canvas: Canvas = [*seeds, *[None] * (request.next_block_length() - len(seeds))]
        _denoise_block(request, canvas)
        request.emit(canvas[len(seeds) :])
        if request.finish_reason is None:
            rows = sequence.commit(canvas)
            if seeded:
                seeds = [request.pick(rows[-1], sequence.cached_len)]
                request.emit(seeds)
        request.accept_lens.append(len(request.output) - len_before)


def _denoise_block(request: _Request, canvas: Canvas) -> None:
    """Fill the masks of `canvas`; those behind an EOS that has no mask before it may be left."""
    params = request.params
    num_masks = canvas.count(None)
    num_steps = min(params.max_denoising_steps, num_masks)
    for step in range(1, num_steps + 1):
        if None not in canvas or ends_at_eos(canvas, request.eos_ids):
            return
        picks, confidences = _propose(request, canvas, step)
        if step == num_steps:
            chosen = list(picks)
        elif params.confidence_threshold is None:
            num_to_fill = spread_evenly(num_masks, num_steps)[step - 1]
            chosen = most_confident_first(confidences)[:num_to_fill]
        else:
            chosen = confident_or_best(confidences, params.confidence_threshold)
        request.fill(canvas, {i: picks[i] for i in chosen}, step)


def _self_speculation(request: _Request, prefill_row: Tensor) -> None:
    """Spec §3.3: draft a block, verify it by the causal forward that also commits it, keep what agrees."""
    sequence = request.sequence
    seed = request.pick(prefill_row, sequence.cached_len)
    request.emit([seed])
    while request.finish_reason is None:
        len_before, start = len(request.output), sequence.cached_len
        canvas: Canvas = [seed, *[None] * (request.next_block_length() - 1)]
        _draft_block(request, canvas)
        rows = sequence.commit(canvas)
        verified: list[int] = []
        for i, row in enumerate(rows):
            seed = request.pick(row, start + i + 1)
            verified.append(seed)
            if i + 1 < len(canvas) and canvas[i + 1] != seed:
                break
        sequence.crop(start + len(verified))
        request.emit(verified)
        request.accept_lens.append(len(request.output) - len_before)


def _draft_block(request: _Request, canvas: Canvas) -> None:
    """Fill all masks of `canvas` with the drafter's argmax tokens, at any temperature."""
    params = request.params
    num_steps = min(params.max_denoising_steps, canvas.count(None))
    for step in range(1, num_steps + 1):
        if None not in canvas:
            return
        picks, confidences = _propose(request, canvas, step, draft=True)
        chosen = list(picks) if step == num_steps else confident_or_best(confidences, params.draft_threshold)
        request.fill(canvas, {i: picks[i] for i in chosen}, step)


def _propose(
    request: _Request, canvas: Canvas, step: int, *, draft: bool = False
) -> tuple[dict[int, int], dict[int, float]]:
    """One denoise forward: a token and its confidence for every index of the block that is masked."""
    sequence = request.sequence
    rows = sequence.denoise(canvas, use_lora=draft)
    masked = [i for i, token_id in enumerate(canvas) if token_id is None]
    picks = {i: request.pick(rows[i], sequence.cached_len + i, step, greedy=draft) for i in masked}
    return picks, {i: confidence(rows[i], picks[i]) for i in masked}


_MODES: dict[Mode, Callable[[_Request, Tensor], None]] = {
    "autoregressive": _autoregressive,
    "diffusion": _diffusion,
    "self_speculation": _self_speculation,
}
