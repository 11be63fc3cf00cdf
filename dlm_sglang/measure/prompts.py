"""Prompt sets of a load: the bundled held-out tasks, a JSONL file, or texts of given lengths."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlm_sglang.bundled.tasks import HELD_OUT_SEED, generate
from dlm_sglang.errors import SettingsError, shown

BUNDLED_SET = "bundled"
SYNTHETIC = "synthetic:"
NUM_BUNDLED = 64
_NUM_SYNTHETIC = 32
# Short words that a tokenizer trained on English usually keeps whole.
_WORDS = "the of and to in is you that it he was for on are as with his they at be this have from or one".split()


@dataclass(frozen=True)
class PromptSet:
    """Request bodies without model, sampling and decoding fields.

    Attributes:
        digest: of all bodies; runs on different prompts cannot be compared.
    """

    name: str
    bodies: tuple[Mapping[str, object], ...]

    @property
    def digest(self) -> str:
        text = json.dumps(self.bodies, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def take(self, count: int, start: int = 0) -> list[Mapping[str, object]]:
        """`count` bodies, starting over at the end."""
        return list(itertools.islice(itertools.cycle(self.bodies), start, start + count))


def load_prompts(source: str, max_tokens: int) -> PromptSet:
    """The prompts that a name, a file or `synthetic:IN,OUT` stands for.

    Raises:
        SettingsError: the file cannot be read or a line is not a prompt.
    """
    if source == BUNDLED_SET:
        tasks = generate("held-out", HELD_OUT_SEED, NUM_BUNDLED)
        return PromptSet(source, tuple({"messages": task.messages, "max_tokens": max_tokens} for task in tasks))
    if source.startswith(SYNTHETIC):
        return _synthetic(source)
    return _from_file(Path(source), max_tokens)


def _synthetic(source: str) -> PromptSet:
    """Texts of about IN tokens whose answers are made to have OUT: the server is told to ignore the end token."""
    try:
        num_in, num_out = (int(text) for text in source.removeprefix(SYNTHETIC).split(","))
    except ValueError:
        raise SettingsError(
            f"synthetic prompts are written {SYNTHETIC}IN,OUT, got {source!r}",
            code="prompts-malformed",
            hint="e.g. synthetic:512,128",
        ) from None
    rng = random.Random(f"{num_in}-{num_out}")
    bodies = []
    for _ in range(_NUM_SYNTHETIC):
        text = " ".join(rng.choices(_WORDS, k=num_in))
        messages = [{"role": "user", "content": text}]
        bodies.append({"messages": messages, "max_tokens": num_out, "ignore_eos": True})
    return PromptSet(source, tuple(bodies))


def _from_file(path: Path, max_tokens: int) -> PromptSet:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cannot read prompts from {path}: {error}",
            code="prompts-unreadable",
            hint=f"give {BUNDLED_SET}, {SYNTHETIC}IN,OUT, or a JSONL file",
        ) from None
    bodies = [_body(line, f"{path}:{number}", max_tokens) for number, line in enumerate(lines, start=1) if line.strip()]
    if not bodies:
        raise SettingsError(f"{path} holds no prompt", code="prompts-unreadable")
    return PromptSet(path.name, tuple(bodies))


def _body(line: str, where: str, max_tokens: int) -> Mapping[str, object]:
    try:
        given = json.loads(line)
    except ValueError:
        given = None
    if isinstance(given, str):
        given = {"prompt": given}
    if not isinstance(given, dict) or not ("messages" in given or isinstance(given.get("prompt"), str)):
        raise SettingsError(
            f'{where}: a prompt is {{"messages": [...]}} or {{"prompt": "..."}}, got {shown(line)}',
            code="prompts-malformed",
        )
    messages: Sequence[object] = given.get("messages") or [{"role": "user", "content": given["prompt"]}]
    return {"messages": messages, "max_tokens": given.get("max_tokens", max_tokens)}
