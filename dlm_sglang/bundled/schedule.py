"""What the model trains on at which step, and how fast; step counts alone decide.

Two rounds: the second brings the `choose` task.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlm_sglang.bundled.tasks import TASK_NAMES

_FIRST_NAMES = tuple(name for name in TASK_NAMES if name != "choose")
_FIRST_ROUND_STEPS = 3000
NUM_STEPS = 3480


@dataclass(frozen=True)
class Stage:
    """Steps `first_step`.. with one mixture; a task that stands twice comes twice as often."""

    first_step: int
    task_names: tuple[str, ...]


STAGES = (
    Stage(0, _FIRST_NAMES),
    # By then copying and templates are learned; what needs counting gets most of the examples.
    Stage(
        1800,
        (*_FIRST_NAMES, "running-total", "running-total", "add", "running-total", "subtract", "running-total", "sort"),
    ),
    Stage(_FIRST_ROUND_STEPS, (*TASK_NAMES, "choose", "choose", "running-total", "choose")),
)


def stage_of(step: int) -> Stage:
    """The stage that a step belongs to."""
    return [stage for stage in STAGES if stage.first_step <= step][-1]


def learning_rate_factor(step: int) -> float:
    """Per round: warm-up, plateau, straight line down to zero; the second plateau is lower."""
    if step < _FIRST_ROUND_STEPS:
        return min((step + 1) / 100, 1.0, (_FIRST_ROUND_STEPS - step) / 1000)
    return 0.5 * min((step - _FIRST_ROUND_STEPS + 1) / 20, 1.0, (NUM_STEPS - step) / 360)
