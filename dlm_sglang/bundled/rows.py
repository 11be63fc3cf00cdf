"""Greedy decoding of many prompts at once in plain torch, for evaluation and for training the drafter.

The same rules as the oracle, `dlm_sglang.reference.decoder`, which decodes one prompt at a time.
Here every row has its own length in one padded K/V cache, whose column is the absolute position.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlm_sglang.reference.model import NldModel


@dataclass
class RowResult:
    """What one prompt gave and what it cost; the prefill forward is not counted.

    Attributes:
        token_ids: the output with its EOS, cut at the limit.
        accept_lens: tokens that each block added; the first token comes from the prefill.
    """

    token_ids: list[int] = field(default_factory=list)
    num_denoise_forwards: int = 0
    num_commit_forwards: int = 0
    accept_lens: list[int] = field(default_factory=list)

    @property
    def num_forwards(self) -> int:
        """Denoise and commit forwards together."""
        return self.num_denoise_forwards + self.num_commit_forwards


class Rows:
    """Prompts in decoding, with their committed K/V.

    Attributes:
        cached_lens: `[R]` int64, committed tokens of each row.
        seeds: `[R]` int64, the next token of each row, emitted but not committed.
        results: of all rows, also of those that ended.
        active: `[R]` int64, the rows that still decode, by index into `results`.
    """

    def __init__(self, model: NldModel, prompts: list[list[int]], max_new_tokens: int) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self.results = [RowResult() for _ in prompts]
        self.active = torch.arange(len(prompts))
        self.cached_lens = torch.tensor([len(prompt) for prompt in prompts])
        width = int(self.cached_lens.max())
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)] = torch.tensor(prompt)
        causal = torch.ones(1, width, width, dtype=torch.bool).tril()
        hidden, self.cache = model.hidden_states(ids, torch.arange(width).expand(len(prompts), -1), causal)
        last = hidden[torch.arange(len(prompts)), self.cached_lens - 1]
        self.seeds = self.pick(self.model.diffusion_head(last).float())
        self.emit([[seed] for seed in self.seeds.tolist()])

    def pick(self, logits: Tensor) -> Tensor:
        """Argmax over `[..., V]`, never the mask id."""
        logits = logits.clone()
        logits[..., self.model.config.mask_token_id] = -torch.inf
        return logits.argmax(-1)

    def denoise(self, canvas: Tensor, which: Tensor, use_lora: bool = False) -> Tensor:
        """`[n, L] -> [n, L, V]`: a bidirectional forward of the active rows `which`; the cache stays as it is."""
        for i in self.active[which].tolist():
            self.results[i].num_denoise_forwards += 1
        return self._forward(canvas, which, torch.ones(canvas.shape[1], canvas.shape[1], dtype=torch.bool), use_lora)[0]

    def commit(self, canvas: Tensor) -> Tensor:
        """`[R, L] -> [R, L, V]`: a causal forward of all active rows, whose K/V is written; lengths stay."""
        for i in self.active.tolist():
            self.results[i].num_commit_forwards += 1
        length = canvas.shape[1]
        everyone = torch.arange(len(self.active))
        logits, new_kv = self._forward(canvas, everyone, torch.ones(length, length, dtype=torch.bool).tril(), False)
        missing = int(self.cached_lens.max()) + length - self.cache[0][0].shape[2]
        columns = self.cached_lens[:, None] + torch.arange(length)
        for layer, (k, v) in enumerate(new_kv):
            pair = []
            for old, new in zip(self.cache[layer], (k, v), strict=True):
                grown = torch.nn.functional.pad(old, (0, 0, 0, max(missing, 0)))
                index = columns[:, None, :, None].expand(-1, grown.shape[1], -1, grown.shape[3])
                pair.append(grown.scatter(2, index, new[:, :, -length:]))
            self.cache[layer] = (pair[0], pair[1])
        return logits

    def open_block(self) -> None:
        """Note where the outputs of the active rows end, for `close_block`."""
        self._opened = [(self.results[i], len(self.results[i].token_ids)) for i in self.active.tolist()]

    def close_block(self) -> None:
        """Record what each row that was active at `open_block` has gained since."""
        for result, length in self._opened:
            result.accept_lens.append(len(result.token_ids) - length)

    def emit(self, tokens: list[list[int]]) -> Tensor:
        """Append to the output of every active row, cut behind EOS and at the limit; ended rows leave.

        Returns:
            `[n]` int64, where the rows that stay stood among the active ones.
        """
        eos = self.model.config.eos_token_id
        kept: list[int] = []
        for row, (i, new) in enumerate(zip(self.active.tolist(), tokens, strict=True)):
            output = self.results[i].token_ids
            if eos in new:
                new = new[: new.index(eos) + 1]
            output.extend(new[: self.max_new_tokens - len(output)])
            if output[-1] != eos and len(output) < self.max_new_tokens:
                kept.append(row)
        index = torch.tensor(kept, dtype=torch.int64)
        if len(kept) < len(self.active):
            self.active, self.cached_lens, self.seeds = self.active[index], self.cached_lens[index], self.seeds[index]
            self.cache = [(k[index], v[index]) for k, v in self.cache]
        return index

    def _forward(
        self, canvas: Tensor, which: Tensor, block_mask: Tensor, use_lora: bool
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        rows, length = canvas.shape
        width = self.cache[0][0].shape[2]
        prefix = torch.arange(width) < self.cached_lens[which][:, None]  # [n, width]
        attn_mask = torch.cat([prefix[:, None].expand(-1, length, -1), block_mask.expand(rows, -1, -1)], dim=2)
        positions = self.cached_lens[which][:, None] + torch.arange(length)
        past = [(k[which], v[which]) for k, v in self.cache]
        logits: Tensor
        logits, new_kv = self.model(canvas, positions, attn_mask, past, use_lora)
        return logits, new_kv
