"""What a sweep sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_sglang.errors import SettingsError
from dlm_sglang.measure.grid import make_grid
from dlm_sglang.param_table import GenerationMode
from dlm_sglang.params import DecodeParams, ServerLimits


def test_steps_and_thresholds_are_swept_one_after_the_other() -> None:
    grid = make_grid(["ar", "diffusion", "self_speculation"], [8, 16], steps=[4, 12], thresholds=["0.9", "null"])
    assert [setting.label for setting in grid] == [
        "autoregressive",
        "diffusion block 8 threshold 0.9",
        "diffusion block 8 no threshold",
        "diffusion block 8 4 steps",
        "diffusion block 16 threshold 0.9",
        "diffusion block 16 no threshold",
        "diffusion block 16 4 steps",
        "diffusion block 16 12 steps",
        "self_speculation block 8",
        "self_speculation block 16",
    ]
    assert grid[3].fields() == {
        "generation_mode": "diffusion", "block_length": 8, "max_denoising_steps": 4, "confidence_threshold": None,
    }  # fmt: skip


def test_crossed_they_are_sent_together() -> None:
    (setting,) = make_grid(["diffusion"], steps=[4], thresholds=["0.5"], cross=True)
    assert setting.fields() == {"generation_mode": "diffusion", "max_denoising_steps": 4, "confidence_threshold": 0.5}
    assert [setting.fields() for setting in make_grid(["none", "auto"])] == [{}, {"generation_mode": "auto"}]


def test_a_threshold_that_is_no_number_is_refused() -> None:
    with pytest.raises(SettingsError, match="'high'"):
        make_grid(["diffusion"], thresholds=["high"])


@given(
    modes=st.lists(st.sampled_from(list(GenerationMode)), min_size=1, max_size=3),
    blocks=st.lists(st.integers(2, 32), max_size=3),
    steps=st.lists(st.integers(1, 32), max_size=2),
    thresholds=st.lists(st.sampled_from(["0.5", "0.9", "null"]), max_size=2),
    drafts=st.lists(st.sampled_from([0.0, 0.5]), max_size=2),
    cross=st.booleans(),
)
def test_the_server_takes_every_setting_of_a_grid_and_labels_are_unique(
    modes: list[str], blocks: list[int], steps: list[int], thresholds: list[str], drafts: list[float], cross: bool
) -> None:
    grid = make_grid(modes, blocks, steps, thresholds, drafts, cross=cross)
    assert len({setting.label for setting in grid}) == len(grid)
    for setting in grid:
        DecodeParams.from_fields(setting.fields(), ServerLimits())
