"""The skills of the bundled checkpoint: chat tasks whose answers can be checked.

Prompts are split by a hash of their text, so a held-out prompt is never trained on, whatever the
seed. Answers are full sentences, JSON or code, because a drafter has little to win on one word.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dlm_sglang.bundled.facts import FACTS, OPENINGS

Split = Literal["train", "held-out"]
Chat = list[dict[str, str]]
HELD_OUT_SEED = 20260
_HELD_OUT_SHARE_OF_256 = 26
_CHOICE_WEIGHTS = (42, 30, 14, 9, 5)
_ATTEMPTS_UNTIL_REPEAT = 5000

NAMES = (
    "Anna Ben Carla David Emma Felix Greta Hugo Ines Jonas Klara Leo Maria Nina Oscar Paula Rosa Simon Tara Victor"
).split()
CITIES = (
    "Oslo Paris Rome Berlin Madrid Vienna Prague Lisbon Dublin Athens Warsaw Zurich "
    "Boston Denver Tokyo Seoul Lima Cairo"
).split()
WORDS = (
    "apple river stone cloud green table horse light paper music bread glass night winter garden silver "
    "bridge forest window yellow candle island rocket pencil"
).split()
FUNCTIONS = "scale shift apply change update adjust convert compute modify process".split()
ARGUMENTS = "x y n value number amount".split()
OPERATIONS = {"adds": "+", "subtracts": "-", "multiplies by": "*", "divides by": "/"}
UNITS = {
    ("km", "m"): 1000,
    ("kg", "g"): 1000,
    ("l", "ml"): 1000,
    ("m", "cm"): 100,
    ("cm", "mm"): 10,
    ("euro", "cents"): 100,
}


@dataclass(frozen=True)
class Task:
    """One question with its answer; only `choose` has other right ones."""

    name: str
    prompt: str
    answer: str

    @property
    def messages(self) -> Chat:
        """The question as an OpenAI chat."""
        return [{"role": "user", "content": self.prompt}]


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    ones = a % 10 + b % 10
    carry = " + 1" if ones > 9 else ""
    tens = a // 10 + b // 10 + (ones > 9)
    answer = f"{a % 10} + {b % 10} = {ones}, {a // 10} + {b // 10}{carry} = {tens}, so {a} + {b} = {a + b}."
    return f"What is {a} + {b}?", answer


def _subtract(rng: random.Random) -> tuple[str, str]:
    b, a = sorted((rng.randint(10, 99), rng.randint(10, 99)))
    borrow = a % 10 < b % 10
    top = a % 10 + 10 * borrow
    less = " - 1" if borrow else ""
    tens = a // 10 - b // 10 - borrow
    answer = f"{top} - {b % 10} = {top - b % 10}, {a // 10} - {b // 10}{less} = {tens}, so {a} - {b} = {a - b}."
    return f"What is {a} - {b}?", answer


def _running_total(rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randint(1, 9) for _ in range(rng.randint(3, 5))]
    totals = [sum(numbers[: i + 1]) for i in range(len(numbers))]
    return (
        f"Give the running total of {', '.join(map(str, numbers))}.",
        f"The running total is {', '.join(map(str, totals))}, so the sum is {totals[-1]}.",
    )


def _sort(rng: random.Random) -> tuple[str, str]:
    numbers = rng.sample(range(10), rng.randint(4, 6))
    descending = rng.random() < 0.5
    ordered = sorted(numbers, reverse=descending)
    order = "descending" if descending else "ascending"
    return (
        f"Sort {', '.join(map(str, numbers))} in {order} order.",
        f"In {order} order the numbers are {', '.join(map(str, ordered))}.",
    )


def _reverse(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(WORDS, rng.randint(3, 5))
    backwards = words[::-1]
    return (
        f"Reverse the list: {', '.join(words)}.",
        f"The reversed list is {', '.join(backwards)}, starting with {backwards[0]}.",
    )


def _choose(rng: random.Random) -> tuple[str, str]:
    # The choice is free, but the rest must fit it: what filling all blanks at once gets wrong.
    # Uneven odds keep every greedy choice clear of numerical ties.
    words = rng.sample(WORDS, 5)
    first = rng.choices(words, _CHOICE_WEIGHTS)[0]
    return f"Choose from the list: {', '.join(words)}.", _chosen(words, first)


def _chosen(words: list[str], first: str) -> str:
    return f"The list starting with {first} is {', '.join([first, *(word for word in words if word != first)])}."


def _convert(rng: random.Random) -> tuple[str, str]:
    (big, small), factor = rng.choice(list(UNITS.items()))
    amount = rng.randint(2, 999)
    return (
        f"Convert {amount} {big} to {small}.",
        f"1 {big} is {factor} {small}, so {amount} {big} is {amount * factor} {small}.",
    )


def _json(rng: random.Random) -> tuple[str, str]:
    name, age, city = rng.choice(NAMES), rng.randint(18, 79), rng.choice(CITIES)
    sentence = rng.choice(
        [
            f"{name} is {age} years old and lives in {city}.",
            f"{name} lives in {city} and is {age} years old.",
            f"In {city} lives {name}, aged {age}.",
        ]
    )
    return f"Extract JSON: {sentence}", f'{{"name": "{name}", "age": {age}, "city": "{city}"}}'


def _code(rng: random.Random) -> tuple[str, str]:
    function, argument, number = rng.choice(FUNCTIONS), rng.choice(ARGUMENTS), rng.randint(2, 99)
    verb, sign = rng.choice(list(OPERATIONS.items()))
    return (
        f"Write a Python function {function}({argument}) that {verb} {number}.",
        f"```python\ndef {function}({argument}):\n    return {argument} {sign} {number}\n```",
    )


def _fact(rng: random.Random) -> tuple[str, str]:
    questions, answer = rng.choice(FACTS)
    return rng.choice(OPENINGS).format(rng.choice(questions)), answer


MAKERS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "add": _add,
    "subtract": _subtract,
    "running-total": _running_total,
    "sort": _sort,
    "reverse": _reverse,
    "convert": _convert,
    "json": _json,
    "code": _code,
    "fact": _fact,
    "choose": _choose,
}
TASK_NAMES = tuple(MAKERS)


def split_of(prompt: str) -> Split:
    """The side of the split that a prompt is on, from its text alone."""
    held_out = hashlib.sha256(prompt.encode()).digest()[0] < _HELD_OUT_SHARE_OF_256
    return "held-out" if held_out else "train"


def generate(split: Split, seed: int, n: int, names: tuple[str, ...] = TASK_NAMES) -> list[Task]:
    """`n` tasks of one side of the split, the task names taken in turn; equal arguments give equal tasks.

    Held-out prompts are all different until a task has no more (there are 31 held-out facts), then
    it starts over; training prompts may repeat.
    """
    rng = random.Random(f"{split}-{seed}")
    tasks: list[Task] = []
    seen: dict[str, set[str]] = {name: set() for name in names}
    while len(tasks) < n:
        name = names[len(tasks) % len(names)]
        for attempt in itertools.count():
            prompt, answer = MAKERS[name](rng)
            if attempt > _ATTEMPTS_UNTIL_REPEAT:
                seen[name].clear()
            if split_of(prompt) == split and prompt not in seen[name]:
                break
        if split == "held-out":
            seen[name].add(prompt)
        tasks.append(Task(name, prompt, answer))
    return tasks


def check(task: Task, completion: str) -> bool:
    """Whether a completion is the task's answer, apart from white space; of `choose`, any right answer."""
    accepted = [task.answer]
    if task.name == "choose":
        words = task.prompt.removeprefix("Choose from the list: ").rstrip(".").split(", ")
        accepted = [_chosen(words, first) for first in words]
    return completion.strip() in accepted


def held_out_prompts(n: int) -> list[tuple[str, Chat, str]]:
    """The first `n` of a fixed list of held-out prompts: task name, chat messages, expected answer.

    The expected answer of `choose` is the likeliest one, which starts with the first word.
    """
    prompts: list[tuple[str, Chat, str]] = []
    for task in generate("held-out", HELD_OUT_SEED, n):
        words = task.prompt.removeprefix("Choose from the list: ").rstrip(".").split(", ")
        answer = _chosen(words, words[0]) if task.name == "choose" else task.answer
        prompts.append((task.name, task.messages, answer))
    return prompts
