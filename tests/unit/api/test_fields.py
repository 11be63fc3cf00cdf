"""The table of OpenAI's fields by mode."""

from __future__ import annotations

from pathlib import Path

from dlm_sglang.api import fields
from dlm_sglang.api.fields import CHAT, COMPLETIONS, OPENAI_FIELDS, Cell, cell
from dlm_sglang.api.unsupported import REFUSALS_ON, Surface
from dlm_sglang.param_table import GenerationMode

PAGE = Path(__file__).parents[3] / "docs" / "fields.md"
# What OpenAI and the issue list; the table may hold more.
WANTED = (
    "temperature top_p top_k min_p seed n presence_penalty frequency_penalty repetition_penalty logit_bias stop "
    "stop_token_ids logprobs top_logprobs response_format regex ebnf tools tool_choice stream stream_options "
    "max_tokens max_completion_tokens ignore_eos echo suffix"
).split()


def test_docs_fields_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == fields.markdown(), "run: dlm-sglang params --fields > docs/fields.md"


def test_every_field_of_openais_has_a_row() -> None:
    assert set(WANTED) <= {field.name for field in OPENAI_FIELDS}
    titles = [field.title for field in OPENAI_FIELDS]
    assert len(titles) == len(set(titles))


def test_a_cell_says_what_the_refusals_say() -> None:
    refused = {row.name for row in REFUSALS_ON[Surface.OPENAI]}
    for field in OPENAI_FIELDS:
        for route in field.examples:
            for mode in GenerationMode:
                found = cell(field, route, mode)
                assert found is not None
                if found is Cell.REFUSED:
                    assert refused & set(field.examples[route])
    echo = next(field for field in OPENAI_FIELDS if field.name == "echo")
    assert cell(echo, CHAT, GenerationMode.DIFFUSION) is None
    assert cell(echo, COMPLETIONS, GenerationMode.DIFFUSION) is Cell.WORKS


def test_the_routes_of_a_field_agree() -> None:
    """The page shows one row for both."""
    for field in OPENAI_FIELDS:
        for mode in GenerationMode:
            assert len({cell(field, route, mode) for route in field.examples}) == 1
