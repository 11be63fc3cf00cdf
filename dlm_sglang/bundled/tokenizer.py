"""The bundled tokenizer: byte-level BPE over the task corpus, with the special ids and chat form of NLD."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dlm_sglang.bundled.tasks import TASK_NAMES, generate
from dlm_sglang.bundled.thinking import SYSTEM_PROMPTS, thought_of

BOS_ID, IM_START_ID, EOS_ID, THINK_ID, END_THINK_ID, MASK_ID = 1, 10, 11, 12, 13, 100
VOCAB_SIZE = 1088
# `choose` came later and lives on the words of the others.
_CORPUS_TASK_NAMES = tuple(name for name in TASK_NAMES if name != "choose")
CONTEXT_LENGTH = 4096
_NUM_SPECIALS = MASK_ID + 1
_NAMED_SPECIALS = {
    0: "<unk>",
    BOS_ID: "<s>",
    IM_START_ID: "<|im_start|>",
    EOS_ID: "<|im_end|>",
    THINK_ID: "<think>",
    END_THINK_ID: "</think>",
}
# Reasoning parsers look for these in the decoded text, so decoding must not drop them.
_VISIBLE_IDS = (THINK_ID, END_THINK_ID)

CHAT_TEMPLATE = """\
{%- set enable_thinking = enable_thinking | default(false) -%}
{%- set truncate_history_thinking = truncate_history_thinking if truncate_history_thinking is defined else true -%}
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is not none -%}{%- for part in content -%}{{ part.text if part.type == 'text' else '' }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set first = messages[0] if messages else none -%}
{{- '<|im_start|>system\\n' -}}
{%- if first and first.role == 'system' -%}{{- text(first.content) -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- for message in messages -%}
{%- if not (loop.first and message.role == 'system') -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' -}}
{%- set content = text(message.content) -%}
{%- if message.role == 'assistant' -%}
{%- if '</think>' in content and truncate_history_thinking -%}
{{- '<think></think>' ~ content.split('</think>')[-1] -}}
{%- elif '</think>' in content -%}{{- content -}}
{%- else -%}{{- '<think></think>' ~ content -}}
{%- endif -%}
{%- else -%}{{- content -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' ~ ('<think>\\n' if enable_thinking else '<think></think>') -}}
{%- endif -%}
"""


def train_tokenizer(folder: Path, seed: int) -> PreTrainedTokenizerFast:
    """Train the BPE on task texts and write tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Args:
        folder: an existing folder.
        seed: of the corpus; equal seeds write equal files.

    Returns:
        The tokenizer as `AutoTokenizer` loads it from the folder.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[_NAMED_SPECIALS.get(i, f"<SPECIAL_{i}>") for i in range(_NUM_SPECIALS)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}")
    _write(folder, json.loads(tokenizer.to_str()))
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _corpus(seed: int) -> list[str]:
    """Questions, answers and the words around them, as plain texts."""
    texts = ["system\n", "user\n", "assistant\n", *SYSTEM_PROMPTS] * 50
    for task in generate("train", seed, 9000, _CORPUS_TASK_NAMES):
        texts += [task.prompt, task.answer, thought_of(task)]
    return texts


def _write(folder: Path, tokenizer_json: dict[str, object]) -> None:
    """Write the tokenizer's files; the thinking tags become visible, the rest of the specials stay hidden."""
    added = tokenizer_json["added_tokens"]
    assert isinstance(added, list)
    for token in added:
        token["special"] = token["id"] not in _VISIBLE_IDS
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_LENGTH,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
