"""One sequence on a model: its committed causal KV, and the kinds of forward that act on it (spec §2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

KvCache = list[tuple[Tensor, Tensor]]  # per layer: keys and values, [B, H_kv, S, D]
Canvas = list[int | None]  # the ids of a block now; None where it is still masked


class HasMaskTokenId(Protocol):
    """The part of a model's config that decoding needs."""

    @property
    def mask_token_id(self) -> int: ...


class TriModeModel(Protocol):
    """What the oracle asks of a model; `dlm_sglang.reference.model.NldModel` is one."""

    @property
    def config(self) -> HasMaskTokenId: ...

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        attn_mask: Tensor,
        past: KvCache | None,
        use_lora: bool = False,
    ) -> tuple[Tensor, KvCache]:
        """Logits `[B, T, V]` of the new tokens and the KV of all S + T; `attn_mask` is bool `[1, T, S + T]`."""
        ...


class CachedSequence:
    """The committed prefix of one sequence. Prefill and commit extend it, a denoise forward leaves it as it was.

    Attributes:
        cached_len: committed tokens, which is also the absolute position of the next one.
    """

    def __init__(self, model: TriModeModel) -> None:
        self.model = model
        self.mask_token_id = model.config.mask_token_id
        self.cache: KvCache | None = None
        self.cached_len = 0
        self.num_denoise_forwards = 0
        self.num_commit_forwards = 0

    def prefill(self, prompt_ids: Sequence[int]) -> Tensor:
        """Cache the prompt, causally; returns logits `[T, V]`, row i for position i + 1."""
        return self._forward(prompt_ids, causal=True, write=True, use_lora=False)

    def denoise(self, canvas: Sequence[int | None], *, use_lora: bool) -> Tensor:
        """One bidirectional forward over the block; returns logits `[L, V]`, row i for position i of the block."""
        self.num_denoise_forwards += 1
        token_ids = [self.mask_token_id if token_id is None else token_id for token_id in canvas]
        return self._forward(token_ids, causal=False, write=False, use_lora=use_lora)

    def commit(self, canvas: Sequence[int | None]) -> Tensor:
        """One causal forward over the block, which stays; returns logits `[L, V]`, row i for position i + 1."""
        self.num_commit_forwards += 1
        token_ids = [token_id for token_id in canvas if token_id is not None]
        assert len(token_ids) == len(canvas), "a block is committed only when no mask is left in it"
        return self._forward(token_ids, causal=True, write=True, use_lora=False)

    def crop(self, length: int) -> None:
        """Forget everything committed from position `length` on."""
        assert self.cache is not None
        self.cache = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self.cache]
        self.cached_len = length

    def _forward(self, token_ids: Sequence[int], *, causal: bool, write: bool, use_lora: bool) -> Tensor:
        all_len = self.cached_len + len(token_ids)
        positions = torch.arange(self.cached_len, all_len)
        last_visible = positions if causal else torch.full_like(positions, all_len - 1)
        attn_mask = torch.arange(all_len)[None, :] <= last_visible[:, None]  # [T, S + T]
        input_ids = torch.tensor([list(token_ids)], dtype=torch.int64)
        logits, cache = self.model.forward(input_ids, positions[None], attn_mask[None], self.cache, use_lora)
        if write:
            self.cache, self.cached_len = cache, all_len
        return logits[0]
