"""Bytes: weights, KV pool, per-request state, logits, and how many requests they leave room for.

The KV pool follows SGLang 0.5.21: what is free after loading the weights, less the share of the memory
free before that `mem_fraction_static` keeps out of it, in whole pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlm_sglang.measure.plan.gpu import GIB, Gpu
from dlm_sglang.measure.plan.shape import BYTES_OF_DTYPE, ModelShape

# Per logit beside the forward's own: a float32 copy and one float32 temporary of the unmasking in plain torch.
LOGIT_COPY_BYTES = 8
# Prefill tokens in one forward; SGLang's default is 8192 on large GPUs and less on small ones.
CHUNKED_PREFILL_TOKENS = 8192
SMALL_GPU_CHUNKED_PREFILL_TOKENS = 2048
SMALL_GPU_BYTES = 35 * GIB
# CUDA graphs, workspaces of the attention backend, fragmentation: an estimate.
GRAPH_BYTES = 2 * GIB
# Not run on a GPU by us yet, so with a reserve: SGLang by itself keeps 10 GiB of a large GPU free.
SMALLEST_FRACTION, LARGEST_FRACTION = 0.3, 0.88
INT32_BYTES, INT64_BYTES = 4, 8
_BLOCK_STATE_INTS = 24


@dataclass(frozen=True)
class Capacity:
    """What of a GPU's memory goes where, in bytes per GPU.

    Attributes:
        kv_tokens: tokens that the KV pool holds.
        free_bytes: free before loading.
    """

    weight_bytes: int
    free_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    kv_tokens: int
    mem_fraction_static: float


def weight_bytes(shape: ModelShape, dtype: str, tp_size: int = 1) -> int:
    """Weights of the checkpoint and its drafter adapter on one GPU."""
    return (shape.num_params + shape.num_lora_params) * BYTES_OF_DTYPE[dtype] // tp_size


def capacity(
    shape: ModelShape,
    gpu: Gpu,
    dtype: str,
    mem_fraction_static: float,
    *,
    tp_size: int = 1,
    page_size: int = 1,
    max_total_tokens: int | None = None,
) -> Capacity:
    """The KV pool of a server; with no tokens where the weights alone are too large."""
    free = gpu.memory_bytes - gpu.context_bytes
    weights = weight_bytes(shape, dtype, tp_size)
    cell = shape.kv_bytes_per_token(BYTES_OF_DTYPE[dtype], tp_size)
    budget = max(0, int(mem_fraction_static * free) - weights)
    tokens = budget // cell
    cap = max_total_tokens or gpu.max_total_tokens
    if cap is not None:
        tokens = min(tokens, cap)
    tokens = tokens // page_size * page_size
    return Capacity(weights, free, cell, tokens * cell, tokens, mem_fraction_static)


def kv_tokens_per_request(context: int, block_length: int) -> int:
    """KV slots of a running request with `context` tokens: those and its block."""
    return context + block_length


def max_concurrency(kv_tokens: int, context: int, block_length: int) -> int:
    """Requests of `context` tokens that the KV pool holds at once."""
    return kv_tokens // kv_tokens_per_request(context, block_length)


def logits_bytes(shape: ModelShape, dtype: str, rows: int, block_length: int, tp_size: int = 1) -> int:
    """Logits of one decode round and the copies that choosing tokens makes of them."""
    per_logit = BYTES_OF_DTYPE[dtype] + LOGIT_COPY_BYTES
    return rows * block_length * shape.vocab_size * per_logit // tp_size


def state_bytes(context: int, block_length: int) -> int:
    """Per request beside KV: its row of the slot table, and its block's canvas, masks and counters."""
    slot_table = INT32_BYTES * (context + block_length)
    return slot_table + block_length * (2 * INT64_BYTES + 1) + _BLOCK_STATE_INTS * INT64_BYTES


def runtime_bytes(shape: ModelShape, gpu: Gpu, dtype: str, rows: int, block_length: int, tp_size: int = 1) -> int:
    """What must stay outside weights and KV: activations of a prefill chunk, logits, graphs."""
    is_small = gpu.memory_bytes < SMALL_GPU_BYTES
    chunk = SMALL_GPU_CHUNKED_PREFILL_TOKENS if is_small else CHUNKED_PREFILL_TOKENS
    activations = chunk * (6 * shape.hidden_size + 3 * shape.mlp_size // tp_size) * BYTES_OF_DTYPE[dtype]
    return activations + logits_bytes(shape, dtype, rows, block_length, tp_size) + GRAPH_BYTES


def suggested_fraction(
    shape: ModelShape, gpu: Gpu, dtype: str, rows: int, block_length: int, tp_size: int = 1
) -> float:
    """`mem_fraction_static` that leaves room for `rows` requests, in steps of 0.01."""
    free = gpu.memory_bytes - gpu.context_bytes
    share = 1 - runtime_bytes(shape, gpu, dtype, rows, block_length, tp_size) / free
    return min(LARGEST_FRACTION, max(SMALLEST_FRACTION, int(share * 100) / 100))
