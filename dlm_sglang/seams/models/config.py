"""Hugging Face config class of Nemotron-Labs-Diffusion, so that no remote code is needed."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from dlm_sglang.seams.names import MODEL_TYPE


class NemotronLabsDiffusionConfig(PretrainedConfig):
    """Values come from the checkpoint's own config.json; class defaults are never trusted (spec section 1.3)."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 131072,
        hidden_size: int = 4096,
        intermediate_size: int = 14336,
        num_hidden_layers: int = 34,
        num_attention_heads: int = 32,
        num_key_value_heads: int = 8,
        head_dim: int = 128,
        hidden_act: str = "silu",
        rms_norm_eps: float = 1e-5,
        max_position_embeddings: int = 262144,
        mask_token_id: int = 100,
        block_size: int = 32,
        rope_parameters: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.hidden_act = hidden_act
        self.rms_norm_eps = rms_norm_eps
        self.max_position_embeddings = max_position_embeddings
        self.mask_token_id = mask_token_id
        self.block_size = block_size
        self.rope_parameters = rope_parameters
        kwargs.pop("auto_map", None)
        super().__init__(**kwargs)
