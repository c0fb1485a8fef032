"""Links of the documentation lead somewhere, and its programs type-check and run.

Each ```python block of README.md and docs/ stands below a comment that says what it is:

    <!-- file: dsp_api.py -->     a module; the blocks of one document are written into one folder under these names
    <!-- run: pipeline.py -->     the same, and it is also run there and must end with exit code 0
    <!-- fragment -->             a piece that only shows something: it must be syntactically right
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.source import tree

DOCUMENTS = [path for path in tree.tracked_files() if path.suffix == ".md"]
BLOCK = re.compile(
    r"(?:^<!--\s*(?P<mark>file|run|fragment)(?::\s*(?P<name>\S+))?\s*-->\s*\n)?^```python[^\n]*\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|^\[[^\]]+\]:\s*(?P<reference>\S+)", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# A watchdog: a program of the documentation starts a plugin or two and takes a second.
RUN_S = 120


@dataclass(frozen=True)
class Snippet:
    mark: str | None
    name: str | None
    code: str


def name_of(path: Path) -> str:
    return str(path.relative_to(tree.ROOT))


def snippets(path: Path) -> list[Snippet]:
    return [Snippet(match["mark"], match["name"], match["code"]) for match in BLOCK.finditer(path.read_text())]


WITH_PROGRAMS = [path for path in DOCUMENTS if any(snippet.name for snippet in snippets(path))]


def anchors(path: Path) -> set[str]:
    """The names that headings get on the usual forges: lower case, spaces to hyphens, punctuation dropped."""
    headings = re.findall(r"^#+\s+(.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for match in LINK.finditer(FENCE.sub("", path.read_text())):
        target = match["target"] or match["reference"]
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = path.parent / file if file else path
        if not goal.exists() or (anchor and goal.suffix == ".md" and anchor not in anchors(goal)):
            broken.append(target)
    assert not broken, f"{name_of(path)}: {broken}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_program_says_what_it_is(path: Path) -> None:
    for snippet in snippets(path):
        assert snippet.mark, f"{name_of(path)}: no <!-- file: -->, <!-- run: --> or <!-- fragment --> above\n{snippet.code}"
        ast.parse(textwrap.dedent(snippet.code))


@pytest.fixture(params=WITH_PROGRAMS, ids=name_of)
def programs(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[Snippet]]:
    """A folder that holds the files of one document."""
    found = [snippet for snippet in snippets(request.param) if snippet.name]
    for snippet in found:
        assert snippet.name is not None
        (tmp_path / snippet.name).write_text(snippet.code)
    return tmp_path, found


def run(command: list[str], folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(tree.SOURCES), "MYPYPATH": str(tree.SOURCES)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_programs_pass_mypy(programs: tuple[Path, list[Snippet]]) -> None:
    pytest.importorskip("mypy")
    folder, found = programs
    cache = str(tree.ROOT / "build" / "mypy-docs")
    run([sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache, *(str(s.name) for s in found)], folder)


def test_programs_pass_pyright(programs: tuple[Path, list[Snippet]]) -> None:
    pytest.importorskip("pyright")
    folder, _ = programs
    config = folder / "pyrightconfig.json"
    config.write_text(f'{{"extraPaths": ["{tree.SOURCES}"], "reportMissingModuleSource": false}}')
    run([sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(config)], folder)


def test_programs_run(programs: tuple[Path, list[Snippet]]) -> None:
    folder, found = programs
    for snippet in found:
        if snippet.mark == "run":
            run([sys.executable, str(snippet.name)], folder)


def test_shell_scripts_are_executable() -> None:
    scripts = [path for path in tree.tracked_files() if path.parent.name in ("ci", ".ci")]
    assert scripts
    closed = [name_of(path) for path in scripts if not os.access(path, os.X_OK)]
    assert not closed, f"not executable: {closed}"
    if shell := shutil.which("sh"):
        for path in scripts:
            if path.read_text().startswith("#!/bin/sh"):
                subprocess.run([shell, "-n", str(path)], check=True)
