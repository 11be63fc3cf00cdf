"""What is read off a compiled variant, and what it must keep to."""

from __future__ import annotations

from dataclasses import dataclass

from dlm_kernels.offline import MAX_SHARED_BYTES, InnerLoop, OfflineKernel

# Above 14, instructions and not bytes would set the time of a pass over logits on an H200.
MAX_INSTRUCTIONS_PER_LOGIT = 9.0
MAX_INSTRUCTIONS_PER_SAMPLED_LOGIT = 13.0


@dataclass(frozen=True)
class Measured:
    """What the compiler made of one variant.

    Attributes:
        registers: of a thread.
        spills: loads and stores of local memory in the machine code.
        stack_bytes: local memory of a thread.
        shared_bytes: shared memory of a block.
        blocks_per_sm: blocks that fit one sm_90 multiprocessor.
        pipeline_buffers: buffers of each ring of K or V tiles, in program order.
        instructions_of_trip: of the first loop over such tiles, which is the one without a mask; 0 without tiles.
        instructions_per_logit: of the loop of greedy rows over logits, then of that of rows with a temperature.
    """

    registers: int
    spills: int
    stack_bytes: int
    shared_bytes: int
    blocks_per_sm: int
    pipeline_buffers: tuple[int, ...] = ()
    instructions_of_trip: int = 0
    instructions_per_logit: tuple[float, ...] = ()


@dataclass(frozen=True)
class Gates:
    """Limits of one variant; no variant may spill or use local memory.

    Attributes:
        max_shared_bytes: shared memory of a block.
        min_blocks_per_sm: blocks that must fit one multiprocessor.
        pipeline_buffers: what `Measured.pipeline_buffers` must be.
        max_instructions_per_logit: for each entry of `Measured.instructions_per_logit`; there must be as many.
    """

    max_shared_bytes: int = MAX_SHARED_BYTES
    min_blocks_per_sm: int = 1
    pipeline_buffers: tuple[int, ...] = ()
    max_instructions_per_logit: tuple[float, ...] = ()

    def failures(self, measured: Measured) -> list[str]:
        """What `measured` breaks, one sentence each; empty where all holds."""
        found = []
        if measured.spills or measured.stack_bytes:
            found.append(f"{measured.spills} spills, {measured.stack_bytes} bytes of local memory")
        if measured.shared_bytes > self.max_shared_bytes:
            found.append(f"{measured.shared_bytes} bytes of shared memory, at most {self.max_shared_bytes}")
        if measured.blocks_per_sm < self.min_blocks_per_sm:
            found.append(f"{measured.blocks_per_sm} blocks per multiprocessor, at least {self.min_blocks_per_sm}")
        if measured.pipeline_buffers != self.pipeline_buffers:
            found.append(f"pipeline buffers {measured.pipeline_buffers}, expected {self.pipeline_buffers}")
        loops, limits = measured.instructions_per_logit, self.max_instructions_per_logit
        if len(loops) != len(limits) or any(loop > limit for loop, limit in zip(loops, limits, strict=False)):
            found.append(f"instructions per logit {loops}, at most {limits}")
        return found


def measure(
    kernel: OfflineKernel, tile: tuple[int, int] | None = None, logits_of_a_lane: float | None = None
) -> Measured:
    """Read a compiled kernel.

    Args:
        kernel: the compiled variant.
        tile: keys and dims of a K or V tile, where the kernel prefetches such.
        logits_of_a_lane: logits that one thread handles in a turn, where the kernel's loop is a pass over logits.
    """
    rings = [ring.num_buffers for ring in kernel.pipeline_buffers if ring.shape == tile]
    loops = [] if logits_of_a_lane is None else passes_over_logits(kernel)
    return Measured(
        registers=kernel.n_regs,
        spills=kernel.n_spills,
        stack_bytes=kernel.stack_bytes,
        shared_bytes=kernel.shared_bytes,
        blocks_per_sm=kernel.blocks_per_sm(),
        pipeline_buffers=tuple(rings),
        instructions_of_trip=0 if tile is None else kernel.inner_loops[0].num_instructions,
        instructions_per_logit=tuple(round(loop.num_instructions / (logits_of_a_lane or 1.0), 3) for loop in loops),
    )


def passes_over_logits(kernel: OfflineKernel) -> list[InnerLoop]:
    """The scan's shortest loop, which greedy rows take, and the shortest one with more exponentials, if any.

    The other loops of a scan compare ids: they handle the tile with the excluded id and the ragged end.
    """
    loops = sorted(kernel.inner_loops, key=lambda loop: loop.num_instructions)
    tempered = [loop for loop in loops if loop.count("MUFU") > loops[0].count("MUFU")]
    return [*loops[:1], *tempered[:1]]
