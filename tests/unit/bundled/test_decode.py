"""The batched decoder of the evaluation against the oracle, on a random model."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dlm_sglang.bundled import decode
from dlm_sglang.bundled.drafter import attach_new_adapter
from dlm_sglang.bundled.rows import Rows
from dlm_sglang.reference.decoder import OracleParams
from dlm_sglang.reference.decoder import decode as oracle_decode
from dlm_sglang.reference.model import NldConfig, NldModel

MAX_NEW_TOKENS = 20
EOS_ID = 11
CONFIG = {
    "vocab_size": 112,
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
    "eos_token_id": EOS_ID,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}
RUNS = [
    ("autoregressive", 2, 2, None, decode.autoregressive),
    ("self_speculation", 4, 1, None, partial(decode.self_speculation, block_length=4)),
    ("self_speculation", 8, 1, None, partial(decode.self_speculation, block_length=8)),
    ("diffusion", 4, 4, 0.9, partial(decode.diffusion, block_length=4, confidence_threshold=0.9)),
    ("diffusion", 8, 8, 0.05, partial(decode.diffusion, block_length=8, confidence_threshold=0.05)),
    ("diffusion", 8, 3, None, partial(decode.diffusion, block_length=8, max_denoising_steps=3)),
    ("diffusion", 8, 1, None, partial(decode.diffusion, block_length=8, max_denoising_steps=1)),
]


@pytest.fixture(scope="module")
def model() -> NldModel:
    torch.manual_seed(0)
    model = NldModel(NldConfig.from_dict(CONFIG)).double().eval()
    for matrix in attach_new_adapter(model, seed=0):
        matrix.data = torch.randn_like(matrix) * 0.3
    for layer in model.layers:
        proj = layer.self_attn.o_proj
        assert proj.lora_a is not None and proj.lora_b is not None
        proj.set_lora(proj.lora_a.double(), proj.lora_b.double(), proj.lora_scale)
    # A head that likes the EOS, so that some rows end early.
    model.diffusion_head.weight.data[EOS_ID] *= 1.5
    return model.requires_grad_(False)


@pytest.mark.parametrize(("mode", "block_length", "steps", "threshold", "run"), RUNS)
def test_batched_rows_decode_as_the_oracle_does(model, mode, block_length, steps, threshold, run) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(14, 99, (n,), generator=generator).tolist() for n in (1, 3, 7, 12, 20, 5)]
    params = OracleParams(
        mode=mode,
        block_length=block_length,
        max_denoising_steps=steps,
        confidence_threshold=threshold,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    results = run(Rows(model, prompts, MAX_NEW_TOKENS))
    for prompt, result in zip(prompts, results, strict=True):
        expected = oracle_decode(model, prompt, params, {EOS_ID}, 1024)
        assert result.token_ids == expected.token_ids
        assert result.accept_lens == expected.accept_lens
        assert result.num_denoise_forwards == expected.num_denoise_forwards
        assert result.num_commit_forwards == expected.num_commit_forwards
