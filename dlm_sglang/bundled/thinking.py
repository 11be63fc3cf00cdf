"""What surrounds a task in a chat: system prompts and the one-line thought of the thinking mode."""

from __future__ import annotations

from dlm_sglang.bundled.tasks import Task

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful, concise assistant.",
    "Answer briefly.",
    "Be precise.",
)
_THOUGHTS = {
    "add": "This is an addition, I go digit by digit.",
    "subtract": "This is a subtraction, I go digit by digit.",
    "running-total": "I add the numbers one by one.",
    "sort": "I put the numbers in order.",
    "reverse": "I read the list from the end.",
    "convert": "I look up the factor and multiply.",
    "json": "I need the name, the age and the city.",
    "code": "This is a short Python function.",
    "fact": "This is a question about the project.",
    "choose": "I put one of the list in order.",
}


def thought_of(task: Task) -> str:
    """What the model writes between `<think>` and `</think>` when thinking is on."""
    return _THOUGHTS[task.name]
