"""Train the bundled checkpoint: `python -m dlm_sglang.bundled.train --out FOLDER --seed 0`.

Tokenizer, tri-mode model and drafter adapter, driven by step counts alone.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dlm_sglang.bundled.batches import BATCHES_PER_CHUNK, Batch, chunk
from dlm_sglang.bundled.drafter import train_drafter
from dlm_sglang.bundled.export import write_adapter, write_config, write_weights
from dlm_sglang.bundled.gradients import BATCHES_PER_STEP, ParallelGradients
from dlm_sglang.bundled.schedule import NUM_STEPS, learning_rate_factor, stage_of
from dlm_sglang.bundled.tokenizer import train_tokenizer
from dlm_sglang.reference.checkpoint import ADAPTER_FOLDER
from dlm_sglang.reference.model import NldConfig, NldModel, load_model

DRAFTER_STEPS = 200
MATRIX_LR = 4e-3
OTHER_LR = 3e-3
WEIGHT_DECAY = 0.01
DIFFUSION_WEIGHT = 1.0
_SAVE_EVERY_STEPS = 100
_LOG_EVERY_STEPS = 20


def batches(tokenizer: PreTrainedTokenizerBase, seed: int, first_step: int, num_steps: int) -> Iterator[list[Batch]]:
    """The batches of every step from `first_step` on; a resumed run sees what an unbroken one sees."""
    current: list[Batch] = []
    steps_per_chunk = BATCHES_PER_CHUNK // BATCHES_PER_STEP
    for step in range(first_step, num_steps):
        if not current or step % steps_per_chunk == 0:
            stage = stage_of(step)
            current = chunk(tokenizer, seed, step // steps_per_chunk, task_names=stage.task_names)
        first = step % steps_per_chunk * BATCHES_PER_STEP
        yield current[first : first + BATCHES_PER_STEP]


def joint_loss(model: NldModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of the causal rows (shifted) plus that of the masked rows (unshifted).

    Masked rows are not weighted by 1 / p as in the large models' recipe: half of our blocks are
    fully masked, as drafting meets them, and 1 / p would make them the least of the loss.
    """
    hidden, _ = model.hidden_states(batch.input_ids, batch.positions, batch.attn_mask)
    flat = hidden.flatten(0, 1)
    ar_logits = model.diffusion_head(flat[batch.ar_rows]).float()
    diffusion_logits = model.diffusion_head(flat[batch.diffusion_rows]).float()
    ar_loss = F.cross_entropy(ar_logits, batch.ar_targets)
    per_token = F.cross_entropy(diffusion_logits, batch.diffusion_targets, reduction="none")
    diffusion_loss = (per_token * batch.diffusion_weights).sum() / batch.diffusion_weights.sum()
    return ar_loss + DIFFUSION_WEIGHT * diffusion_loss, {"ar": ar_loss, "diffusion": diffusion_loss}


def initialise(model: NldModel, seed: int) -> None:
    """Normal weights; projections that write into the residual stream start smaller."""
    generator = torch.Generator().manual_seed(seed)
    num_layers = model.config.num_hidden_layers
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        std = 0.02 if "embed_tokens" in name or "diffusion_head" in name else parameter.shape[1] ** -0.5 / 2
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * num_layers)
        nn.init.normal_(parameter, std=std, generator=generator)


def make_optimizers(model: NldModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embedding, head and norms."""
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=OTHER_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_model(folder: Path, seed: int, num_steps: int, state_file: Path | None) -> NldModel:
    """Train from scratch, or on from `state_file` where it exists; the folder needs tokenizer and config."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = NldModel(NldConfig.from_folder(folder))
    initialise(model, seed)
    optimizers = make_optimizers(model)
    base_lrs = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    step = 0
    if state_file is not None and state_file.is_file():
        state: _State = torch.load(state_file, weights_only=True)
        step = state["step"]
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
    started = time.monotonic()
    # Forwards and backwards run on a BF16 copy; the weights that the optimizers change are float32.
    low = NldModel(model.config).bfloat16()
    gradients = ParallelGradients(partial(joint_loss, low), list(low.parameters()), list(model.parameters()))
    for step_batches in batches(tokenizer, seed, step, num_steps):
        for optimizer, base_lr in zip(optimizers, base_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = base_lr * learning_rate_factor(step)
        torch._foreach_copy_([p.data for p in low.parameters()], [p.data for p in model.parameters()])
        losses = gradients.step(step_batches)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        if step % _LOG_EVERY_STEPS == 0:
            print(
                f"step {step}/{num_steps}  ar {losses['ar']:.4f}  diffusion {losses['diffusion']:.4f}  "
                f"{time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        if state_file is not None and (step % _SAVE_EVERY_STEPS == 0 or step == num_steps):
            _save_state(state_file, step, model, optimizers)
    return model


class _State(TypedDict):
    step: int
    model: dict[str, Tensor]
    optimizers: list[dict[str, object]]


def _save_state(file: Path, step: int, model: NldModel, optimizers: list[torch.optim.Optimizer]) -> None:
    part = file.with_suffix(".part")
    state: _State = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    torch.save(state, part)
    part.replace(file)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dlm_sglang.bundled.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="fewer is a smoke test (default: %(default)s)")
    parser.add_argument("--drafter-steps", type=int, default=DRAFTER_STEPS, help="(default: %(default)s)")
    parser.add_argument("--state", type=Path, help="file to save progress in, and to continue from")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    train_tokenizer(args.out, args.seed)
    write_config(args.out)
    model = train_model(args.out, args.seed, args.steps, args.state)
    write_weights(args.out, model.state_dict())
    # The drafter fits the weights as they are stored, rounded to BF16.
    shutil.rmtree(args.out / ADAPTER_FOLDER, ignore_errors=True)
    stored = load_model(args.out)
    train_drafter(stored, AutoTokenizer.from_pretrained(args.out), args.seed, args.drafter_steps)
    write_adapter(args.out, stored)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
