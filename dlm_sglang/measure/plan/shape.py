"""The numbers of a checkpoint's config.json that decide memory and time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlm_sglang.errors import CheckpointError, shown
from dlm_sglang.setting_table import BUNDLED, BUNDLED_PATH

BYTES_OF_DTYPE = {"float32": 4, "bfloat16": 2, "float16": 2}
_COMMON = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131072,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": False,
    "block_size": 32,
    "torch_dtype": "bfloat16",
}
# Shapes of the published config.json files, so that a plan needs no download.
PUBLISHED: Mapping[str, Mapping[str, object]] = {
    "nld-3b": {**_COMMON, "num_hidden_layers": 26, "hidden_size": 3072, "intermediate_size": 9216},
    "nld-8b": {**_COMMON, "num_hidden_layers": 34, "hidden_size": 4096, "intermediate_size": 14336},
    "nld-14b": {**_COMMON, "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 16384},
}
REPOSITORY_OF = {
    "nld-3b": "nvidia/Nemotron-Labs-Diffusion-3B",
    "nld-8b": "nvidia/Nemotron-Labs-Diffusion-8B",
    "nld-14b": "nvidia/Nemotron-Labs-Diffusion-14B",
}
# The published drafter adapters: rank 128 on the attention's output projection.
PUBLISHED_LORA_RANK = 128


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder with grouped-query attention and a gated MLP.

    Attributes:
        block_length: the block size that the checkpoint was trained with.
        lora_rank: of the drafter on the attention's output projection; 0 where there is none.
    """

    name: str
    num_layers: int
    hidden_size: int
    mlp_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    block_length: int
    is_head_tied: bool
    dtype: str
    lora_rank: int = 0

    @property
    def num_layer_params(self) -> int:
        """Parameters of all layers' matrices, which every token goes through."""
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (query + 2 * key_value) + query * self.hidden_size
        return self.num_layers * (attention + 3 * self.hidden_size * self.mlp_size)

    @property
    def num_head_params(self) -> int:
        """Parameters of the LM head."""
        return self.hidden_size * self.vocab_size

    @property
    def num_params(self) -> int:
        """All parameters: layers, norms, embedding, head."""
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return self.num_layer_params + norms + self.num_head_params * (1 if self.is_head_tied else 2)

    @property
    def num_lora_params(self) -> int:
        """Parameters of the drafter's two thin matrices in every layer."""
        return self.num_layers * self.lora_rank * (self.num_heads * self.head_dim + self.hidden_size)

    def kv_bytes_per_token(self, kv_dtype_bytes: int, tp_size: int = 1) -> int:
        """KV bytes of one token on one GPU; heads are not split further than one a GPU."""
        heads = max(1, self.num_kv_heads // tp_size)
        return 2 * heads * self.head_dim * self.num_layers * kv_dtype_bytes


def load_shape(model: str) -> ModelShape:
    """The shape of a checkpoint folder, a config.json, the bundled checkpoint or a published name.

    Raises:
        CheckpointError: there is no such thing, or the file lacks a key.
    """
    if model in PUBLISHED:
        return shape_of(PUBLISHED[model], model, PUBLISHED_LORA_RANK)
    path = BUNDLED_PATH if model == BUNDLED else Path(model)
    if path.is_dir():
        path /= "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}",
            code="config-unreadable",
            hint=f"give a folder, a config.json, or one of {', '.join([BUNDLED, *PUBLISHED])}",
        ) from None
    return shape_of(config, model, _lora_rank(path.parent))


def shape_of(config: Mapping[str, object], name: str, lora_rank: int = 0) -> ModelShape:
    """The shape that a config.json describes.

    Raises:
        CheckpointError: a key is missing or not a positive number.
    """

    def number(key: str, default: int | None = None) -> int:
        value = config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(
                f"{name}: {key} must be a positive integer, got {shown(value)}", code="config-incomplete"
            )
        return value

    heads = number("num_attention_heads")
    hidden = number("hidden_size")
    return ModelShape(
        name=name,
        num_layers=number("num_hidden_layers"),
        hidden_size=hidden,
        mlp_size=number("intermediate_size"),
        num_heads=heads,
        num_kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", hidden // heads),
        vocab_size=number("vocab_size"),
        context_length=number("max_position_embeddings"),
        block_length=number("block_size", 32),
        is_head_tied=config.get("tie_word_embeddings") is True,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"),
        lora_rank=lora_rank,
    )


def _lora_rank(folder: Path) -> int:
    """Rank of the drafter adapter beside a checkpoint, or 0."""
    path = folder / "linear_spec_lora" / "adapter_config.json"
    if not path.is_file():
        return 0
    rank = json.loads(path.read_text(encoding="utf-8")).get("r", 0)
    return rank if isinstance(rank, int) else 0
