"""Checkpoints of any published shape with random weights: they say nothing, and take exactly as long to say it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dlm_sglang.bundled.export import CONFIG
from dlm_sglang.errors import SettingsError
from dlm_sglang.measure.plan.shape import PUBLISHED, PUBLISHED_LORA_RANK, ModelShape, shape_of
from dlm_sglang.setting_table import BUNDLED_PATH

Say = Callable[[str], None]
STD = 0.02
# The published adapters: alpha 512 over rank 128 (spec section 1.6).
LORA_SCALE = 4
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
# Published rotary settings (spec section 1.4); the largest model has a base of its own.
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
ROPE_THETA = {"nld-14b": 1e9}


def write_random_checkpoint(
    folder: Path, name: str, *, num_layers: int | None = None, has_drafter: bool = True, seed: int = 0, say: Say = print
) -> Path:
    """Write a checkpoint of a published shape, one file per layer, in bfloat16.

    The tokenizer is the bundled one, so every text can be asked; answers are noise.

    Args:
        folder: where to; must not exist or be empty.
        name: key of `PUBLISHED`, such as `nld-8b`.
        num_layers: fewer layers than the shape has, for a machine that cannot hold them all.
        has_drafter: write a random `linear_spec_lora` too.
        seed: of the weights.
        say: told of each file.

    Returns:
        The folder.

    Raises:
        SettingsError: the name is unknown or the folder is in use.
    """
    if name not in PUBLISHED:
        raise SettingsError(
            f"size must be one of {', '.join(PUBLISHED)}, got {name!r}", setting="size", code="size-unknown"
        )
    return write_shape(
        folder,
        {**PUBLISHED[name], **({"num_hidden_layers": num_layers} if num_layers else {})},
        ROPE | {"rope_theta": ROPE_THETA.get(name, ROPE["rope_theta"])},
        has_drafter=has_drafter,
        seed=seed,
        say=say,
    )


def write_shape(
    folder: Path,
    shape_keys: Mapping[str, object],
    rope: Mapping[str, object],
    *,
    has_drafter: bool,
    seed: int,
    say: Say,
) -> Path:
    """Write a checkpoint whose config.json has `shape_keys`; see `write_random_checkpoint`."""
    if folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder} is not empty", setting="out", code="folder-in-use", hint="name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **shape_keys, "rope_parameters": dict(rope)}
    shape = shape_of(config, folder.name, PUBLISHED_LORA_RANK if has_drafter else 0)
    generator = torch.Generator().manual_seed(seed)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for file_name, tensors in _files(shape, generator):
        save_file(tensors, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file_name)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        say(f"{folder / file_name}: {total_bytes / 1e9:.2f} GB so far")
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file_name in TOKENIZER_FILES:
        shutil.copy(BUNDLED_PATH / file_name, folder / file_name)
    if has_drafter:
        _write_drafter(folder / "linear_spec_lora", shape, generator)
    return folder


def _normal(generator: torch.Generator, *size: int) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float32).mul_(STD).bfloat16()


def _files(shape: ModelShape, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Files of the checkpoint with their tensors, named as spec section 1.5 does."""
    hidden, num_files = shape.hidden_size, shape.num_layers + 1

    def file_name(number: int) -> str:
        return f"model-{number:05d}-of-{num_files:05d}.safetensors"

    yield (
        file_name(1),
        {
            "encoder.embed_tokens.weight": _normal(generator, shape.vocab_size, hidden),
            "encoder.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            "diffusion_head.weight": _normal(generator, shape.vocab_size, hidden),
        },
    )
    query, key_value = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    for layer in range(shape.num_layers):
        sizes = {
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key_value, hidden),
            "self_attn.v_proj": (key_value, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (shape.mlp_size, hidden),
            "mlp.up_proj": (shape.mlp_size, hidden),
            "mlp.down_proj": (hidden, shape.mlp_size),
        }
        tensors = {f"encoder.layers.{layer}.{name}.weight": _normal(generator, *size) for name, size in sizes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"encoder.layers.{layer}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        yield file_name(layer + 2), tensors


def _write_drafter(folder: Path, shape: ModelShape, generator: torch.Generator) -> None:
    folder.mkdir()
    tensors = {}
    for layer in range(shape.num_layers):
        prefix = f"base_model.model.encoder.layers.{layer}.self_attn.o_proj"
        tensors[f"{prefix}.lora_A.weight"] = _normal(generator, shape.lora_rank, shape.num_heads * shape.head_dim)
        tensors[f"{prefix}.lora_B.weight"] = _normal(generator, shape.hidden_size, shape.lora_rank)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter = {
        "peft_type": "LORA",
        "target_modules": ["o_proj"],
        "r": shape.lora_rank,
        "lora_alpha": LORA_SCALE * shape.lora_rank,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter, indent=2) + "\n", encoding="utf-8")
