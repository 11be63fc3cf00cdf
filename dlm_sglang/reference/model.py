"""The NLD transformer in plain torch: one set of weights, one head, every decoding mode.

The caller chooses the mode with the attention mask and with the row it reads: causal rows predict
the token after them, bidirectional block rows predict their own token. Slow and obvious on purpose;
it is the oracle's model and the one that `dlm_sglang.bundled` trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlm_sglang.errors import CheckpointError
from dlm_sglang.reference.checkpoint import read_adapter, read_weights
from dlm_sglang.reference.config import NldConfig, query_scale, yarn_inv_freq

__all__ = ["KvCache", "NldConfig", "NldModel", "load_model"]

KvCache = list[tuple[Tensor, Tensor]]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (rotate-half) in float32.

    Args:
        x: `[B, H, T, D]`.
        cos, sin: `[B, 1, T, D / 2]` float32.

    Returns:
        `[B, H, T, D]` float32.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 and returned in the input's dtype."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class OutputProjection(nn.Linear):
    """`o_proj`, with an optional low-rank drafter addition that is no part of the state dict."""

    lora_a: Tensor | None
    lora_b: Tensor | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.lora_scale = 0.0
        self.register_buffer("lora_a", None, persistent=False)
        self.register_buffer("lora_b", None, persistent=False)

    def set_lora(self, lora_a: Tensor, lora_b: Tensor, scale: float) -> None:
        """Attach `W + scale * B @ A`; `lora_a` is `[r, in]`, `lora_b` is `[out, r]`."""
        self.lora_a, self.lora_b, self.lora_scale = lora_a, lora_b, scale

    def project(self, x: Tensor, use_lora: bool) -> Tensor:
        """`[..., in] -> [..., out]`, with the adapter when asked for and loaded."""
        out = F.linear(x, self.weight)
        if use_lora and self.lora_a is not None and self.lora_b is not None:
            out = out + self.lora_scale * F.linear(F.linear(x, self.lora_a), self.lora_b)
        return out


class Attention(nn.Module):
    """Grouped-query attention with an explicit mask and an explicit cache."""

    def __init__(self, config: NldConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.num_groups = config.num_attention_heads // config.num_key_value_heads
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = OutputProjection(q_size, config.hidden_size)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor, Tensor],
        attn_mask: Tensor,
        past: tuple[Tensor, Tensor] | None,
        use_lora: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend from `x` `[B, T, hidden]` over `past` and itself; returns the output and the longer K/V."""
        batch, length, _ = x.shape
        cos, sin, scale = rope
        q = self.q_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        q = (rotate(q, cos, sin) * (scale * self.head_dim**-0.5)).to(v.dtype)
        k = rotate(k, cos, sin).to(v.dtype)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        # Query heads of one K/V head become extra rows, so that K and V need no copies.
        grouped = q.unflatten(1, (-1, self.num_groups)).flatten(2, 3)  # [B, Hkv, G * T, D]
        hidden_from_row = ~attn_mask[:, None].repeat(1, 1, self.num_groups, 1)  # [B or 1, 1, G * T, S + T]
        scores = (grouped @ k.transpose(2, 3)).masked_fill_(hidden_from_row, -torch.inf)
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(v.dtype, torch.float32)).to(v.dtype)
        out = (weights @ v).unflatten(2, (self.num_groups, length)).flatten(1, 2)  # [B, H, T, D]
        out = out.transpose(1, 2).reshape(batch, length, -1)
        return self.o_proj.project(out, use_lora), (k, v)


