"""The tasks of the bundled checkpoint: right answers, a clean split, a stable list."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from dlm_sglang.bundled.tasks import TASK_NAMES, Task, check, generate, held_out_prompts, split_of


def of_task(name: str, n: int = 50) -> list[Task]:
    return generate("train", 3, n, (name,))


def test_equal_seeds_give_equal_tasks_and_other_seeds_others() -> None:
    assert generate("train", 1, 40) == generate("train", 1, 40)
    assert generate("train", 1, 40) != generate("train", 2, 40)


def test_no_training_prompt_is_held_out() -> None:
    held_out = {task.prompt for task in generate("held-out", 5, 300)}
    assert len(held_out) == 300
    assert all(split_of(prompt) == "held-out" for prompt in held_out)
    assert not held_out & {task.prompt for task in generate("train", 5, 4000)}


def test_held_out_facts_start_over_when_they_run_out() -> None:
    facts = generate("held-out", 5, 40, ("fact",))
    assert len({task.prompt for task in facts[:31]}) == 31
    assert len({task.prompt for task in facts}) == 31


def test_every_task_takes_its_turn() -> None:
    assert [task.name for task in generate("held-out", 0, 2 * len(TASK_NAMES))] == [*TASK_NAMES, *TASK_NAMES]


def test_held_out_list_is_stable() -> None:
    # The end-to-end tests and the published table stand on this list: a change here means new weights and numbers.
    prompts = held_out_prompts(120)
    assert prompts[:60] == held_out_prompts(60)
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    assert digest[:16] == "2872176b2292c571"


@pytest.mark.parametrize("name", ["add", "subtract"])
def test_every_equation_of_an_arithmetic_answer_holds(name: str) -> None:
    for task in of_task(name, 200):
        equations = re.findall(r"([\d +-]+) = (\d+)", task.answer)
        assert len(equations) == 3
        for left, right in equations:
            assert sum(int(term) for term in re.findall(r"[+-]?\d+", left.replace(" ", ""))) == int(right)


def test_json_answers_parse_and_hold_what_the_sentence_says() -> None:
    for task in of_task("json"):
        answer = json.loads(task.answer)
        assert list(answer) == ["name", "age", "city"]
        assert all(str(value) in task.prompt for value in answer.values())


def test_code_answers_compile_and_compute() -> None:
    for task in of_task("code"):
        source = task.answer.removeprefix("```python\n").removesuffix("\n```")
        scope: dict[str, object] = {}
        exec(source, scope)
        assert len(scope) == 2


def test_sorted_and_reversed_answers_use_the_numbers_and_words_of_the_prompt() -> None:
    for task in of_task("sort"):
        given, answered = (re.findall(r"\d", text) for text in (task.prompt, task.answer))
        assert answered == sorted(given, reverse="descending" in task.prompt)
    for task in of_task("reverse"):
        given = task.prompt.removeprefix("Reverse the list: ").rstrip(".").split(", ")
        assert task.answer.startswith(f"The reversed list is {', '.join(reversed(given))}, starting")


def test_choose_accepts_any_first_word_but_only_with_the_fitting_rest() -> None:
    task = Task("choose", "Choose from the list: a, b, c.", "The list starting with b is b, a, c.")
    assert check(task, task.answer)
    assert check(task, "The list starting with a is a, b, c.")
    assert not check(task, "The list starting with a is b, a, c.")
    assert not check(task, "The list starting with d is d, a, b, c.")
    assert all(check(task, task.answer) for task in of_task("choose"))
    name, messages, answer = held_out_prompts(10)[9]
    assert name == "choose"
    assert answer.startswith(f"The list starting with {messages[0]['content'].split(': ')[1].split(',')[0]} is")


def test_check_accepts_the_answer_only() -> None:
    task = of_task("convert", 1)[0]
    assert check(task, task.answer + "\n")
    assert not check(task, task.answer.replace("is", "was", 1))
