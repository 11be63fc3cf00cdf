"""The generated parts of the documentation pages."""

from __future__ import annotations

import re

import pytest

from dlm_sglang.measure import docs_plots

MARKER = re.compile(r"<!-- (begin|end) ([\w-]+) -->")


def test_only_what_stands_between_known_markers_is_replaced() -> None:
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y -->\nkept\n<!-- end y -->\n"
    filled = docs_plots.fill(page, {"x": "new\n"})
    assert "<!-- begin x -->\n```text\nnew\n```\n<!-- end x -->" in filled
    assert "kept" in filled
    assert docs_plots.fill(filled, {"x": "new\n"}) == filled


@pytest.mark.parametrize("name", docs_plots.PAGES)
def test_pages_have_pairs_of_markers_filled_from_results_and_plots_that_exist(name: str) -> None:
    page = (docs_plots.DOCS / name).read_text(encoding="utf-8")
    found = MARKER.findall(page)
    assert [kind for kind, _ in found] == ["begin", "end"] * (len(found) // 2)
    assert not re.search(r"<!-- begin ([\w-]+) -->\s*<!-- end", page), "run: make docs-plots"
    for plot in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page):
        path = docs_plots.DOCS / plot
        assert path.is_file(), plot
        assert path.stat().st_size < 150_000


def test_the_computed_page_is_current() -> None:
    blocks = docs_plots.plan_blocks()
    page = (docs_plots.DOCS / "memory.md").read_text(encoding="utf-8")
    assert docs_plots.fill(page, blocks) == page, "run: make docs-plots ARGS=--reuse"
