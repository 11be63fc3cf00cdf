"""The drafter adapter `linear_spec_lora`: a low-rank term on the output projection, on draft rows only."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from sglang.srt.runtime_context import get_parallel
from torch import Tensor, nn

from dlm_sglang.errors import CheckpointError

logger = logging.getLogger(__name__)

FOLDER = "linear_spec_lora"
# The released files say `encoder.layers`; adapters made elsewhere say `model.layers` (spec section 1.6).
_KEY = re.compile(r"(?:^|\.)layers\.(\d+)\.self_attn\.o_proj\.lora_([AB])(?:\.default)?\.weight$")


class DrafterAdapter(nn.Module):
    """`scale * B A x` for rows that draft, zero for all others, so both kinds share one forward.

    The verifier must not see it, else self-speculation would equal the merged model and not the checkpoint.
    """

    def __init__(self, lora_a: Tensor, lora_b: Tensor, scale: float) -> None:
        super().__init__()
        # Stored transposed and scaled: two plain matrix products per layer.
        self.down = nn.Parameter(lora_a.t().contiguous(), requires_grad=False)  # [q_width, r]
        self.up = nn.Parameter((lora_b * scale).t().contiguous(), requires_grad=False)  # [r, hidden]

    def forward(self, context: Tensor, draft_rows: Tensor) -> Tensor:
        """`context [T, q_width]` to `[T, hidden]`, multiplied by `draft_rows [T]`."""
        low_rank = (context @ self.down) * draft_rows[:, None].to(context.dtype)
        return low_rank @ self.up


def load_drafter(model: Any) -> bool:
    """Attach the adapter that lies beside the weights, if one does.

    Args:
        model: a loaded `NemotronLabsDiffusionModel`.

    Returns:
        Whether an adapter was attached.

    Raises:
        CheckpointError: the folder is there and is not an adapter for this model.
    """
    folder = Path(str(getattr(model.config, "_name_or_path", "") or "")) / FOLDER
    if not folder.is_dir():
        logger.info("no drafter adapter (%s) beside the weights; drafts use the base weights", FOLDER)
        return False
    scale = _scale(folder)
    pairs = _read_pairs(folder)
    layers = model.encoder.layers
    wrong = set(pairs) ^ set(range(len(layers)))
    if wrong:
        raise CheckpointError(f"{folder}: adapter layers must be 0..{len(layers) - 1}, differing: {sorted(wrong)[:8]}")
    for index, layer in enumerate(layers):
        lora_a, lora_b = pairs[index].get("A"), pairs[index].get("B")
        if lora_a is None or lora_b is None:
            raise CheckpointError(f"{folder}: layer {index} lacks lora_A or lora_B of o_proj")
        layer.self_attn.drafter = _adapter(folder, index, layer.self_attn, lora_a, lora_b, scale, model.config)
    logger.info("drafter adapter loaded: %d layers, scale %.3g", len(layers), scale)
    return True


def _adapter(
    folder: Path, index: int, attention: Any, lora_a: Tensor, lora_b: Tensor, scale: float, config: Any
) -> DrafterAdapter:
    q_width = config.num_attention_heads * config.head_dim
    rank = lora_a.shape[0]
    if tuple(lora_a.shape) != (rank, q_width) or tuple(lora_b.shape) != (config.hidden_size, rank):
        raise CheckpointError(
            f"{folder}: layer {index} must be A [r, {q_width}] and B [{config.hidden_size}, r], "
            f"got A {list(lora_a.shape)} and B {list(lora_b.shape)}"
        )
    parallel = get_parallel()
    width = q_width // parallel.tp_size
    lora_a = lora_a[:, parallel.tp_rank * width : (parallel.tp_rank + 1) * width]
    weight = attention.qkv_proj.weight
    dtype = weight.dtype if weight.dtype.is_floating_point and weight.element_size() > 1 else torch.bfloat16
    return DrafterAdapter(lora_a.to(weight.device, dtype), lora_b.to(weight.device, dtype), scale)


def _scale(folder: Path) -> float:
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    config = json.loads(file.read_text(encoding="utf-8"))
    if list(config.get("target_modules", [])) != ["o_proj"]:
        raise CheckpointError(f"{file}: target_modules must be ['o_proj'], got {config.get('target_modules')!r}")
    if config.get("bias", "none") != "none" or config.get("use_rslora") or config.get("use_dora"):
        raise CheckpointError(f"{file}: bias, rslora and dora are not part of the drafter format")
    return float(config["lora_alpha"]) / float(config["r"])


def _read_pairs(folder: Path) -> dict[int, dict[str, Tensor]]:
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    pairs: dict[int, dict[str, Tensor]] = {}
    with safe_open(str(file), framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (not a dict: safe_open has no iteration)
            match = _KEY.search(name)
            if match is None:
                raise CheckpointError(f"{file}: unexpected tensor {name}")
            pairs.setdefault(int(match.group(1)), {})[match.group(2)] = tensors.get_tensor(name)
    return pairs
