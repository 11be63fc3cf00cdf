"""Nemotron-Labs-Diffusion for SGLang: one network for all modes, mode is what the attention may see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import QKVParallelLinear, RowParallelLinear
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.models.llama import LlamaMLP
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import add_prefix
from torch import Tensor, nn

from dlm_sglang.errors import CheckpointError
from dlm_sglang.seams.models.drafter import DrafterAdapter, load_drafter
from dlm_sglang.seams.models.rotary import NldRotary, rotate
from dlm_sglang.seams.models.weights import WeightPlan

Angles = tuple[Tensor, Tensor, Tensor | None]


class NldAttention(nn.Module):
    """Grouped-query attention: rotary, query scale after it, drafter adapter beside the output projection."""

    def __init__(self, config: Any, layer_id: int, quant_config: Any, prefix: str) -> None:
        super().__init__()
        tp_size = get_parallel().tp_size
        self.head_dim = config.head_dim
        self.num_heads = config.num_attention_heads // tp_size
        self.num_kv_heads = max(1, config.num_key_value_heads // tp_size)
        self.is_sharded = tp_size > 1
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            self.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("qkv_proj", prefix),
        )
        # Reduced below, after the adapter's partial sum joined.
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * self.head_dim,
            config.hidden_size,
            bias=False,
            reduce_results=False,
            quant_config=quant_config,
            prefix=add_prefix("o_proj", prefix),
        )
        self.attn = RadixAttention(
            self.num_heads,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=self.num_kv_heads,
            layer_id=layer_id,
            quant_config=quant_config,
            prefix=add_prefix("attn", prefix),
        )
        self.drafter: DrafterAdapter | None = None

    def forward(self, hidden_states: Tensor, angles: Angles, forward_batch: Any, draft_rows: Tensor | None) -> Tensor:
        """`[T, hidden]` to `[T, hidden]`; `draft_rows [T]` says where the adapter applies."""
        cos, sin, query_scale = angles
        qkv, _ = self.qkv_proj(hidden_states)
        q_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        q, k, v = qkv.split((q_width, kv_width, kv_width), dim=-1)
        q = rotate(q.view(-1, self.num_heads, self.head_dim), cos, sin)
        k = rotate(k.view(-1, self.num_kv_heads, self.head_dim), cos, sin)
        if query_scale is not None:
            # In float32 until the product: bf16 would round the scale itself (spec section 5.2).
            q = (q.float() * query_scale).to(q.dtype)
        context = self.attn(q.reshape(-1, q_width), k.reshape(-1, kv_width), v.contiguous(), forward_batch)
        output, _ = self.o_proj(context)
        if self.drafter is not None and draft_rows is not None:
            output = output + self.drafter(context, draft_rows)
        return tensor_model_parallel_all_reduce(output) if self.is_sharded else output


class NldDecoderLayer(nn.Module):
    """Pre-norm transformer layer; the residual travels beside the hidden states, as SGLang's norms want it."""

    def __init__(self, config: Any, layer_id: int, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.self_attn = NldAttention(config, layer_id, quant_config, add_prefix("self_attn", prefix))
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            quant_config=quant_config,
            prefix=add_prefix("mlp", prefix),
        )
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None,
        angles: Angles,
        forward_batch: Any,
        draft_rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`[T, hidden]` twice to `[T, hidden]` twice."""
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(hidden_states, angles, forward_batch, draft_rows)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class NldEncoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            quant_config=quant_config,
            prefix=add_prefix("embed_tokens", prefix),
        )
        self.layers = nn.ModuleList(
            NldDecoderLayer(config, index, quant_config, add_prefix(f"layers.{index}", prefix))
            for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = NldRotary(config.head_dim, config.rope_parameters)

    def forward(self, input_ids: Tensor | None, positions: Tensor, forward_batch: Any, embeds: Tensor | None) -> Tensor:
        """Token ids `[T]` (or embeddings `[T, hidden]`) at `positions [T]` to hidden states `[T, hidden]`."""
        draft_rows = getattr(forward_batch.spec_info, "draft_rows", None)
        hidden_states = self.embed_tokens(input_ids) if embeds is None else embeds
        angles = self.rotary(positions)
        residual: Tensor | None = None
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual, angles, forward_batch, draft_rows)
        hidden_states, _ = self.norm(hidden_states, residual)
        return hidden_states


class NemotronLabsDiffusionModel(nn.Module):
    """The checkpoint's architecture name; tensor names are the checkpoint's (spec section 1.5)."""

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__()
        _check_config(config)
        self.config = config
        self.quant_config = quant_config
        self.encoder = NldEncoder(config, quant_config, add_prefix("encoder", prefix))
        self.diffusion_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=quant_config,
            prefix=add_prefix("diffusion_head", prefix),
        )
        self.logits_processor = LogitsProcessor(config)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        forward_batch: Any,
        input_embeds: Tensor | None = None,
        get_embedding: bool = False,
    ) -> Any:
        """Run one forward; returns SGLang's logits output."""
        hidden_states = self.encoder(input_ids, positions, forward_batch, input_embeds)
        return self.logits_processor(input_ids, hidden_states, self.diffusion_head, forward_batch)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load a checkpoint; missing, unexpected or misshapen tensors raise `CheckpointError` with the list."""
        plan = WeightPlan(self.config, dict(self.named_parameters()))
        for name, tensor in weights:
            plan.load(name, tensor)
        plan.finish()
        load_drafter(self)

    def get_embed_and_head(self) -> tuple[Tensor, Tensor]:
        """Embedding and head weights, for SGLang's weight tools."""
        return self.encoder.embed_tokens.weight, self.diffusion_head.weight


def _check_config(config: Any) -> None:
    wanted = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
    for key, value in wanted.items():
        if getattr(config, key, value) != value:
            raise CheckpointError(f"config.json: {key} must be {value!r}, got {getattr(config, key)!r}")
    if getattr(config, "sliding_window", None) is not None:
        raise CheckpointError(f"config.json: sliding_window must be null, got {config.sliding_window!r}")
    tp_size = get_parallel().tp_size
    if config.num_attention_heads % tp_size or (
        config.num_key_value_heads % tp_size and tp_size % config.num_key_value_heads
    ):
        raise CheckpointError(
            f"tp_size must divide {config.num_attention_heads} query heads and fit "
            f"{config.num_key_value_heads} key heads, got {tp_size}"
        )


EntryClass = NemotronLabsDiffusionModel
