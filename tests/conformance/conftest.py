"""One suite over every transport: what a call means must not depend on what carries it.

A test that takes ``transport`` (or a fixture that does) runs over each; ``@pytest.mark.transports("shm", ...)`` names fewer.
``pytest -m shm`` (socket, grpc, inproc) runs one. With ``FASTPLUG_TEST_RUNNER=bubblewrap`` the plugins run in a sandbox.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.growing import growing_s
from tests.plugins.flows_api import Flows

import fastplug
from fastplug.contrib.bubblewrap import Bubblewrap

ROOT = Path(__file__).parents[2]
TRANSPORTS = ("shm", "socket", "grpc", "inproc")
# A watchdog for an event that a correct plugin causes at once.
EVENT_TIMEOUT_S = 60.0
# Of a call that is to be given up: short enough to wait for, and tried again with more where the plugin needs more to begin.
GIVE_UP_S = 0.1


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "transports(*names): the transports that a conformance test is about; all four by default")
    for name in TRANSPORTS:
        config.addinivalue_line("markers", f"{name}: conformance over {name}")


def _there(transport: str) -> bool:
    """False only while a protocol is not part of the package."""
    if transport != "grpc":
        return True
    try:
        return hasattr(importlib.import_module("fastplug.protocols.grpc"), "PROTOCOL")
    except ModuleNotFoundError:
        return False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "transport" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("transports")
    names = [name for name in (marker.args if marker else TRANSPORTS) if _there(name)]
    params = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in names]
    metafunc.parametrize("transport", params, indirect=True, scope="module")


@pytest.fixture(scope="module")
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def plugin_environment() -> dict[str, str]:
    """What a plugin process needs so that it finds fastplug and ``tests`` where this process has them."""
    paths = [str(ROOT), str(Path(fastplug.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def started(transport: str, implementation: type | str, **options: Any) -> fastplug.Client:
    """A Client of the plugin that serves ``implementation``: a class of tests.plugins, or ``module:attribute``."""
    named = implementation if isinstance(implementation, str) else f"{implementation.__module__}:{implementation.__qualname__}"
    options.setdefault("name", named.rpartition(":")[2])
    if transport == "inproc":
        return fastplug.start(named, transport="inproc", **options)
    options["env"] = {**plugin_environment(), **options.get("env", {})}
    if os.environ.get("FASTPLUG_TEST_RUNNER") == "bubblewrap":
        # the folders of the tests' FIFOs and files are in the temporary directory
        options.setdefault("runner", Bubblewrap(writable=[tempfile.gettempdir(), "/tmp"]))
    return fastplug.start([sys.executable, "-m", "fastplug.entry", named], transport=transport, **options)  # type: ignore[arg-type]


@pytest.fixture
def start(transport: str) -> Iterator[Callable[..., fastplug.Client]]:
    """``start(implementation, **options)`` over the test's transport; the plugins end with the test."""
    with contextlib.ExitStack() as stack:

        def make(implementation: type | str, **options: Any) -> fastplug.Client:
            return stack.enter_context(started(transport, implementation, **options))

        yield make


class Gate:
    """Two FIFOs: a handler that passes says so, and waits until the test opens. See tests/plugins/gate.py."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder)
        self._fds = []
        for name in ("entered", "opened"):
            os.mkfifo(folder / name)
            self._fds.append(os.open(folder / name, os.O_RDWR | os.O_CLOEXEC))  # both ends: nobody's open() blocks, and nothing is lost

    def wait_entered(self) -> None:
        """Returns when one more handler has entered."""
        assert select.select([self._fds[0]], [], [], EVENT_TIMEOUT_S)[0], "no handler came to the gate"
        assert os.read(self._fds[0], 1)

    def give_up(self, call: Callable[..., Any], *args: Any) -> fastplug.DeadlineExceeded:
        """What ``call`` raises when its deadline comes while its handler waits here."""
        for after_s in growing_s(GIVE_UP_S):
            with pytest.raises(fastplug.DeadlineExceeded) as caught, fastplug.deadline(after_s=after_s):
                call(*args)
            if select.select([self._fds[0]], [], [], 0)[0]:
                self.wait_entered()
                break
        return caught.value

    def open(self, count: int = 1) -> None:
        """Lets as many handlers pass, now or later."""
        os.write(self._fds[1], b"." * count)

    def close(self) -> None:
        """Whoever still waits sees the end of the file."""
        for fd in self._fds:
            os.close(fd)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    folder = tmp_path / "gate"
    folder.mkdir()
    made = Gate(folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def flows_client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, "tests.plugins.flows_plugin:PlainFlows") as client:
        client.dispense(Flows)  # its threads start here
        yield client


@pytest.fixture
def flows(flows_client: fastplug.Client) -> Iterator[Flows]:
    """A handle of the plugin that all tests of the module share, which must be usable afterwards."""
    handle: Flows = flows_client.dispense(Flows)
    handle.log()
    yield handle
    gc.collect()
    assert handle.double(4) == 8, "the handle is not usable any more"
    handle.drop()
