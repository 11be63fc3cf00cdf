"""One token at a time under controls, in plain Python: what every exact mode must give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

from dlm_sglang.decode.controls import Controls
from dlm_sglang.reference.sampling import CAUSAL_STEP, pick_token
from dlm_sglang.reference.sequence import TriModeModel


@dataclass
class Plain:
    """Tokens, the log-probabilities of the model alone, and how far each greedy choice was from the next best."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


def decode_plainly(
    model: TriModeModel,
    prompt: list[int],
    controls: Controls,
    stop_ids: Collection[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    may_follow: Callable[[list[int], int], bool] | None = None,
) -> Plain:
    """Decode autoregressively, every forward from scratch."""
    plain = Plain()
    output = plain.token_ids
    while len(output) < max_new_tokens and (not output or output[-1] not in stop_ids):
        tokens = prompt + output
        total = len(tokens)
        mask = torch.ones(total, total, dtype=torch.bool).tril()[None]
        with torch.no_grad():
            logits, _ = model.forward(torch.tensor([tokens]), torch.arange(total)[None], mask, None)
        raw = logits[0, -1].double()
        adjusted = torch.tensor(adjusted_logits(raw.tolist(), output, controls), dtype=torch.double)
        adjusted[model.config.mask_token_id] = float("-inf")
        if may_follow is not None:
            banned = [not may_follow(output, token_id) for token_id in range(len(adjusted))]
            adjusted[torch.tensor(banned)] = float("-inf")
        if len(output) == controls.max_thinking_tokens and controls.end_think_id not in output:
            chosen = controls.end_think_id
        else:
            chosen = pick_token(
                adjusted, temperature=temperature, top_p=top_p, seed=seed, position=total, step=CAUSAL_STEP
            )
        output.append(chosen)
        plain.logprobs.append(float(raw[chosen] - raw.logsumexp(0)))
        best, second = adjusted.topk(2).values.tolist()
        plain.gaps.append(best - second)
    return plain


def adjusted_logits(logits: list[float], output: list[int], controls: Controls) -> list[float]:
    """The next token's logits under penalties, biases and bans."""
    counts = Counter(output)
    bias = dict(controls.logit_bias)
    changed = []
    for token_id, logit in enumerate(logits):
        if counts[token_id]:
            logit -= controls.frequency_penalty * counts[token_id] + controls.presence_penalty
            logit = logit / controls.repetition_penalty if logit > 0 else logit * controls.repetition_penalty
        logit += bias.get(token_id, 0.0)
        if token_id in controls.banned_ids and len(output) < controls.min_new_tokens:
            logit = float("-inf")
        changed.append(logit)
    return changed
