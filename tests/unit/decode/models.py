"""A small random tri-mode model, for tests of rounds."""

from __future__ import annotations

import torch

from dlm_sglang.reference.config import NldConfig
from dlm_sglang.reference.model import NldModel

VOCAB, MASK, CONTEXT = 37, 30, 96
CONFIG = NldConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=48,
    max_position_embeddings=1024,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    rope_factor=16.0,
    original_max_position_embeddings=32,
    rope_beta_fast=32.0,
    rope_beta_slow=1.0,
    llama_4_scaling_beta=0.1,
    mask_token_id=MASK,
    block_size=8,
    bos_token_id=1,
    eos_token_id=2,
)


def random_model() -> NldModel:
    """Weights large enough that its answers vary."""
    torch.manual_seed(3)
    model = NldModel(CONFIG).double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.35)
    return model.eval()