class Mlp(nn.Module):
    """SiLU-gated feed-forward."""

    def __init__(self, config: NldConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden] -> [..., hidden]`."""
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: NldConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor, Tensor],
        attn_mask: Tensor,
        past: tuple[Tensor, Tensor] | None,
        use_lora: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`[B, T, hidden] -> [B, T, hidden]` and this layer's K/V."""
        attended, kv = self.self_attn(self.input_layernorm(x), rope, attn_mask, past, use_lora)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kv


class Encoder(nn.Module):
    """Embedding, layers and final norm, under the checkpoint's names."""

    def __init__(self, config: NldConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class NldModel(nn.Module):
    """The whole network; its state dict has exactly the checkpoint's tensor names."""

    def __init__(self, config: NldConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.diffusion_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # No buffer: `model.to(bfloat16)` must leave the frequencies in float32.
        self.inv_freq = yarn_inv_freq(config)

    @property
    def layers(self) -> list[Layer]:
        """The transformer layers, typed."""
        return [cast(Layer, layer) for layer in self.encoder.layers]

    @property
    def has_lora(self) -> bool:
        """Whether a drafter adapter is attached."""
        return self.layers[0].self_attn.o_proj.lora_a is not None

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor,
        attn_mask: Tensor,
        past: KvCache | None = None,
        use_lora: bool = False,
    ) -> tuple[Tensor, KvCache]:
        """Everything but the head: `[B, T, hidden]` normed states and the K/V over S + T."""
        angles = positions.float()[:, None, :, None] * self.inv_freq.to(positions.device)  # [B, 1, T, D / 2]
        rope = (angles.cos(), angles.sin(), query_scale(self.config, positions)[:, None, :, None])
        x = self.encoder.embed_tokens(input_ids)
        new_kv: KvCache = []
        for i, layer in enumerate(self.layers):
            x, kv = layer(x, rope, attn_mask, past[i] if past is not None else None, use_lora)
            new_kv.append(kv)
        return self.encoder.norm(x), new_kv

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        attn_mask: Tensor,
        past: KvCache | None = None,
        use_lora: bool = False,
    ) -> tuple[Tensor, KvCache]:
        """One forward over T tokens that stand after S cached ones.

        Args:
            input_ids: `[B, T]` int64.
            positions: `[B, T]` int64, absolute.
            attn_mask: `[B or 1, T, S + T]` bool, True where a row may look; no row may be all False.
            past: per layer K and V `[B, Hkv, S, D]` after the rotary embedding, or None.
            use_lora: add the drafter adapter, if one is loaded, in every layer's `o_proj`.

        Returns:
            logits: `[B, T, V]` float32.
            new_kv: per layer K and V over S + T; `past` is left as it was.
        """
        hidden, new_kv = self.hidden_states(input_ids, positions, attn_mask, past, use_lora)
        return self.diffusion_head(hidden).float(), new_kv


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> NldModel:
    """Read a checkpoint folder: config.json, safetensors, and `linear_spec_lora/` where there is one.

    Args:
        folder: single-file or sharded safetensors with NLD tensor names or a known repack prefix.
        dtype: of the weights in memory; BF16 files are widened exactly.

    Returns:
        The model in eval mode, without gradients.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of the wrong shape; the message lists them.
    """
    config = NldConfig.from_folder(folder)
    with torch.device("meta"):
        model = NldModel(config)
    # Made again, because under the meta device the frequencies have no values.
    model.inv_freq = yarn_inv_freq(config)
    weights = read_weights(folder)
    _check_shapes({name: tensor.shape for name, tensor in model.state_dict().items()}, weights, str(folder))
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    adapter = read_adapter(folder)
    if adapter is not None:
        _attach_adapter(model, adapter.tensors, adapter.scale, dtype)
    return model.eval().requires_grad_(False)


def _attach_adapter(
    model: NldModel, tensors: dict[int, tuple[Tensor, Tensor]], scale: float, dtype: torch.dtype
) -> None:
    """Give every layer its `(A, B)`; all layers must have one and fit `o_proj`."""
    if sorted(tensors) != list(range(len(model.layers))):
        raise CheckpointError(f"the drafter adapter covers layers {sorted(tensors)}, the model has {len(model.layers)}")
    for i, layer in enumerate(model.layers):
        lora_a, lora_b = tensors[i]
        out_features, in_features = layer.self_attn.o_proj.weight.shape
        if lora_a.shape[1] != in_features or lora_b.shape != (out_features, lora_a.shape[0]):
            raise CheckpointError(
                f"adapter of layer {i}: A {list(lora_a.shape)} and B {list(lora_b.shape)} "
                f"do not fit o_proj [{out_features}, {in_features}]"
            )
        layer.self_attn.o_proj.set_lora(lora_a.to(dtype), lora_b.to(dtype), scale)


def _check_shapes(expected: dict[str, torch.Size], weights: dict[str, Tensor], source: str) -> None:
    """Raise one error that lists every missing, unexpected and misshapen tensor."""
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} must be {list(shape)}, got {list(weights[name].shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    if problems:
        raise CheckpointError("\n  - ".join([f"{source} does not fit its config.json:", *problems]))
