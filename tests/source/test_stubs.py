"""Every compiled module has a .pyi, and mypy's stubtest finds no difference between the two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.source import tree

pytest.importorskip("mypy")

MODULES = [pytest.param(pyx, id=tree.module_name(pyx)) for pyx in tree.compiled_modules()]
ALLOWED = tree.ROOT / "tests" / "source" / "stubtest-allowlist.txt"


@pytest.mark.parametrize("pyx", MODULES)
def test_compiled_module_has_a_stub(pyx: Path) -> None:
    assert pyx.with_suffix(".pyi").exists(), f"{pyx.relative_to(tree.ROOT)} has no .pyi beside it"


def stubtest(*modules: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(tree.SOURCES), "MYPYPATH": str(tree.SOURCES)}
    options = ["--concise", "--allowlist", str(ALLOWED), "--ignore-unused-allowlist"]
    command = [sys.executable, "-m", "mypy.stubtest", *options, *modules]
    return subprocess.run(command, cwd=tree.ROOT, env=environment, capture_output=True, text=True, check=False)


def test_stubs_match_their_modules() -> None:
    """All in one run, since most of its time is mypy's own start."""
    with_stub = [tree.module_name(pyx) for pyx in tree.compiled_modules() if pyx.with_suffix(".pyi").exists()]
    assert with_stub
    done = stubtest(*with_stub)
    assert done.returncode == 0, done.stdout + done.stderr
