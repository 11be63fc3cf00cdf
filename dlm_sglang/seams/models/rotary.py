"""Rotary embedding of Nemotron-Labs-Diffusion: YaRN frequencies, factor 1, position scale on queries."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def yarn_inverse_frequencies(head_dim: int, rope_parameters: Mapping[str, object]) -> Tensor:
    """Inverse frequencies `[head_dim / 2]` float32.

    `truncate: false` in the parameters keeps the correction range unrounded (Megatron-Bridge's choice);
    the default rounds it, as the published model code does.

    Source: NLD spec section 1.4 (YaRN, arXiv 2309.00071).
    """
    theta = _number(rope_parameters, "rope_theta")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    base = theta**-exponents
    if rope_parameters.get("rope_type", "default") != "yarn":
        return base.float()
    factor = _number(rope_parameters, "factor")
    original_length = _number(rope_parameters, "original_max_position_embeddings")

    def correction(rotations: float) -> float:
        return head_dim * math.log(original_length / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low, high = correction(_number(rope_parameters, "beta_fast")), correction(_number(rope_parameters, "beta_slow"))
    if rope_parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)
    ramp = ramp.clamp(0, 1)
    return (base * (1 - ramp) + base / factor * ramp).float()


def attention_factor(rope_parameters: Mapping[str, object]) -> float:
    """Factor on cos and sin: mscale over mscale_all_dim, 1.0 for every released size (spec section 1.4)."""
    if rope_parameters.get("rope_type", "default") != "yarn":
        return 1.0
    factor = _number(rope_parameters, "factor")

    def scale(key: str) -> float:
        return 0.1 * _number(rope_parameters, key) * math.log(factor) + 1.0

    return scale("mscale") / scale("mscale_all_dim")


class NldRotary(nn.Module):
    """Cos, sin and query scale of the positions of one forward, shared by all layers."""

    inverse_frequencies: Tensor

    def __init__(self, head_dim: int, rope_parameters: Mapping[str, object]) -> None:
        super().__init__()
        self.factor = attention_factor(rope_parameters)
        self.beta = float(rope_parameters.get("llama_4_scaling_beta") or 0.0)  # type: ignore[arg-type]
        self.original_length = _number(rope_parameters, "original_max_position_embeddings") if self.beta else 1.0
        self._rope_parameters = dict(rope_parameters)
        self._head_dim = head_dim
        frequencies = yarn_inverse_frequencies(head_dim, rope_parameters)
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Angles of `positions [T]`.

        Returns:
            cos, sin: `[T, 1, head_dim]` float32.
            query_scale: `[T, 1, 1]` float32, multiplied into queries after rotation; None without scaling.
        """
        angles = positions.float()[:, None] * self.inverse_frequencies[None, :]
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        cos, sin = angles.cos(), angles.sin()
        if self.factor != 1.0:
            cos, sin = cos * self.factor, sin * self.factor
        if not self.beta:
            return cos, sin, None
        scale = 1 + self.beta * torch.log1p(torch.floor(positions.float() / self.original_length))
        return cos, sin, scale[:, None, None]


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[T, H, D]` in float32 (neox halves); returns the input's dtype."""
    half = states.shape[-1] // 2
    wide = states.float()
    turned = torch.cat((-wide[..., half:], wide[..., :half]), dim=-1)
    return (wide * cos + turned * sin).to(states.dtype)


def _number(parameters: Mapping[str, object], key: str) -> float:
    value = parameters.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"rope_parameters.{key} must be a number, got {value!r}")
    return float(value)
