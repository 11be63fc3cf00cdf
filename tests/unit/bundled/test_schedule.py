"""The training schedule: stages, learning rate, resumption."""

from __future__ import annotations

from dlm_sglang.bundled.batches import BATCHES_PER_CHUNK
from dlm_sglang.bundled.gradients import BATCHES_PER_STEP
from dlm_sglang.bundled.schedule import NUM_STEPS, STAGES, learning_rate_factor, stage_of
from dlm_sglang.bundled.tasks import TASK_NAMES


def test_stages_begin_with_a_chunk_of_batches() -> None:
    # Otherwise a resumed run would draw a chunk from another mixture than an unbroken one.
    assert all(stage.first_step % (BATCHES_PER_CHUNK // BATCHES_PER_STEP) == 0 for stage in STAGES)


def test_last_stage_has_every_task() -> None:
    assert stage_of(0) is STAGES[0]
    assert set(stage_of(NUM_STEPS - 1).task_names) == set(TASK_NAMES)


def test_learning_rate_rises_holds_and_falls_towards_zero() -> None:
    factors = [learning_rate_factor(step) for step in range(NUM_STEPS)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[0] == 0.01
    assert max(factors) == factors[1000] == 1.0
    assert factors[2999] == 0.001
    assert factors[-1] < 0.002
    assert max(factors[3000:]) < 0.51
