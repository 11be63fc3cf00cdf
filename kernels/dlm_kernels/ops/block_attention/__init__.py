"""Attention of short query blocks over a paged KV pool, one visibility limit per query token."""

from dlm_kernels.ops.block_attention.op import BlockAttentionPlan, block_attention, make_plan

__all__ = ["BlockAttentionPlan", "block_attention", "make_plan"]
