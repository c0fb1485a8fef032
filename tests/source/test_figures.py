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
    assert figures.rewritten(text) == text, "run: python -m benchmarks.figures"


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


def test_the_calls_between_go_and_python_are_in_the_documentation() -> None:
    """Every pair, size and number of callers that was measured, and what to do while none was."""
    text = (tree.ROOT / "docs" / "go-plugin.md").read_text()
    assert "<!-- figures:interop -->" in text
    result = figures.load_result(figures.INTEROP)
    if not result:
        assert "python -m benchmarks.interop" in figures.interop(result)
        return
    assert len(result["rounds"]) >= 5
    for cell, row in result["median"].items():
        for pair, samples in row.items():
            [line] = [line for line in text.splitlines() if line.startswith(f"| {pair} |")]
            shown = figures.duration(samples["p50_ns"]) if cell.endswith(", 1 caller") else f"{samples['per_s']:,.0f} /s"
            assert f" {shown} |" in line


def test_a_table_of_calls_between_go_and_python() -> None:
    machine = {"cpu": "c", "cpus": 2, "kernel": "k", "python": "p", "packages": {}}
    cells = {
        f"64B, {callers}": {"Go host, Go plugin, plain": {"p50_ns": 81_000.0, "per_s": 12_345.6}} for callers in ("1 caller", "16 callers")
    }
    result = {"machine": machine, "date": "2026-01-01", "commit": "0" * 40, "rounds": [cells], "median": cells}
    made = figures.interop(result).splitlines()
    assert made[0] == "| a call and its answer | 64B, p50 | 64B, 16 callers |"
    assert made[2] == "| Go host, Go plugin, plain | 81 µs | 12,346 /s |"
    assert "benchmarks/results/interop.json" in made[-1]


def test_a_figure_outside_the_blocks_is_found() -> None:
    block = "<!-- figures:echo -->\n0.37 µs\n<!-- /figures -->\n"
    assert figures.unfounded(f"{block}\nSpins for 50 µs. <!-- constant: one wake-up's cost -->\n") == []
    assert figures.unfounded(f"{block}\nA call takes 0.4 µs and moves 3 GB/s.\n") == ["0.4 µs", "3 GB/s"]
