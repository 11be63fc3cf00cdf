"""What a request cost: forwards by kind, blocks, tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class DecodeStats:
    """Counts of decode forwards that a request took part in; prefill is not counted.

    Attributes:
        num_denoise_forwards: bidirectional forwards.
        num_commit_forwards: causal forwards, verifying ones included.
        num_blocks: blocks that emitted; the last one of a diffusion request needs no commit forward.
        num_tokens: output tokens that blocks emitted (seeded: the very first token comes from the prefill).
    """

    num_denoise_forwards: int = 0
    num_commit_forwards: int = 0
    num_blocks: int = 0
    num_tokens: int = 0

    @property
    def num_forwards(self) -> int:
        return self.num_denoise_forwards + self.num_commit_forwards

    @property
    def tokens_per_forward(self) -> float:
        """Emitted tokens per forward, denoise and commit forwards counted (TPF), prefill not."""
        return self.num_tokens / self.num_forwards if self.num_forwards else 0.0

    @property
    def mean_accept_length(self) -> float:
        """Emitted tokens per block, bonus token included."""
        return self.num_tokens / self.num_blocks if self.num_blocks else 0.0

    def count_round(self, *, is_denoise: bool, accept_len: int) -> None:
        """Add one round of one row."""
        if is_denoise:
            self.num_denoise_forwards += 1
        else:
            self.num_commit_forwards += 1
        self.num_blocks += not is_denoise or accept_len > 0
        self.num_tokens += accept_len

    def report(self, generation_mode: str) -> dict[str, str | int | float]:
        """The form in which responses carry it."""
        return {
            "generation_mode": generation_mode,
            "num_blocks": self.num_blocks,
            "num_forwards": self.num_forwards,
            "num_denoise_forwards": self.num_denoise_forwards,
            "num_commit_forwards": self.num_commit_forwards,
            "tokens_per_forward": round(self.tokens_per_forward, 4),
            "mean_accept_length": round(self.mean_accept_length, 4),
        }
