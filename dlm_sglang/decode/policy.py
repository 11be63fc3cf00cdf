"""The decoding policy: the only thing in which generation modes differ."""

from __future__ import annotations

from dataclasses import dataclass

from dlm_sglang.params import DecodeParams, GenerationMode


@dataclass(frozen=True, slots=True)
class DecodePolicy:
    """How one request's blocks are drafted, committed and cut.

    Attributes:
        mode: preset that the policy came from, for reports.
        block_length: positions per block, 1 decodes autoregressively; in `auto` the longest that may be chosen.
        max_denoising_steps: denoise forwards allowed per block; at the last one every mask is filled.
        confidence_threshold: a mask is filled when its token reaches it; None spreads masks over the steps.
        accepts_whole_block: True commits the block as drafted, False only the prefix that the verifier confirms.
        seeded_blocks: True starts a block with the causal row's token, False all masked.
        temperature: of causal rows, 0 is greedy.
        denoise_temperature: of denoise rows. Drafts that a verifier checks stay greedy: a one-hot draft is
            accepted with the verifier's own probability, which no other draft of one sample exceeds on average.
        seed: 63-bit seed of the request's stateless randomness.
        stop_ids: tokens that end the request.
        max_new_tokens: tokens that may still be emitted.
        latency_budget_ms: the request is to end so long after it came, for less quality if need be; None is no limit.
    """

    mode: GenerationMode
    block_length: int
    max_denoising_steps: int
    confidence_threshold: float | None
    accepts_whole_block: bool
    seeded_blocks: bool
    temperature: float
    denoise_temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    latency_budget_ms: int | None = None

    @property
    def is_autoregressive(self) -> bool:
        return self.block_length == 1

    @property
    def uses_drafter(self) -> bool:
        """Whether denoise rows run with the drafter adapter (spec section 2.1: linear-spec draft only)."""
        return self.mode in (GenerationMode.SELF_SPECULATION, GenerationMode.AUTO)

    @property
    def first_block_length(self) -> int:
        """Positions of the block that a prefill begins; `auto` resizes it before the first round."""
        return 1 if self.mode is GenerationMode.AUTO else self.block_length


def make_policy(
    params: DecodeParams,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    stop_ids: tuple[int, ...],
    max_new_tokens: int,
    commits_by_prefix: bool = False,
) -> DecodePolicy:
    """Resolve request parameters and sampling settings into a policy.

    Args:
        commits_by_prefix: a diffusion block is committed by its causal rows (see `Controls`).

    Returns:
        A policy; `max_new_tokens` counts from the request's first output token.
    """
    is_diffusion = params.mode is GenerationMode.DIFFUSION
    return DecodePolicy(
        mode=params.mode,
        block_length=params.block_length,
        max_denoising_steps=max(params.max_denoising_steps, 1),
        confidence_threshold=params.confidence_threshold if is_diffusion else params.draft_threshold,
        accepts_whole_block=is_diffusion and not commits_by_prefix,
        seeded_blocks=params.seeded_blocks or not is_diffusion,
        temperature=temperature,
        denoise_temperature=temperature if is_diffusion else 0.0,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop_ids=stop_ids,
        max_new_tokens=max_new_tokens,
        latency_budget_ms=params.latency_budget_ms,
    )
