"""The shipped checkpoint: format, tokenizer, chat template, and that it can do its tasks."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dlm_sglang.bundled import decode
from dlm_sglang.bundled.evaluate import BUNDLED_FOLDER, Setting, measure
from dlm_sglang.bundled.export import CONFIG
from dlm_sglang.bundled.tasks import generate
from dlm_sglang.bundled.tokenizer import BOS_ID, EOS_ID, MASK_ID, VOCAB_SIZE, train_tokenizer
from dlm_sglang.reference.model import NldModel, load_model

LARGEST_PACKAGE_BYTES = 12 * 2**20
HELLO = [{"role": "user", "content": "Hello"}]

pytestmark = [
    # transformers warns about the model type, which only our server registers.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BUNDLED_FOLDER)


@pytest.fixture(scope="module")
def model() -> NldModel:
    return load_model(BUNDLED_FOLDER)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options))


def test_config_on_disk_is_the_one_in_the_code() -> None:
    assert json.loads((BUNDLED_FOLDER / "config.json").read_text(encoding="utf-8")) == CONFIG
    assert CONFIG["head_dim"] == 64 != 192 // 4


def test_weights_are_bf16_and_the_package_is_small() -> None:
    with safe_open(BUNDLED_FOLDER / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    assert sum(file.stat().st_size for file in BUNDLED_FOLDER.rglob("*") if file.is_file()) <= LARGEST_PACKAGE_BYTES


def test_special_ids_are_those_of_the_large_models(tokenizer: PreTrainedTokenizerBase) -> None:
    names = {0: "<unk>", BOS_ID: "<s>", 10: "<|im_start|>", EOS_ID: "<|im_end|>", 12: "<think>", 13: "</think>"}
    assert tokenizer.convert_ids_to_tokens(list(names)) == list(names.values())
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BOS_ID, EOS_ID)
    assert tokenizer.mask_token is None
    assert tokenizer.convert_ids_to_tokens(MASK_ID) == "<SPECIAL_100>"
    assert len(tokenizer) == VOCAB_SIZE


def test_digits_are_single_tokens_and_any_text_survives(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer("4096", add_special_tokens=False)["input_ids"]) == 4
    text = "Größe 4096 \u2192 \u4f60\u597d\n\tdef f(x): return x"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert min(ids) > MASK_ID


def test_training_the_tokenizer_again_gives_the_same_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    train_tokenizer(tmp_path, seed=0)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (BUNDLED_FOLDER / name).read_bytes()


def test_default_prompt_is_the_one_of_the_specification(tokenizer: PreTrainedTokenizerBase) -> None:
    expected = (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think></think>"
    )
    assert render(tokenizer, HELLO) == expected
    assert render(tokenizer, HELLO, enable_thinking=True).endswith("<|im_start|>assistant\n<think>\n")


def test_system_message_and_history_are_rendered_once(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [
        {"role": "system", "content": "Be precise."},
        *HELLO,
        {"role": "assistant", "content": "<think>\nhm\n</think>Hi"},
        *HELLO,
    ]
    text = render(tokenizer, chat)
    assert text.startswith("<|im_start|>system\nBe precise.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n")
    assert text.count("<|im_start|>system") == 1
    assert "<|im_start|>assistant\n<think></think>Hi<|im_end|>\n" in text
    assert "<think>\nhm\n</think>Hi" in render(tokenizer, chat, truncate_history_thinking=False)


def test_it_answers_held_out_prompts(model: NldModel, tokenizer: PreTrainedTokenizerBase) -> None:
    tasks = generate("held-out", 1, 40)
    autoregressive = measure(model, tokenizer, tasks, Setting("autoregressive", None, "", decode.autoregressive))
    assert autoregressive.exact_match >= 0.95
    speculative = measure(
        model,
        tokenizer,
        tasks,
        Setting("self_speculation", 16, "", lambda rows: decode.self_speculation(rows, block_length=16)),
    )
    assert speculative.exact_match == autoregressive.exact_match
    assert speculative.tokens_per_forward >= 4


def test_its_drafter_adapts_every_layer(model: NldModel) -> None:
    assert model.has_lora
    assert model.layers[0].self_attn.o_proj.lora_scale == 4.0
