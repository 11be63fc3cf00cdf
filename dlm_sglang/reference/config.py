"""What an NLD config.json says, and the rotary constants that follow from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dlm_sglang.errors import CheckpointError


@dataclass(frozen=True)
class NldConfig:
    """The shape and the constants of one checkpoint, as its config.json states them.

    `rope_truncate` is transformers' rounding of the YaRN correction range; a config.json that says
    `rope_parameters.truncate: false` turns it off.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_factor: float
    original_max_position_embeddings: int
    rope_beta_fast: float
    rope_beta_slow: float
    llama_4_scaling_beta: float
    mask_token_id: int
    block_size: int
    bos_token_id: int
    eos_token_id: int
    rope_truncate: bool = True

    @classmethod
    def from_folder(cls, path: str | Path) -> NldConfig:
        """Read `config.json` of a checkpoint folder; `CheckpointError` names what it lacks."""
        file = Path(path) / "config.json"
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        return cls.from_dict(json.loads(file.read_text(encoding="utf-8")), source=str(file))

    @classmethod
    def from_dict(cls, config: Mapping[str, object], source: str = "config.json") -> NldConfig:
        """Take the values from a parsed config.json; the rope values live in `rope_parameters`."""
        rope = cast(Mapping[str, object], config.get("rope_parameters") or {})
        if rope.get("rope_type") != "yarn":
            raise CheckpointError(f"{source}: rope_parameters.rope_type must be 'yarn', got {rope.get('rope_type')!r}")
        if rope.get("mscale") != rope.get("mscale_all_dim"):
            raise CheckpointError(f"{source}: mscale must equal mscale_all_dim (cos/sin factor 1.0), got {rope!r}")

        def number(name: str, table: Mapping[str, object] = config, key: str | None = None) -> float:
            value = table.get(key or name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise CheckpointError(f"{source}: {key or name} must be a number, got {value!r}")
            return value

        return cls(
            vocab_size=int(number("vocab_size")),
            hidden_size=int(number("hidden_size")),
            num_hidden_layers=int(number("num_hidden_layers")),
            num_attention_heads=int(number("num_attention_heads")),
            num_key_value_heads=int(number("num_key_value_heads")),
            head_dim=int(number("head_dim")),
            intermediate_size=int(number("intermediate_size")),
            max_position_embeddings=int(number("max_position_embeddings")),
            rms_norm_eps=number("rms_norm_eps"),
            rope_theta=number("rope_theta", rope),
            rope_factor=number("factor", rope),
            original_max_position_embeddings=int(number("original_max_position_embeddings", rope)),
            rope_beta_fast=number("beta_fast", rope),
            rope_beta_slow=number("beta_slow", rope),
            llama_4_scaling_beta=number("llama_4_scaling_beta", rope),
            mask_token_id=int(number("mask_token_id")),
            block_size=int(number("block_size")),
            bos_token_id=int(number("bos_token_id")),
            eos_token_id=int(number("eos_token_id")),
            rope_truncate=rope.get("truncate") is not False,
        )


def yarn_correction_range(config: NldConfig) -> tuple[float, float]:
    """First and last frequency index of the YaRN ramp, rounded outwards unless the config says not to."""

    def index_of(num_rotations: float) -> float:
        wavelengths = config.original_max_position_embeddings / (num_rotations * 2 * math.pi)
        return config.head_dim * math.log(wavelengths) / (2 * math.log(config.rope_theta))

    low, high = index_of(config.rope_beta_fast), index_of(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, config.head_dim - 1)


def yarn_inv_freq(config: NldConfig) -> Tensor:
    """`[D / 2]` float32 rotary frequencies, in the order of operations of transformers."""
    low, high = yarn_correction_range(config)
    if low == high:
        high += 0.001  # as transformers does, against a division by zero
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    pos_freqs = config.rope_theta**exponents
    ramp = ((torch.arange(config.head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return (1 / (config.rope_factor * pos_freqs)) * ramp + (1 / pos_freqs) * (1 - ramp)


def query_scale(config: NldConfig, positions: Tensor) -> Tensor:
    """Llama-4 factor on the queries: float32 of the shape of `positions`, 1.0 below the original context."""
    periods = torch.floor(positions.float() / config.original_max_position_embeddings)
    return 1 + config.llama_4_scaling_beta * torch.log(1 + periods)
