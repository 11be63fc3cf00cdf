"""KV pool, concurrency and state: SGLang's arithmetic, and bounds that hold for any input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_sglang.errors import CheckpointError, SettingsError
from dlm_sglang.measure.plan import memory
from dlm_sglang.measure.plan.gpu import GIB, GPUS, Gpu, find_gpu
from dlm_sglang.measure.plan.shape import PUBLISHED, load_shape, shape_of

PARAMETERS = {"nld-3b": 3.832e9, "nld-8b": 8.490e9, "nld-14b": 13.506e9}
KV_BYTES = {"nld-3b": 106_496, "nld-8b": 139_264, "nld-14b": 163_840}


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_shapes_give_the_published_sizes(model: str) -> None:
    shape = load_shape(model)
    assert shape.num_params == pytest.approx(PARAMETERS[model], rel=1e-3)
    assert shape.kv_bytes_per_token(2) == KV_BYTES[model]


def test_the_bundled_weights_are_as_large_as_their_files() -> None:
    shape = load_shape("bundled")
    folder = Path(__file__).parents[4] / "dlm_sglang" / "assets" / "bundled"
    on_disk = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    # The files are bfloat16 and carry a header.
    assert memory.weight_bytes(shape, "bfloat16") == pytest.approx(on_disk, rel=0.02)
    assert shape.lora_rank > 0


def test_kv_tokens_of_an_h200_are_the_worked_ones() -> None:
    gpu = Gpu("h200", int(141e9), None, None, context_bytes=0)
    for model, tokens in {"nld-3b": 1.12e6, "nld-8b": 0.79e6, "nld-14b": 0.61e6}.items():
        found = memory.capacity(load_shape(model), gpu, "bfloat16", 0.9)
        assert found.kv_tokens == pytest.approx(tokens, rel=0.01)


@given(
    model=st.sampled_from(sorted(PUBLISHED)),
    gpu=st.sampled_from(sorted(GPUS)),
    fraction=st.floats(0.05, 1.0),
    page_size=st.sampled_from([1, 16, 64]),
    tp_size=st.sampled_from([1, 2, 4, 8]),
    cap=st.none() | st.integers(1, 10**7),
)
def test_the_pool_fits_under_the_fraction_in_whole_pages(
    model: str, gpu: str, fraction: float, page_size: int, tp_size: int, cap: int | None
) -> None:
    found = memory.capacity(
        load_shape(model), GPUS[gpu], "bfloat16", fraction, tp_size=tp_size, page_size=page_size, max_total_tokens=cap
    )
    assert found.kv_tokens >= 0
    assert found.kv_tokens % page_size == 0
    assert found.kv_tokens <= (cap or found.kv_tokens)
    if found.kv_tokens:
        assert found.weight_bytes + found.kv_bytes <= fraction * found.free_bytes + found.kv_bytes_per_token


@given(tokens=st.integers(0, 10**7), context=st.integers(1, 10**6), block=st.integers(1, 64))
def test_as_many_requests_fit_as_have_room_with_their_blocks(tokens: int, context: int, block: int) -> None:
    found = memory.max_concurrency(tokens, context, block)
    assert found * (context + block) <= tokens < (found + 1) * (context + block)


@given(rows=st.integers(1, 256), block=st.sampled_from([8, 16, 32]))
def test_more_rows_leave_no_larger_share_for_weights_and_kv(rows: int, block: int) -> None:
    shape, gpu = load_shape("nld-8b"), GPUS["h100"]
    fraction = memory.suggested_fraction(shape, gpu, "bfloat16", rows, block)
    assert memory.suggested_fraction(shape, gpu, "bfloat16", rows + 1, block) <= fraction
    assert memory.SMALLEST_FRACTION <= fraction <= memory.LARGEST_FRACTION


def test_a_custom_gpu_needs_all_its_values() -> None:
    with pytest.raises(SettingsError, match="memory"):
        find_gpu("custom", bandwidth_gb_s=1000, tflop_s=100)
    with pytest.raises(SettingsError, match="one of them"):
        find_gpu("h100", tflop_s=100)
    with pytest.raises(SettingsError, match="known are"):
        find_gpu("h1000")
    gpu = find_gpu("custom", memory_gib=10, bandwidth_gb_s=1000, tflop_s=100)
    assert (gpu.memory_bytes, gpu.is_measured) == (10 * GIB, True)


def test_a_config_without_a_key_or_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        shape_of({"num_attention_heads": 4, "hidden_size": 8}, "broken")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_shape(str(tmp_path / "nothing"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dict(PUBLISHED["nld-8b"])))
    assert load_shape(str(tmp_path)).num_params == load_shape("nld-8b").num_params
