"""Writing a checkpoint folder in exactly the NLD format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dlm_sglang.bundled.tokenizer import BOS_ID, CONTEXT_LENGTH, EOS_ID, MASK_ID, VOCAB_SIZE
from dlm_sglang.reference.checkpoint import ADAPTER_FOLDER
from dlm_sglang.reference.model import NldModel

CONFIG: dict[str, object] = {
    "architectures": ["NemotronLabsDiffusionModel"],
    "model_type": "nemotron_labs_diffusion",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_implementation": "sdpa",
    "block_size": 16,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": None,
    "mask_token_id": MASK_ID,
    "dlm_paradigm": "bidirectional",
    "dlm_loss_weight": None,
    "ar_loss_weight": 1.0,
    "dp_varying_mask_ratio": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": CONTEXT_LENGTH,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "5.0.0",
    "use_cache": False,
    "vocab_size": VOCAB_SIZE,
}
GENERATION_CONFIG = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "transformers_version": "5.0.0"}


def write_config(folder: Path) -> None:
    """Write config.json and generation_config.json."""
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=2) + "\n", encoding="utf-8")


def write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write model.safetensors in BF16."""
    rounded = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    _save(rounded, folder / "model.safetensors")


def write_adapter(folder: Path, model: NldModel) -> None:
    """Write the attached drafter adapter as a PEFT folder beside the weights, in float32."""
    tensors: dict[str, Tensor] = {}
    rank = 0
    scale = 0.0
    for i, layer in enumerate(model.layers):
        proj = layer.self_attn.o_proj
        if proj.lora_a is None or proj.lora_b is None:
            raise ValueError(f"layer {i} has no adapter")
        name = f"base_model.model.encoder.layers.{i}.self_attn.o_proj"
        tensors[f"{name}.lora_A.weight"] = proj.lora_a.detach().float().contiguous()
        tensors[f"{name}.lora_B.weight"] = proj.lora_b.detach().float().contiguous()
        rank, scale = proj.lora_a.shape[0], proj.lora_scale
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_alpha": round(scale * rank),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "r": rank,
        "target_modules": ["o_proj"],
    }
    adapter_folder = folder / ADAPTER_FOLDER
    adapter_folder.mkdir(exist_ok=True)
    (adapter_folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _save(tensors, adapter_folder / "adapter_model.safetensors")


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})
    # safetensors writes for its user alone; a package is read by others.
    file.chmod(0o644)
