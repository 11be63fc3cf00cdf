"""Which checkpoint tensor goes where, and what to say when one is missing, unexpected or misshapen."""

from __future__ import annotations

import re
from typing import Any

from sglang.srt.model_loader.weight_utils import default_weight_loader
from torch import Tensor, nn

from dlm_sglang.errors import CheckpointError

# Repacks prefix the published names (spec section 1.5).
_PREFIX = re.compile(r"^(?:(?:base_model|language_model|model)\.)+")
_HEAD_NAMES = ("diffusion_head", "lm_head")
# Per-layer KV scales that some repacks carry and no released model uses.
_DROPPED = re.compile(r"\.(?:k_scale|v_scale)$")
_FUSED: dict[str, tuple[str, str | int]] = {
    "q_proj": ("qkv_proj", "q"),
    "k_proj": ("qkv_proj", "k"),
    "v_proj": ("qkv_proj", "v"),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
_SHOWN = 6


def expected_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of each of the 9 L + 3 published tensors (spec section 1.5)."""
    hidden, ffn, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    q_width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embed_tokens.weight": (vocab, hidden),
        "encoder.norm.weight": (hidden,),
        "diffusion_head.weight": (vocab, hidden),
    }
    for index in range(config.num_hidden_layers):
        layer = f"encoder.layers.{index}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.self_attn.q_proj.weight": (q_width, hidden),
            f"{layer}.self_attn.k_proj.weight": (kv_width, hidden),
            f"{layer}.self_attn.v_proj.weight": (kv_width, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, q_width),
            f"{layer}.mlp.gate_proj.weight": (ffn, hidden),
            f"{layer}.mlp.up_proj.weight": (ffn, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, ffn),
        }
    return shapes


def published_name(name: str) -> str:
    """The published tensor name behind a repack's."""
    bare = _PREFIX.sub("", name)
    for head in _HEAD_NAMES:
        if bare.startswith(f"{head}."):
            return f"diffusion_head.{bare.removeprefix(f'{head}.')}"
    return bare if bare.startswith("encoder.") else f"encoder.{bare}"


class WeightPlan:
    """Loads tensors one by one and keeps account of what came.

    Args:
        config: the model's config.
        parameters: the module's parameters by name.
    """

    def __init__(self, config: Any, parameters: dict[str, nn.Parameter]) -> None:
        self.expected = expected_shapes(config)
        self.parameters = parameters
        self.loaded: set[str] = set()
        self.unexpected: list[str] = []
        self.misshapen: list[str] = []

    def load(self, raw_name: str, tensor: Tensor) -> None:
        """Load one tensor of the checkpoint, or note what is wrong with it."""
        if _DROPPED.search(raw_name):
            return
        name = published_name(raw_name)
        shape = self.expected.get(name)
        is_quantized = tensor.element_size() == 1 and tensor.dtype.is_floating_point is False
        if shape is not None and tuple(tensor.shape) != shape and not is_quantized:
            self.misshapen.append(f"{raw_name}: expected {list(shape)}, got {list(tensor.shape)}")
            return
        target, shard = _destination(name)
        parameter = self.parameters.get(target)
        if parameter is None:
            self.unexpected.append(raw_name)
            return
        loader = getattr(parameter, "weight_loader", default_weight_loader)
        if shard is None:
            loader(parameter, tensor)
        else:
            loader(parameter, tensor, shard)
        self.loaded.add(name)

    def finish(self) -> None:
        """Raise `CheckpointError` unless exactly the published tensors came."""
        problems = []
        missing = sorted(set(self.expected) - self.loaded)
        if self.misshapen:
            missing = [name for name in missing if not any(name in line for line in self.misshapen)]
        for label, names in (("missing", missing), ("unexpected", self.unexpected), ("misshapen", self.misshapen)):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                problems.append(f"{len(names)} {label}: {'; '.join(names[:_SHOWN])}{more}")
        if problems:
            raise CheckpointError(f"the checkpoint does not match its config.json: {' | '.join(problems)}")


def _destination(name: str) -> tuple[str, str | int | None]:
    for part, (fused, shard) in _FUSED.items():
        marker = f".{part}."
        if marker in name:
            return name.replace(marker, f".{fused}."), shard
    return name, None
