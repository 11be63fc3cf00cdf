"""The oracle on the served checkpoint: each answer computed once, and a proof for numerical ties."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dlm_sglang.reference.decoder import OracleResult, decode
from dlm_sglang.reference.model import NldConfig, NldModel, load_model
from dlm_sglang.reference.sequence import KvCache, TriModeModel
from tests.e2e.asks import Answer, Ask

# Float32 logits of another GEMM shape differ by about 1e-5; choices that a change of this size turns are ties.
TIE_LOGIT_GAP = 1e-4
TIE_TRIES = 40
# Ties are rare. More of them than this share of a test's requests means that something else is wrong.
MAX_TIE_SHARE = 0.02


class NoisyModel:
    """A model whose logits are off by at most half of `TIE_LOGIT_GAP`, so that gaps change by at most all of it."""

    def __init__(self, model: NldModel, seed: int) -> None:
        self._model = model
        self._random = torch.Generator().manual_seed(seed)

    @property
    def config(self) -> NldConfig:
        return self._model.config

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        attn_mask: Tensor,
        past: KvCache | None,
        use_lora: bool = False,
    ) -> tuple[Tensor, KvCache]:
        logits, cache = self._model.forward(input_ids, positions, attn_mask, past, use_lora)
        noise = torch.rand(logits.shape, generator=self._random) - 0.5
        return logits + noise * TIE_LOGIT_GAP, cache


class Oracle:
    """What every request must give.

    Attributes:
        ties: requests whose tokens differed by proven ties only, over the whole session.
        num_compared: requests compared over the whole session.
    """

    def __init__(self, checkpoint: Path, *, eos_ids: Iterable[int], context_length: int) -> None:
        self.model = load_model(checkpoint)
        self.eos_ids = frozenset(eos_ids)
        self.context_length = context_length
        self.ties: list[Ask] = []
        self.num_compared = 0
        self._results: dict[Ask, OracleResult] = {}

    @property
    def mask_token_id(self) -> int:
        return self.model.config.mask_token_id

    def result(self, ask: Ask) -> OracleResult:
        """The expected answer; computed once per request and session."""
        if ask not in self._results:
            self._results[ask] = self._decode(self.model, ask)
        return self._results[ask]

    def mismatches(self, asks: Sequence[Ask], answers: Sequence[Answer]) -> list[str]:
        """The answers that are not the oracle's, one line each; proven ties are let pass, as long as they are few."""
        wrong: list[str] = []
        ties: list[Ask] = []
        for ask, answer in zip(asks, answers, strict=True):
            expected = self.result(ask).token_ids
            if answer.output_ids == expected:
                continue
            if self.is_tie(ask, answer.output_ids):
                ties.append(ask)
            else:
                wrong.append(f"{ask}\n    server {answer.output_ids}\n    oracle {expected}")
        self.num_compared += len(asks)
        self.ties += ties
        if len(ties) > max(1, MAX_TIE_SHARE * len(asks)):
            wrong.append(f"{len(ties)} of {len(asks)} requests differ by ties, which is too many: {ties}")
        return wrong

    def is_tie(self, ask: Ask, output_ids: list[int]) -> bool:
        """Whether logits that are off by no more than rounding give exactly these tokens."""
        return any(self._decode(NoisyModel(self.model, seed), ask).token_ids == output_ids for seed in range(TIE_TRIES))

    def _decode(self, model: TriModeModel, ask: Ask) -> OracleResult:
        stop_ids = frozenset() if ask.ignore_eos else self.eos_ids | set(ask.stop_token_ids)
        return decode(model, ask.prompt_ids, ask.oracle_params(), stop_ids, self.context_length)
