"""What else computes block attention: each baseline that the host can import, on the same inputs.

A factory gets the inputs of one layer and returns the call to time. It raises `Unavailable` where the host lacks the
library or the library lacks the shape. All rows have one length, and every token sees its whole row, because that is
what all of them can do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from inspect import signature

import torch
from dlm_kernels.testing.block_attention import Inputs
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Call = Callable[[], Tensor]
WORKSPACE_BYTES = 256 << 20


class Unavailable(Exception):
    """This baseline cannot run here or at this shape; the message says why."""


def gathered(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """`[R, Hkv, S, D]` contiguous keys and values of all rows."""
    index = inputs.slot_table[inputs.slots, : inputs.max_kv_len].long()
    return tuple(pool[index].transpose(1, 2).contiguous() for pool in (inputs.k_pool, inputs.v_pool))  # type: ignore[return-value]


def sdpa(inputs: Inputs) -> Call:
    """SDPA on keys that are contiguous already, grouped heads packed as rows."""
    keys, values = gathered(inputs)
    packed = _packed_queries(inputs)
    return lambda: _unpack(scaled_dot_product_attention(packed, keys, values, scale=inputs.scale), inputs)


def sdpa_with_gather(inputs: Inputs) -> Call:
    """The same with the gather from the pool in the time."""
    packed = _packed_queries(inputs)
    return lambda: _unpack(scaled_dot_product_attention(packed, *gathered(inputs), scale=inputs.scale), inputs)


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)  # type: ignore[no-any-return]


def flex_attention(inputs: Inputs) -> Call:
    """FlexAttention compiled, on contiguous keys."""
    keys, values = gathered(inputs)
    packed = _packed_queries(inputs)
    compiled = _compiled_flex_attention()
    return lambda: _unpack(compiled(packed, keys, values, scale=inputs.scale), inputs)


def varlen_attn(inputs: Inputs) -> Call:
    """Torch's variable-length attention on contiguous keys."""
    attend, parameters = _varlen_attn()
    keys, values = (tensor.transpose(1, 2).flatten(0, 1).contiguous() for tensor in gathered(inputs))
    q = inputs.q.contiguous()
    options: dict[str, object] = {"scale": inputs.scale} if "scale" in parameters else {}
    if "enable_gqa" in parameters:
        options["enable_gqa"] = True
    else:
        keys, values = (tensor.repeat_interleave(q.shape[1] // keys.shape[1], 1) for tensor in (keys, values))
    q_begins, kv_begins = _begins(inputs.row_lens), _begins(inputs.kv_lens)
    lens = inputs.max_row_len, inputs.max_kv_len
    return lambda: attend(q, keys, values, q_begins, kv_begins, *lens, **options)


def varlen_attn_paged(inputs: Inputs) -> Call:
    """The same reading pages through a block table, where this torch can."""
    attend, parameters = _varlen_attn()
    if "block_table" not in parameters or inputs.page_size < 16:
        raise Unavailable("no block table in this torch, or pages below 16 positions")
    page, num_kv_heads = inputs.page_size, inputs.k_pool.shape[1]
    pools = [pool.view(-1, page, num_kv_heads, pool.shape[2]) for pool in (inputs.k_pool, inputs.v_pool)]
    table = (inputs.slot_table[inputs.slots, : -(-inputs.max_kv_len // page) * page : page] // page).contiguous()
    q, q_begins = inputs.q.contiguous(), _begins(inputs.row_lens)
    options = {"scale": inputs.scale, "enable_gqa": True, "seqused_k": inputs.kv_lens, "block_table": table}
    return lambda: attend(q, *pools, q_begins, None, inputs.max_row_len, inputs.max_kv_len, **options)


def _varlen_attn() -> tuple[Callable[..., Tensor], Collection[str]]:
    try:
        from torch.nn.attention.varlen import varlen_attn as attend
    except ImportError as error:
        raise Unavailable(str(error)) from error
    return attend, signature(attend).parameters


@cache
def _flashinfer_workspace() -> Tensor:
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")


def flashinfer(inputs: Inputs) -> Call:
    """FlashInfer's paged batch prefill (fa2), not causal; its host plan is outside the time."""
    try:
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper
    except Exception as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    page = inputs.page_size
    num_pages = -(-inputs.kv_lens // page)
    pages = [
        inputs.slot_table[slot, : count * page : page] // page
        for slot, count in zip(inputs.slots.tolist(), num_pages.tolist(), strict=True)
    ]
    wrapper = BatchPrefillWithPagedKVCacheWrapper(_flashinfer_workspace(), "NHD", backend="fa2")
    num_q_heads, num_kv_heads, head_dim = inputs.q.shape[1], inputs.k_pool.shape[1], inputs.q.shape[2]
    wrapper.plan(
        _begins(inputs.row_lens),
        _begins(num_pages),
        torch.cat(pages).int(),
        (inputs.kv_lens - 1) % page + 1,
        num_q_heads,
        num_kv_heads,
        head_dim,
        page,
        causal=False,
        sm_scale=inputs.scale,
        q_data_type=inputs.q.dtype,
        kv_data_type=inputs.k_pool.dtype,
    )
    q = inputs.q.contiguous()
    pools = tuple(pool.view(-1, page, num_kv_heads, head_dim) for pool in (inputs.k_pool, inputs.v_pool))
    return lambda: wrapper.run(q, pools)  # type: ignore[no-any-return]


def sglang_extend(inputs: Inputs) -> Call:
    """SGLang's Triton extend kernel: the prefix from the pool, the block's own keys beside it."""
    try:
        from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd
    except Exception as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    own, prefix = [], []
    for slot, row_len, kv_len in zip(
        inputs.slots.tolist(), inputs.row_lens.tolist(), inputs.kv_lens.tolist(), strict=True
    ):
        prefix.append(inputs.slot_table[slot, : kv_len - row_len])
        own.append(inputs.slot_table[slot, kv_len - row_len : kv_len])
    own_slots, q = torch.cat(own).long(), inputs.q.contiguous()
    out = torch.empty_like(q)
    arguments = (
        q,
        inputs.k_pool[own_slots],
        inputs.v_pool[own_slots],
        out,
        inputs.k_pool,
        inputs.v_pool,
        _begins(inputs.row_lens),
        _begins(inputs.kv_lens - inputs.row_lens),
        torch.cat(prefix).long(),
        None,
        False,
        None,
        inputs.max_row_len,
        1.0,
        1.0,
    )

    def call() -> Tensor:
        extend_attention_fwd(*arguments, sm_scale=inputs.scale)
        return out

    return call


def sglang_decode(inputs: Inputs) -> Call:
    """SGLang's Triton decode kernel: one query token a row, 8 splits."""
    if inputs.max_row_len != 1:
        raise Unavailable("one query token a row only")
    try:
        from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd
    except Exception as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    q = inputs.q.contiguous()
    num_rows, num_heads, head_dim = q.shape
    slots = zip(inputs.slots.tolist(), inputs.kv_lens.tolist(), strict=True)
    kv_indices = torch.cat([inputs.slot_table[slot, :kv_len] for slot, kv_len in slots]).long()
    num_splits = torch.full((num_rows,), 8, dtype=torch.int32, device="cuda")
    logits = torch.empty(num_rows, num_heads, 8, head_dim, device="cuda")
    lse = torch.empty(num_rows, num_heads, 8, device="cuda")
    out, begins = torch.empty_like(q), _begins(inputs.kv_lens)

    def call() -> Tensor:
        decode_attention_fwd(
            q, inputs.k_pool, inputs.v_pool, out, begins, kv_indices, logits, lse, num_splits, 8, inputs.scale, 1.0, 1.0
        )
        return out

    return call


BASELINES: dict[str, Callable[[Inputs], Call]] = {
    "sdpa": sdpa,
    "sdpa+gather": sdpa_with_gather,
    "flex": flex_attention,
    "varlen": varlen_attn,
    "varlen-paged": varlen_attn_paged,
    "flashinfer": flashinfer,
    "sglang-extend": sglang_extend,
    "sglang-decode": sglang_decode,
}


def _begins(lens: Tensor) -> Tensor:
    return torch.nn.functional.pad(lens.cumsum(0), (1, 0)).int()


def _packed_queries(inputs: Inputs) -> Tensor:
    """`[R, Hkv, G * L, D]`."""
    num_rows, num_kv_heads = inputs.row_lens.numel(), inputs.k_pool.shape[1]
    q = inputs.q.reshape(num_rows, inputs.max_row_len, num_kv_heads, -1, inputs.q.shape[2])
    return q.permute(0, 2, 3, 1, 4).flatten(2, 3).contiguous()


def _unpack(packed: Tensor, inputs: Inputs) -> Tensor:
    """`[T, Hq, D]` view of a packed result; costs nothing, because nothing reads it in the time."""
    num_rows, num_kv_heads, _, head_dim = packed.shape
    heads = packed.view(num_rows, num_kv_heads, -1, inputs.max_row_len, head_dim)
    return heads.permute(0, 3, 1, 2, 4)
