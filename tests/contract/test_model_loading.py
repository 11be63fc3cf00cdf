"""The model class loads every layout of an NLD checkpoint and names what is wrong with a broken one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlm_sglang.errors import CheckpointError
from dlm_sglang.seams.models.rotary import NldRotary, attention_factor, yarn_inverse_frequencies
from dlm_sglang.seams.models.weights import WeightPlan, expected_shapes, published_name

ROPE = {
    "rope_type": "yarn",
    "factor": 16,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1,
    "mscale_all_dim": 1,
    "llama_4_scaling_beta": 0.1,
}
CONFIG = SimpleNamespace(
    vocab_size=11,
    hidden_size=6,
    intermediate_size=10,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)


def _shape(layers: int, hidden: int, ffn: int) -> Any:
    return SimpleNamespace(
        vocab_size=131072,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )


@pytest.mark.parametrize(
    ("config", "num_tensors", "billions"),
    [
        (_shape(26, 3072, 9216), 237, 3.832),
        (_shape(34, 4096, 14336), 309, 8.490),
        (_shape(40, 5120, 16384), 363, 13.506),
    ],
    ids=["3b", "8b", "14b"],
)
def test_released_sizes_have_the_published_tensor_and_parameter_counts(
    config: Any, num_tensors: int, billions: float
) -> None:
    shapes = expected_shapes(config)
    assert len(shapes) == num_tensors
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e9 == pytest.approx(billions, abs=1e-3)


class _Shards:
    """Parameters that note which shards were written."""

    def __init__(self) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        for name, shape in expected_shapes(CONFIG).items():
            target = name
            for part, fused in (("q", "qkv"), ("k", "qkv"), ("v", "qkv"), ("gate", "gate_up"), ("up", "gate_up")):
                target = target.replace(f".{part}_proj.", f".{fused}_proj.")
            if target not in self.parameters:
                self.parameters[target] = nn.Parameter(torch.zeros(shape), requires_grad=False)
            if target != name:
                self.parameters[target].weight_loader = lambda parameter, tensor, shard: None  # type: ignore[attr-defined]


def _checkpoint() -> dict[str, Tensor]:
    return {name: torch.ones(shape) for name, shape in expected_shapes(CONFIG).items()}


@pytest.mark.parametrize("prefix", ["", "base_model.", "language_model.", "model.", "language_model.model."])
def test_every_repack_prefix_loads(prefix: str) -> None:
    plan = WeightPlan(CONFIG, _Shards().parameters)
    for name, tensor in _checkpoint().items():
        plan.load(prefix + name, tensor)
    plan.finish()


def test_head_under_its_other_name_and_kv_scales_of_repacks_load() -> None:
    tensors = _checkpoint()
    tensors["lm_head.weight"] = tensors.pop("diffusion_head.weight")
    tensors["encoder.layers.0.self_attn.attn.k_scale"] = torch.ones(1)
    plan = WeightPlan(CONFIG, _Shards().parameters)
    for name, tensor in tensors.items():
        plan.load(name, tensor)
    plan.finish()
    assert published_name("model.layers.0.mlp.up_proj.weight") == "encoder.layers.0.mlp.up_proj.weight"


def test_missing_unexpected_and_misshapen_tensors_are_all_named() -> None:
    tensors = _checkpoint()
    del tensors["encoder.norm.weight"]
    tensors["encoder.layers.1.mlp.down_proj.weight"] = torch.ones(3, 3)
    tensors["encoder.layers.9.mlp.down_proj.weight"] = torch.ones(6, 10)
    plan = WeightPlan(CONFIG, _Shards().parameters)
    for name, tensor in tensors.items():
        plan.load(name, tensor)
    with pytest.raises(CheckpointError) as error:
        plan.finish()
    message = str(error.value)
    assert "1 missing: encoder.norm.weight" in message
    assert "encoder.layers.1.mlp.down_proj.weight: expected [6, 10], got [3, 3]" in message
    assert "1 unexpected: encoder.layers.9.mlp.down_proj.weight" in message


@pytest.mark.parametrize(
    ("theta", "expected"),
    [
        (1e6, [1, 0.805842, 0.0316228, 0.00438295, 3.38235e-4, 1.11142e-5, 7.75586e-8]),
        (1e9, [1, 0.723394, 0.00430543, 5.93011e-5, 1.97642e-6, 1.48211e-7, 8.63983e-11]),
    ],
)
def test_yarn_frequencies_have_the_specs_check_values(theta: float, expected: list[float]) -> None:
    frequencies = yarn_inverse_frequencies(128, ROPE | {"rope_theta": theta})
    assert frequencies[[0, 1, 16, 24, 32, 40, 63]].tolist() == pytest.approx(expected, rel=2e-5)


def test_unrounded_correction_range_is_an_option() -> None:
    frequencies = yarn_inverse_frequencies(128, ROPE | {"rope_theta": 1e6, "truncate": False})
    assert frequencies[24].item() == pytest.approx(0.004436, rel=1e-3)


def test_cos_of_zero_is_one_and_the_query_scale_starts_at_the_original_length() -> None:
    assert attention_factor(ROPE) == 1.0
    cos, sin, scale = NldRotary(128, ROPE | {"rope_theta": 1e6})(torch.tensor([0, 16383, 16384, 32768, 262143]))
    assert cos[0].eq(1).all()
    assert sin[0].eq(0).all()
    assert scale is not None
    assert scale.flatten().tolist() == pytest.approx([1, 1, 1.0693, 1.1099, 1.2773], abs=1e-4)
