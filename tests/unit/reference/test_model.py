"""The plain-torch NLD model: the check values of the specification, masks, cache, loading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm_sglang.errors import CheckpointError
from dlm_sglang.reference.config import query_scale, yarn_correction_range, yarn_inv_freq
from dlm_sglang.reference.model import NldConfig, NldModel, load_model

CHECKED_INDICES = [0, 1, 16, 24, 32, 40, 63]
ROPE = {
    "rope_type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
    "rope_theta": 1e6,
}
TINY = {
    "vocab_size": 120,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "mask_token_id": 100,
    "block_size": 8,
    "bos_token_id": 1,
    "eos_token_id": 11,
    "rope_parameters": {**ROPE, "original_max_position_embeddings": 16},
}


def full_size_config(theta: float, truncate: bool = True) -> NldConfig:
    rope = {**ROPE, "rope_theta": theta, "truncate": truncate}
    return NldConfig.from_dict({**TINY, "head_dim": 128, "rope_parameters": rope})


def random_model(seed: int = 0) -> NldModel:
    torch.manual_seed(seed)
    return NldModel(NldConfig.from_dict(TINY)).double().eval().requires_grad_(False)


def causal_mask(length: int, prefix: int = 0) -> torch.Tensor:
    return torch.ones(1, length, prefix + length, dtype=torch.bool).tril(prefix)


def write_checkpoint(folder: Path, **config: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    weights = {name: tensor.contiguous() for name, tensor in NldModel(NldConfig.from_dict(TINY)).state_dict().items()}
    (folder / "config.json").write_text(json.dumps({**TINY, **config}), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")
    return weights


def write_adapter(folder: Path, prefix: str = "base_model.model.encoder.layers.", target: str = "o_proj") -> None:
    (folder / "linear_spec_lora").mkdir()
    config = {"r": 4, "lora_alpha": 16, "target_modules": [target]}
    (folder / "linear_spec_lora" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {}
    for i in range(2):
        tensors[f"{prefix}{i}.self_attn.o_proj.lora_A.weight"] = torch.randn(4, 64)
        tensors[f"{prefix}{i}.self_attn.o_proj.lora_B.weight"] = torch.randn(48, 4)
    save_file(tensors, folder / "linear_spec_lora" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("theta", "correction_range", "expected"),
    [
        (1e6, (20, 37), [1, 0.805842, 0.0316228, 0.00438295, 3.38235e-4, 1.11142e-5, 7.75586e-8]),
        (1e9, (13, 25), [1, 0.723394, 0.00430543, 5.93011e-5, 1.97642e-6, 1.48211e-7, 8.63983e-11]),
    ],
)
def test_yarn_frequencies_match_the_check_values(
    theta: float, correction_range: tuple[int, int], expected: list[float]
) -> None:
    config = full_size_config(theta)
    assert yarn_correction_range(config) == correction_range
    torch.testing.assert_close(yarn_inv_freq(config)[CHECKED_INDICES], torch.tensor(expected), rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    ("theta", "expected", "at_24"), [(1e6, (20.385, 36.440), 0.004436), (1e9, (13.590, 24.293), 3.72e-5)]
)
def test_correction_range_is_not_rounded_when_the_config_says_so(
    theta: float, expected: tuple[float, float], at_24: float
) -> None:
    config = full_size_config(theta, truncate=False)
    assert yarn_correction_range(config) == pytest.approx(expected, abs=1e-3)
    assert yarn_inv_freq(config)[24].item() == pytest.approx(at_24, rel=2e-3)


def test_query_scale_matches_the_check_values() -> None:
    positions = torch.tensor([0, 16383, 16384, 32768, 262143])
    scale = query_scale(full_size_config(1e6), positions)
    assert scale[:2].tolist() == [1.0, 1.0]
    torch.testing.assert_close(scale[2:], torch.tensor([1.0693, 1.1099, 1.2773]), rtol=0, atol=5e-5)


def test_first_position_is_not_rotated_nor_scaled() -> None:
    # With one token the softmax weight is 1, so the output must not depend on q and k at all; with cos(0) = 1 the
    # cached key is the raw projection. A stray attention factor of 1.277 would show here.
    model = random_model()
    ids = torch.tensor([[5]])
    _, kv = model(ids, torch.zeros_like(ids), causal_mask(1))
    layer = model.layers[0]
    raw = layer.self_attn.k_proj(layer.input_layernorm(model.encoder.embed_tokens(ids)))
    torch.testing.assert_close(kv[0][0].transpose(1, 2).reshape(1, 1, -1), raw, rtol=1e-6, atol=1e-6)


def test_state_dict_has_the_checkpoint_names() -> None:
    names = set(random_model().state_dict())
    assert len(names) == 9 * 2 + 3
    assert {"encoder.embed_tokens.weight", "encoder.norm.weight", "diffusion_head.weight"} <= names
    assert "encoder.layers.1.self_attn.o_proj.weight" in names


def test_cached_steps_equal_one_causal_forward() -> None:
    model = random_model()
    ids = torch.randint(0, 120, (2, 40))
    positions = torch.arange(40).expand(2, -1)
    whole, _ = model(ids, positions, causal_mask(40))
    past = None
    for t in range(40):
        row, past = model(ids[:, t : t + 1], positions[:, t : t + 1], torch.ones(1, 1, t + 1, dtype=torch.bool), past)
        torch.testing.assert_close(row[:, 0], whole[:, t], rtol=1e-5, atol=1e-5)


def test_later_block_content_reaches_earlier_rows_only_in_bidirectional_mode() -> None:
    model = random_model()
    ids = torch.randint(0, 120, (1, 8))
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 120
    positions = torch.arange(8)[None]
    for mask, differs in ((causal_mask(8), False), (torch.ones(1, 8, 8, dtype=torch.bool), True)):
        before, after = model(ids, positions, mask)[0], model(changed, positions, mask)[0]
        assert (not torch.equal(before[:, :-1], after[:, :-1])) == differs


def test_forward_leaves_the_cache_it_was_given_alone() -> None:
    model = random_model()
    _, past = model(torch.randint(0, 120, (1, 4)), torch.arange(4)[None], causal_mask(4))
    before = [(k.clone(), v.clone()) for k, v in past]
    model(torch.randint(0, 120, (1, 3)), torch.arange(4, 7)[None], torch.ones(1, 3, 7, dtype=torch.bool), past)
    assert all(
        torch.equal(a, b) for pair, copy in zip(past, before, strict=True) for a, b in zip(pair, copy, strict=True)
    )


def test_load_reads_what_was_saved(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path)
    model = load_model(tmp_path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not model.has_lora
    torch.testing.assert_close(model.inv_freq, yarn_inv_freq(model.config))


def test_load_reads_shards_and_repack_prefixes(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    for i, (name, tensor) in enumerate(weights.items()):
        shards[i % 2]["language_model.model." + name.removeprefix("encoder.")] = tensor
    shards[0]["language_model.model.layers.0.self_attn.k_scale"] = torch.ones(())
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file(shard, tmp_path / file)
        weight_map.update(dict.fromkeys(shard, file))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    model = load_model(tmp_path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_load_lists_missing_unexpected_and_misshapen_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.norm.weight"]
    weights["encoder.extra.weight"] = torch.ones(1)
    weights["diffusion_head.weight"] = torch.ones(3, 48)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert "missing encoder.norm.weight [48]" in message
    assert "unexpected encoder.extra.weight" in message
    assert "diffusion_head.weight must be [120, 48], got [3, 48]" in message


@pytest.mark.parametrize("prefix", ["base_model.model.encoder.layers.", "base_model.model.model.layers."])
def test_adapter_changes_only_forwards_that_ask_for_it(tmp_path: Path, prefix: str) -> None:
    weights = write_checkpoint(tmp_path)
    ids, positions = torch.randint(0, 120, (1, 6)), torch.arange(6)[None]
    without = load_model(tmp_path)(ids, positions, causal_mask(6))[0]
    write_adapter(tmp_path, prefix)
    model = load_model(tmp_path)
    assert model.has_lora
    assert set(model.state_dict()) == set(weights)
    assert torch.equal(model(ids, positions, causal_mask(6))[0], without)
    drafted = model(ids, positions, causal_mask(6), use_lora=True)[0]
    assert not torch.allclose(drafted, without)
    for layer in model.layers:
        proj = layer.self_attn.o_proj
        assert proj.lora_a is not None and proj.lora_b is not None
        proj.weight.add_(4.0 * proj.lora_b @ proj.lora_a)
    torch.testing.assert_close(model(ids, positions, causal_mask(6))[0], drafted, rtol=1e-4, atol=1e-4)


def test_adapter_of_another_projection_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    write_adapter(tmp_path, target="q_proj")
    with pytest.raises(CheckpointError, match="target_modules"):
        load_model(tmp_path)


def test_config_errors_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        NldConfig.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match="head_dim must be a number"):
        NldConfig.from_dict({**TINY, "head_dim": None})
    with pytest.raises(CheckpointError, match="rope_type"):
        NldConfig.from_dict({**TINY, "rope_parameters": {**ROPE, "rope_type": "default"}})


def test_config_dataclass_compares_by_value() -> None:
    config = NldConfig.from_dict(TINY)
    assert replace(config, block_size=8) == config
