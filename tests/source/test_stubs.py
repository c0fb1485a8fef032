"""Every compiled module has a .pyi, and mypy's stubtest finds no difference between the two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.source import tree

pytest.importorskip("mypy")


@pytest.mark.parametrize("pyx", tree.compiled_modules(), ids=lambda pyx: str(pyx.relative_to(tree.PACKAGE)))
def test_compiled_module_has_a_stub(pyx: Path) -> None:
    assert pyx.with_suffix(".pyi").exists(), f"{pyx.relative_to(tree.ROOT)} has no .pyi beside it"


@pytest.mark.parametrize("pyx", tree.compiled_modules(), ids=lambda pyx: str(pyx.relative_to(tree.PACKAGE)))
def test_stub_matches_the_module(pyx: Path) -> None:
    if not pyx.with_suffix(".pyi").exists():
        pytest.fail(f"{pyx.relative_to(tree.ROOT)} has no .pyi beside it")
    environment = os.environ | {"PYTHONPATH": str(tree.SOURCES), "MYPYPATH": str(tree.SOURCES)}
    # __test__ and __reduce_cython__ and the like are Cython's own.
    allowed = ["--allowlist", str(tree.ROOT / "tests" / "source" / "stubtest-allowlist.txt"), "--ignore-unused-allowlist"]
    command = [sys.executable, "-m", "mypy.stubtest", "--concise", *allowed, tree.module_name(pyx)]
    done = subprocess.run(command, cwd=tree.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
