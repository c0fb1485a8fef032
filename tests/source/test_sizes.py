"""Files under 500 lines, functions under 70. An exception is a row here with its reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.source import tree

FILE_LINES = 500
FUNCTION_LINES = 70
# path or path::function -> the sentence that says why it is better long.
LONG_BECAUSE: dict[str, str] = {}

SUFFIXES = (".py", ".pyx", ".pxd", ".pyi", ".h", ".c", ".go")
FILES = [path for path in tree.tracked_files() if path.suffix in SUFFIXES]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines) of each function. In Cython by indentation, in C and Go not at all: their files are small."""
    text = path.read_text()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1
    elif path.suffix == ".pyx":
        yield from cython_functions(text.splitlines())


def cython_functions(lines: list[str]) -> Iterator[tuple[str, int]]:
    start = re.compile(r"^(\s*)(?:c?p?def|async def)\s+(?!class\b|struct\b|enum\b|extern\b|union\b)[^=]*?(\w+)\(")
    for first, line in enumerate(lines):
        if not (match := start.match(line)):
            continue
        end = first + 1
        inside = re.compile(rf"^(\s*$|{match[1]}[\s)])")
        while end < len(lines) and inside.match(lines[end]):
            end += 1
        while not lines[end - 1].strip():
            end -= 1
        yield match[2], end - first


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(tree.ROOT)))
def test_sizes(path: Path) -> None:
    name = str(path.relative_to(tree.ROOT))
    length = len(path.read_text().splitlines())
    assert length < FILE_LINES or name in LONG_BECAUSE, f"{name} has {length} lines"
    long = [f"{function} has {lines} lines" for function, lines in functions(path) if lines >= FUNCTION_LINES]
    unexcused = [text for text in long if f"{name}::{text.split()[0]}" not in LONG_BECAUSE]
    assert not unexcused, f"{name}: {unexcused}"


def test_exceptions_are_needed_and_explained() -> None:
    for place, reason in LONG_BECAUSE.items():
        assert reason.endswith("."), f"{place}: the reason is a sentence"
        assert (tree.ROOT / place.split("::")[0]).exists(), f"{place} is gone: take it off the list"


def test_there_is_no_grab_bag() -> None:
    bags = [str(path.relative_to(tree.ROOT)) for path in FILES if path.stem.strip("_") in ("utils", "util", "helpers", "misc", "common")]
    assert not bags, f"name these after what is in them: {bags}"
