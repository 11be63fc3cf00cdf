"""Training the drafter adapter: low-rank additions to `o_proj`, on in draft forwards only.

The base is frozen, so the verifier and with it the greedy output stay what they are. The large
models' loss also matches distributions; for a nearly deterministic model the tokens are enough.
"""

from __future__ import annotations

import random
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm_sglang.bundled.batches import BATCHES_PER_CHUNK, Batch, NoiseRecipe, chunk
from dlm_sglang.bundled.gradients import BATCHES_PER_STEP, ParallelGradients
from dlm_sglang.reference.model import NldModel

RANK = 16
SCALE = 4.0
LEARNING_RATE = 2e-3
# A draft behind the first wrong one of its block is thrown away, whatever it is.
_LOST_WEIGHT = 0.1
_DRAFT_NOISE = NoiseRecipe(block_lengths=(8, 16, 32), block_weights=(1, 2, 3), seeded_share=1.0, fully_masked_share=1.0)


def attach_new_adapter(model: NldModel, seed: int) -> list[Tensor]:
    """Give every layer a trainable adapter that changes nothing yet; returns its matrices."""
    generator = torch.Generator().manual_seed(seed)
    matrices: list[Tensor] = []
    for layer in model.layers:
        proj = layer.self_attn.o_proj
        lora_a = torch.randn(RANK, proj.in_features, generator=generator) * proj.in_features**-0.5
        lora_b = torch.zeros(proj.out_features, RANK)
        proj.set_lora(lora_a.requires_grad_(), lora_b.requires_grad_(), SCALE)
        matrices += [lora_a, lora_b]
    return matrices


def train_drafter(model: NldModel, tokenizer: PreTrainedTokenizerBase, seed: int, num_steps: int) -> None:
    """Train an adapter for the frozen `model` and leave it attached."""
    model.requires_grad_(False)
    matrices = attach_new_adapter(model, seed)
    optimizer = torch.optim.AdamW(matrices, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    gradients = ParallelGradients(partial(draft_loss, model), matrices)
    chunk_seed = random.Random(f"drafter-{seed}").getrandbits(32)
    steps_per_chunk = BATCHES_PER_CHUNK // BATCHES_PER_STEP
    for step in range(num_steps):
        if step % steps_per_chunk == 0:
            batches = chunk(tokenizer, chunk_seed, step // steps_per_chunk, _DRAFT_NOISE)
        first = step % steps_per_chunk * BATCHES_PER_STEP
        gradients.step(batches[first : first + BATCHES_PER_STEP])
        optimizer.step()
        schedule.step()
    for matrix in matrices:
        matrix.requires_grad_(False)


def draft_loss(model: NldModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the drafts, behind a clean prefix that is computed without the adapter."""
    clean = batch.clean_len
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            _, past = model.hidden_states(
                batch.input_ids[:, :clean], batch.positions[:, :clean], batch.attn_mask[:, :clean, :clean]
            )
        hidden, _ = model.hidden_states(
            batch.input_ids[:, clean:], batch.positions[:, clean:], batch.attn_mask[:, clean:], past, use_lora=True
        )
        rows, width = batch.input_ids.shape
        picked = batch.diffusion_rows // width * (width - clean) + batch.diffusion_rows % width - clean
        logits = model.diffusion_head(hidden.flatten(0, 1)[picked]).float()
    per_token = F.cross_entropy(logits, batch.diffusion_targets, reduction="none")
    is_wrong = torch.zeros(rows * width)
    is_wrong[batch.diffusion_rows] = (logits.argmax(-1) != batch.diffusion_targets).float()
    lost = wrong_drafts_before(is_wrong.view(rows, width), batch.block_ids) > 0
    weights = batch.diffusion_weights * torch.where(lost.flatten()[batch.diffusion_rows], _LOST_WEIGHT, 1.0)
    loss = (per_token * weights).sum() / weights.sum()
    return loss, {"draft": loss}


def wrong_drafts_before(is_wrong: Tensor, block_ids: Tensor) -> Tensor:
    """`[R, T]` float: how many drafts of its own block are wrong before each column.

    Args:
        is_wrong: `[R, T]` float, 1 where a draft differs from its target.
        block_ids: `[T]` int64.
    """
    before = torch.zeros_like(is_wrong)
    for block in block_ids.unique().tolist():
        columns = block_ids == block
        before[:, columns] = is_wrong[:, columns].cumsum(1) - is_wrong[:, columns]
    return before
