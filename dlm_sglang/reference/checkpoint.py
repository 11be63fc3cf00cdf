"""Reading checkpoint files: NLD safetensors, whole or sharded, and the drafter adapter beside them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from safetensors.torch import load_file
from torch import Tensor

from dlm_sglang.errors import CheckpointError

ADAPTER_FOLDER = "linear_spec_lora"
_REPACK_PREFIX = re.compile(r"^(?:base_model\.|language_model\.|model\.)+")
# Per-tensor KV-cache scales that quantising repacks add; no mode here reads them.
_DROPPED_SUFFIXES = ("k_scale", "v_scale")
_ADAPTER_KEY = re.compile(
    r"^base_model\.model\.(?:encoder|model)\.layers\.(\d+)\.self_attn\.o_proj\.lora_(A|B)(?:\.default)?\.weight$"
)


@dataclass(frozen=True)
class Adapter:
    """A low-rank drafter: per layer `(A [r, in], B [out, r])`, and the factor alpha / r."""

    tensors: dict[int, tuple[Tensor, Tensor]]
    scale: float


def checkpoint_name(name: str) -> str:
    """The NLD name of a stored tensor: repack prefixes off, `lm_head` -> `diffusion_head`, backbone under `encoder`."""
    name = _REPACK_PREFIX.sub("", name)
    if name.startswith("lm_head."):
        return "diffusion_head." + name.removeprefix("lm_head.")
    if name.startswith(("embed_tokens.", "layers.", "norm.")):
        return "encoder." + name
    return name


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names."""
    folder = Path(folder)
    index_file = folder / "model.safetensors.index.json"
    if index_file.is_file():
        files = sorted(set(cast(dict[str, str], _read_json(index_file)["weight_map"]).values()))
    else:
        files = ["model.safetensors"]
    weights: dict[str, Tensor] = {}
    for file in files:
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder / file} is missing")
        for stored_name, tensor in load_file(folder / file).items():
            name = checkpoint_name(stored_name)
            if name.endswith(_DROPPED_SUFFIXES):
                continue
            if name in weights:
                raise CheckpointError(f"{folder / file}: {stored_name} is a second {name}")
            weights[name] = tensor
    return weights


def read_adapter(folder: str | Path) -> Adapter | None:
    """The PEFT adapter in `linear_spec_lora/`, or None where the folder has none.

    Raises:
        CheckpointError: it adapts something other than `o_proj`, or half a pair is missing.
    """
    adapter_folder = Path(folder) / ADAPTER_FOLDER
    config_file, weights_file = adapter_folder / "adapter_config.json", adapter_folder / "adapter_model.safetensors"
    if not adapter_folder.is_dir():
        return None
    for file in (config_file, weights_file):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
    config = _read_json(config_file)
    if config.get("target_modules") != ["o_proj"]:
        raise CheckpointError(f"{config_file}: target_modules must be ['o_proj'], got {config.get('target_modules')!r}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or rank < 1:
        raise CheckpointError(f"{config_file}: r and lora_alpha must be numbers, got {rank!r} and {alpha!r}")
    halves: dict[tuple[int, str], Tensor] = {}
    for name, tensor in load_file(weights_file).items():
        match = _ADAPTER_KEY.match(name)
        if match is None:
            raise CheckpointError(f"{weights_file}: unexpected tensor {name}")
        halves[int(match[1]), match[2]] = tensor
    tensors: dict[int, tuple[Tensor, Tensor]] = {}
    for layer in sorted({layer for layer, _ in halves}):
        if (layer, "A") not in halves or (layer, "B") not in halves:
            raise CheckpointError(f"{weights_file}: layer {layer} has only one of lora_A and lora_B")
        lora_a, lora_b = halves[layer, "A"], halves[layer, "B"]
        if lora_a.shape[0] != rank:
            raise CheckpointError(f"{weights_file}: layer {layer} has rank {lora_a.shape[0]}, the config says {rank}")
        tensors[layer] = (lora_a, lora_b)
    return Adapter(tensors, scale=alpha / rank)


def _read_json(file: Path) -> dict[str, object]:
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object")
    return value
