"""Every figure in README.md and the documentation is one of a committed result.

The blocks are as they would be generated, and README.md has no measured figure outside them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.source import tree

from benchmarks import figures


@pytest.mark.parametrize("path", figures.documents(), ids=lambda path: str(path.relative_to(tree.ROOT)))
def test_blocks_are_as_generated(path: Path) -> None:
    text = path.read_text()
    if not figures.BLOCK.search(text):
        assert "figures:" not in text or "<!-- figures:" not in text, "a block that is not closed"
        return
    assert figures.rewritten(text, figures.load_result()) == text, "run: python -m benchmarks.figures"


def test_no_figure_without_a_source() -> None:
    readme = tree.ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md")
    assert figures.unfounded(readme.read_text()) == []


def test_the_result_names_commit_date_and_machine() -> None:
    if not figures.RESULT.exists():
        pytest.skip("no result is committed: make bench")
    result = figures.load_result()
    assert result["commit"]
    assert result["date"]
    assert {"cpu", "cpus", "kernel", "python", "packages"} <= result["machine"].keys()
    assert all(len(situation["rounds"]) >= 5 for situation in result["situations"].values())


def test_a_figure_outside_the_blocks_is_found() -> None:
    block = "<!-- figures:echo -->\n0.37 µs\n<!-- /figures -->\n"
    assert figures.unfounded(f"{block}\nSpins for 50 µs. <!-- constant: one wake-up's cost -->\n") == []
    assert figures.unfounded(f"{block}\nA call takes 0.4 µs and moves 3 GB/s.\n") == ["0.4 µs", "3 GB/s"]
