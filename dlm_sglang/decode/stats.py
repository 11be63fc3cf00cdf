"""What a request cost: forwards by kind, blocks, tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class DecodeStats:
    """Counts of decode forwards that a request took part in; prefill is not counted.

    Attributes:
        num_denoise_forwards: bidirectional forwards.
        num_commit_forwards: causal forwards, verifying ones included.
        num_committed_tokens: output tokens that commits emitted (the first token comes from the prefill).
    """

    num_denoise_forwards: int = 0
    num_commit_forwards: int = 0
    num_committed_tokens: int = 0

    @property
    def num_forwards(self) -> int:
        return self.num_denoise_forwards + self.num_commit_forwards

    @property
    def tokens_per_forward(self) -> float:
        """Committed tokens per forward, all forwards counted (performance protocol, TPF)."""
        return self.num_committed_tokens / self.num_forwards if self.num_forwards else 0.0

    @property
    def mean_accept_length(self) -> float:
        """Committed tokens per commit, bonus token included."""
        return self.num_committed_tokens / self.num_commit_forwards if self.num_commit_forwards else 0.0

    def count_round(self, *, is_denoise: bool, accept_len: int) -> None:
        """Add one round of one row."""
        if is_denoise:
            self.num_denoise_forwards += 1
        else:
            self.num_commit_forwards += 1
            self.num_committed_tokens += accept_len

    def report(self, generation_mode: str) -> dict[str, str | int | float]:
        """The form in which responses carry it."""
        return {
            "generation_mode": generation_mode,
            "num_blocks": self.num_commit_forwards,
            "num_forwards": self.num_forwards,
            "num_denoise_forwards": self.num_denoise_forwards,
            "num_commit_forwards": self.num_commit_forwards,
            "tokens_per_forward": round(self.tokens_per_forward, 4),
            "mean_accept_length": round(self.mean_accept_length, 4),
        }
