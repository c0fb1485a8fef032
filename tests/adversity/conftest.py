"""Faults: what they are called with, and where they are written down."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.adversity.faults import DOCUMENT, Row, document, row_of, rows_in
from tests.adversity.running import Running, started
from tests.conformance.conftest import Gate

import fastplug

recorded: set[Row] = set()
incomplete: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-faults", action="store_true", help="write docs/faults.md from what the tests of tests/adversity meet")


def pytest_deselected(items: list[pytest.Item]) -> None:
    incomplete.extend(item.nodeid for item in items if "fault_row" in getattr(item, "fixturenames", ()))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The comparison with docs/faults.md comes last: before it, every test has recorded its rows."""
    items.sort(key=lambda item: item.name == "test_the_document_is_what_the_tests_recorded")
    folder = Path(__file__).parent
    wanted = {path.name for path in folder.glob("test_*.py") if "fault_row" in path.read_text()}
    if wanted - {item.path.name for item in items if item.path.parent == folder}:
        incomplete.append("files")
    incomplete.extend(arg for arg in config.args if "::" in arg)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and "fault_row" in getattr(item, "fixturenames", ()):
        incomplete.append(item.nodeid)
    return report


@pytest.fixture
def fault_row(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``fault_row(what, error, do=...)``: one row of docs/faults.md. ``do`` is the part of the text that says what to do."""
    committed = rows_in(DOCUMENT.read_text()) if DOCUMENT.exists() else set()
    writing = request.config.getoption("--write-faults", default=False)

    def record(what: str, error: BaseException, *, do: str, said: bool = True) -> None:
        assert not said or do in str(error), f"the text does not say {do!r}: {error}"
        row = row_of(what, error, do)
        recorded.add(row)
        assert writing or row.line() in committed, f"docs/faults.md lacks\n{row.line()}\nTo write it: pytest tests/adversity --write-faults"

    return record


@pytest.fixture
def start() -> Iterator[Callable[..., fastplug.Client]]:
    """``start(transport, **options)``; the plugins end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(started(*args, **options))


@pytest.fixture
def running() -> Callable[..., Running[Any]]:
    """``running(function, *args)``: see Running."""
    return Running


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    folder = tmp_path / "gate"
    folder.mkdir()
    made = Gate(folder)
    yield made
    made.close()


@pytest.fixture
def faults_document(request: pytest.FixtureRequest) -> tuple[str, str] | None:
    """What docs/faults.md is and what it should be; None when not every test that writes a row has run and passed."""
    should_be = document(recorded)
    if request.config.getoption("--write-faults", default=False):
        DOCUMENT.write_text(should_be)
    elif incomplete:
        return None
    return DOCUMENT.read_text(), should_be
