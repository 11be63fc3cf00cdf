"""Training batches: a clean half and noisy copies of the answer, with the block-diffusion mask.

One sequence is `[clean prompt + answer | noisy copy | noisy copy]`. The prompt is never masked, so
only the answer is copied. Inside a batch all rows share the block borders, counted from the start
of their answers: the first block may be cut short, as if a decoding cycle had begun before it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm_sglang.bundled.tasks import TASK_NAMES, Task, generate
from dlm_sglang.bundled.thinking import SYSTEM_PROMPTS, thought_of
from dlm_sglang.bundled.tokenizer import EOS_ID, MASK_ID

ROWS_PER_BATCH = 32
BATCHES_PER_CHUNK = 16
NUM_NOISY_COPIES = 2
# The tail after the first EOS is easy; it must be learned, not dominate.
_TAIL_WEIGHT = 0.1
_SYSTEM_SHARE = 0.1
_THINKING_SHARE = 0.08


@dataclass(frozen=True)
class NoiseRecipe:
    """How answers are masked.

    Attributes:
        block_lengths, block_weights: block lengths, and how often a copy uses each.
        short_first_block_share: copies whose first block is cut short.
        seeded_share: blocks whose first token is visible.
        fully_masked_share: blocks with nothing visible but the seed; the others draw a noise level.
    """

    block_lengths: tuple[int, ...] = (4, 8, 16, 32)
    block_weights: tuple[int, ...] = (1, 2, 5, 2)
    short_first_block_share: float = 0.5
    seeded_share: float = 0.85
    fully_masked_share: float = 0.5
    min_noise: float = 0.1


TRI_MODE_NOISE = NoiseRecipe()


@dataclass(frozen=True)
class Example:
    """Token ids of one chat: the rendered prompt, and the answer with its EOS."""

    prompt_ids: list[int]
    answer_ids: list[int]


@dataclass(frozen=True)
class Batch:
    """One training step; T is the clean length plus all noisy slots.

    Attributes:
        clean_len: columns of the clean half.
        input_ids, positions: `[R, T]` int64.
        attn_mask: `[R, T, T]` bool.
        ar_rows, diffusion_rows: `[n]` int64 rows of the flattened `[R * T]` that carry a loss.
        ar_targets, diffusion_targets: `[n]` int64.
        diffusion_weights: `[n]` float32.
        block_ids: `[T]` int64, numbers the blocks of all noisy copies; -1 in the clean half.
    """

    clean_len: int
    input_ids: Tensor
    positions: Tensor
    attn_mask: Tensor
    ar_rows: Tensor
    ar_targets: Tensor
    diffusion_rows: Tensor
    diffusion_targets: Tensor
    diffusion_weights: Tensor
    block_ids: Tensor


def encode(tokenizer: PreTrainedTokenizerBase, tasks: list[Task], rng: random.Random | None = None) -> list[Example]:
    """Render tasks as chats; with `rng`, some get a system prompt and some the thinking form."""
    texts: list[str] = []
    for task in tasks:
        messages, answer, thinking = task.messages, task.answer, False
        if rng is not None and rng.random() < _SYSTEM_SHARE:
            messages = [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}, *messages]
        if rng is not None and rng.random() < _THINKING_SHARE:
            answer, thinking = f"{thought_of(task)}\n</think>{answer}", True
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, enable_thinking=thinking
        )
        texts += [str(prompt), answer]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [Example(prompt, [*answer, EOS_ID]) for prompt, answer in zip(ids[::2], ids[1::2], strict=True)]


def chunk(
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    index: int,
    recipe: NoiseRecipe = TRI_MODE_NOISE,
    task_names: tuple[str, ...] = TASK_NAMES,
) -> list[Batch]:
    """The `index`-th run of batches of a training seed: in turn one of short answers, one of long ones.

    Two bins save most of the padding, and still every step meets every task.
    """
    rng = random.Random(f"chunk-{seed}-{index}")
    tasks = generate("train", rng.getrandbits(48), ROWS_PER_BATCH * BATCHES_PER_CHUNK, task_names)
    examples = encode(tokenizer, tasks, rng)
    examples.sort(key=lambda example: len(example.answer_ids))
    short, long = examples[: len(examples) // 2], examples[len(examples) // 2 :]
    rng.shuffle(short)
    rng.shuffle(long)
    batches: list[Batch] = []
    for first in range(0, len(short), ROWS_PER_BATCH):
        batches += [build(half[first : first + ROWS_PER_BATCH], rng, recipe) for half in (short, long)]
    return batches


def block_starts(num_slots: int, block_length: int, first_length: int) -> Tensor:
    """`[num_slots]` int64: where the block of each slot begins; the first block has `first_length` slots."""
    slots = torch.arange(num_slots)
    offset = block_length - first_length
    return ((slots + offset) // block_length * block_length - offset).clamp(min=0)


def build(examples: list[Example], rng: random.Random, recipe: NoiseRecipe = TRI_MODE_NOISE) -> Batch:
    """Lay out one batch with `NUM_NOISY_COPIES` noisy copies."""
    rows = len(examples)
    noise = torch.Generator().manual_seed(rng.getrandbits(48))
    prompt_lens = torch.tensor([len(example.prompt_ids) for example in examples])
    answer_lens = torch.tensor([len(example.answer_ids) for example in examples])
    clean_len = int((prompt_lens + answer_lens).max())
    clean = torch.full((rows, clean_len), EOS_ID)
    for i, example in enumerate(examples):
        ids = example.prompt_ids + example.answer_ids
        clean[i, : len(ids)] = torch.tensor(ids)

    columns = torch.arange(clean_len)
    copies = [_noisy_copy(clean, prompt_lens, answer_lens, recipe, rng, noise) for _ in range(NUM_NOISY_COPIES)]
    input_ids = torch.cat([clean, *(copy.input_ids for copy in copies)], dim=1)
    positions = torch.cat([columns.expand(rows, -1), *(copy.positions for copy in copies)], dim=1)
    attn_mask = torch.zeros(rows, input_ids.shape[1], input_ids.shape[1], dtype=torch.bool)
    attn_mask[:, :clean_len, :clean_len] = columns[None, :] <= columns[:, None]
    targets = torch.zeros_like(input_ids)
    weights = torch.zeros(input_ids.shape)
    block_ids = torch.full((input_ids.shape[1],), -1)
    start = clean_len
    for copy in copies:
        stop = start + copy.input_ids.shape[1]
        attn_mask[:, start:stop, :clean_len] = columns < (prompt_lens[:, None] + copy.starts)[:, :, None]
        attn_mask[:, start:stop, start:stop] = copy.starts[:, None] == copy.starts[None, :]
        targets[:, start:stop], weights[:, start:stop] = copy.targets, copy.weights
        block_ids[start:stop] = copy.block_ids + block_ids.max() + 1
        start = stop

    answered = (columns >= prompt_lens[:, None] - 1) & (columns < (prompt_lens + answer_lens)[:, None] - 1)
    row_starts = torch.arange(rows)[:, None] * input_ids.shape[1]
    ar_rows = (row_starts + columns)[answered]
    diffusion_rows = weights.flatten().nonzero().squeeze(1)
    return Batch(
        clean_len=clean_len,
        input_ids=input_ids,
        positions=positions,
        attn_mask=attn_mask,
        ar_rows=ar_rows,
        ar_targets=input_ids.flatten()[ar_rows + 1],
        diffusion_rows=diffusion_rows,
        diffusion_targets=targets.flatten()[diffusion_rows],
        diffusion_weights=weights.flatten()[diffusion_rows],
        block_ids=block_ids,
    )


@dataclass(frozen=True)
class _NoisyCopy:
    input_ids: Tensor  # [R, M]
    positions: Tensor  # [R, M]
    starts: Tensor  # [M], the slot in which the block of each slot begins
    block_ids: Tensor  # [M], 0 for the first block
    targets: Tensor  # [R, M]
    weights: Tensor  # [R, M], 0 where there is no loss


def _noisy_copy(
    clean: Tensor,
    prompt_lens: Tensor,
    answer_lens: Tensor,
    recipe: NoiseRecipe,
    rng: random.Random,
    noise: torch.Generator,
) -> _NoisyCopy:
    """Mask the answers block by block; the last block is filled up with EOS."""
    rows = clean.shape[0]
    block_length = rng.choices(recipe.block_lengths, recipe.block_weights)[0]
    short = rng.random() < recipe.short_first_block_share
    first_length = rng.randint(1, block_length) if short else block_length
    rest = max(int(answer_lens.max()) - first_length, 0)
    num_slots = first_length + -(-rest // block_length) * block_length
    slots = torch.arange(num_slots)
    starts = block_starts(num_slots, block_length, first_length)

    positions = prompt_lens[:, None] + slots
    padded = torch.cat([clean, clean.new_full((rows, num_slots), EOS_ID)], dim=1)
    targets = padded.gather(1, positions)

    block_ids = (starts[:, None] == starts.unique()[None, :]).int().argmax(1)  # [M]
    num_blocks = int(block_ids.max()) + 1
    level = recipe.min_noise + (1 - recipe.min_noise) * torch.rand(rows, num_blocks, generator=noise)
    level[torch.rand(rows, num_blocks, generator=noise) < recipe.fully_masked_share] = 1.0
    is_masked = torch.rand(rows, num_slots, generator=noise) < level[:, block_ids]
    seeded = torch.rand(rows, num_blocks, generator=noise) < recipe.seeded_share
    is_masked &= ~((slots == starts) & seeded[:, block_ids])

    is_tail = slots >= answer_lens[:, None]
    weights = torch.where(is_tail, _TAIL_WEIGHT, 1.0) * is_masked
    weights = weights * (starts < answer_lens[:, None])  # blocks that begin after the EOS are never decoded
    return _NoisyCopy(targets.masked_fill(is_masked, MASK_ID), positions, starts, block_ids, targets, weights)
