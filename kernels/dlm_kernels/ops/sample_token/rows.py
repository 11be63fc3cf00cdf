"""The sampling parameters of logits rows, as device tensors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SamplingRows:
    """How each of N logits rows is sampled. All tensors live where the logits do; nothing is read by the host.

    Attributes:
        temperature: `[N]` float32; 0 chooses the most likely token and ignores the other fields.
        top_k: `[N]` int64; values < 1 or >= V keep everything.
        top_p: `[N]` float32 in (0, 1].
        min_p: `[N]` float32 in [0, 1].
        uniform: `[N]` float64 in [0, 1), one random number per row (see `uniform_from_seed`).
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    def select(self, rows: Tensor) -> SamplingRows:
        """The parameters of `rows` (`[M]` int64)."""
        return SamplingRows(
            self.temperature[rows], self.top_k[rows], self.top_p[rows], self.min_p[rows], self.uniform[rows]
        )
