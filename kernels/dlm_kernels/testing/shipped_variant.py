"""A shipped variant: how it is compiled, how it is read and what it must keep to."""

from __future__ import annotations

from dataclasses import dataclass, field

from dlm_kernels.offline import OfflineKernel
from dlm_kernels.testing.compile_spec import CompileSpec
from dlm_kernels.testing.gates import Gates, Measured, measure


@dataclass(frozen=True)
class ShippedVariant:
    """One variant that a launch of `dlm_kernels.ops` can ask for.

    Attributes:
        name: unique among the variants of its module.
        spec: what it is compiled from.
        gates: what it must keep to.
        tile, logits_of_a_lane: see `measure`.
    """

    name: str
    spec: CompileSpec
    gates: Gates = field(default_factory=Gates)
    tile: tuple[int, int] | None = None
    logits_of_a_lane: float | None = None

    def measure(self, kernel: OfflineKernel) -> Measured:
        """Read what `spec` compiled to."""
        return measure(kernel, self.tile, self.logits_of_a_lane)
