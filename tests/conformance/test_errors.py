"""Whose fault it was, in the type; what to do, in the text; and the handle works afterwards."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.conformance.conftest import Gate, started
from tests.plugins.flows_api import Flows
from tests.plugins.flows_plugin import PlainFlows
from tests.plugins.probe_api import Note, Probe
from tests.plugins.probe_plugin import ProbePlugin

import fastplug

SOON_S = 60.0


@pytest.fixture(scope="module")
def probe(transport: str) -> Iterator[Probe]:
    with started(transport, ProbePlugin) as client:
        yield client.dispense(Probe)


# -- arguments

BAD_CALLS: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "wrong type": (lambda p: p.add("1"), "x", "int"),
    "wrong type by keyword": (lambda p: p.add(x=1.5), "x", "float"),
    "wrong keyword-only type": (lambda p: p.add(1, scale="2"), "scale", "str"),
    "missing": (lambda p: p.add(), "x", ""),
    "missing beside a keyword": (lambda p: p.add(y=1), "x", ""),
    "unexpected": (lambda p: p.add(1, z=2), "z", ""),
    "twice": (lambda p: p.add(1, x=2), "x", ""),
    "too many": (lambda p: p.add(1, 2, 3.0), "", "3"),
    "inside a dataclass": (lambda p: p.note(Note(5)), "note", "text"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_wrong_argument_is_named_and_nothing_is_sent(probe: Probe, case: str) -> None:
    call, parameter, said = BAD_CALLS[case]
    before = probe.calls()
    with pytest.raises(fastplug.ArgumentError) as caught:
        call(probe)
    error = caught.value
    assert isinstance(error, TypeError)
    assert isinstance(error, fastplug.PluginError)
    assert error.parameter == parameter
    assert said in error.got or said in str(error)
    assert f"test.probe/1.{'note' if case == 'inside a dataclass' else 'add'}" in str(error)
    assert probe.calls() == before


def test_arguments_bind_as_in_a_plain_call(probe: Probe) -> None:
    assert probe.add(1) == 11.0
    assert probe.add(1, 2) == 3.0
    assert probe.add(y=2, x=5) == 7.0
    assert probe.add(1, scale=2.0) == 22.0
    assert probe.add(scale=3.0, x=1, y=0) == 3.0
    assert probe.note(Note("a")) == Note("a", 3)


# -- what a handler raises

BUILTINS = [
    "ValueError", "KeyError", "IndexError", "TypeError", "RuntimeError", "ZeroDivisionError", "OSError", "AttributeError",
    "NotImplementedError", "ArithmeticError", "AssertionError", "RecursionError", "MemoryError", "TimeoutError",
    "ConnectionError", "EOFError", "ImportError", "NameError", "FileNotFoundError", "PermissionError", "BufferError",
    "SyntaxError", "UserWarning",
]  # fmt: skip


@pytest.mark.parametrize("name", BUILTINS)
def test_a_builtin_exception_is_raised_as_both(probe: Probe, name: str) -> None:
    import builtins

    cls = getattr(builtins, name)
    with pytest.raises(fastplug.RemoteError) as caught:
        probe.raises(name, ["it"])
    error = caught.value
    assert isinstance(error, cls)
    assert type(error).__name__ == f"Remote{cls.__name__}"
    assert error.type_name == name
    assert error.message == str(cls("it"))
    assert error.args == cls("it").args
    assert error.method == "test.probe/1.raises"
    assert "The plugin's traceback" in str(error)
    assert "probe_plugin.py" in error.remote_traceback
    assert "in raises" in str(error)


@pytest.mark.parametrize(
    "name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "StopAsyncIteration", "Exception", "BaseException"]
)
def test_what_would_end_or_confuse_the_host_is_only_a_remote_error(probe: Probe, name: str) -> None:
    with pytest.raises(fastplug.RemoteError) as caught:
        probe.raises(name, ["it"])
    assert type(caught.value) is fastplug.RemoteError
    assert caught.value.type_name == name
    assert probe.add(1) == 11.0


def test_a_subclass_of_system_exit_is_only_a_remote_error(probe: Probe) -> None:
    with pytest.raises(fastplug.RemoteError) as caught:
        probe.odd_error("leaves")
    assert type(caught.value) is fastplug.RemoteError
    assert "Leaves" in caught.value.type_name


def test_a_class_of_the_plugin_is_its_nearest_builtin_base(probe: Probe) -> None:
    with pytest.raises(LookupError) as caught:
        probe.odd_error("odd")
    error = caught.value
    assert isinstance(error, fastplug.RemoteError)
    assert type(error).__name__ == "RemoteLookupError"
    assert error.type_name == "tests.plugins.probe_plugin.Odd"


def test_a_class_that_cannot_be_rebuilt_becomes_a_base_that_can(probe: Probe) -> None:
    with pytest.raises(UnicodeError) as caught:
        probe.odd_error("unicode")
    assert isinstance(caught.value, fastplug.RemoteError)
    assert caught.value.type_name == "UnicodeDecodeError"
    assert "can't decode byte 0xff" in caught.value.message


def test_an_os_error_keeps_its_number(probe: Probe) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        probe.odd_error("os")
    assert isinstance(caught.value, fastplug.RemoteError)
    assert caught.value.errno == 2
    assert caught.value.message == "[Errno 2] gone: '/nowhere'"


@pytest.mark.parametrize("kind", ["unspeakable", "group", "long", "surrogate", "bigint"])
def test_an_odd_exception_is_still_an_exception(probe: Probe, kind: str) -> None:
    with pytest.raises(fastplug.RemoteError) as caught:
        probe.odd_error(kind)
    assert str(caught.value)
    assert repr(caught.value)
    assert kind == "long" or "probe_plugin.py" in caught.value.remote_traceback  # its head is cut off
    assert len(caught.value.remote_traceback) <= 64 << 10
    assert probe.add(1) == 11.0


def test_the_remote_traceback_has_the_causes(probe: Probe) -> None:
    with pytest.raises(ValueError, match="at the bottom") as caught:
        probe.raises_deep(3)
    text = str(caught.value)
    assert "KeyError: 'the cause'" in text
    assert "direct cause" in text
    assert text.count("in raises_deep") >= 4
    assert "fastplug/" not in text.partition("The plugin's traceback")[2]  # the machinery below the handler is nobody's business


def test_an_endless_recursion_ends_in_an_error(probe: Probe) -> None:
    with pytest.raises(RecursionError) as caught:
        probe.raises_deep(-1)
    assert isinstance(caught.value, fastplug.RemoteError)
    assert probe.add(1) == 11.0


@pytest.mark.parametrize(("kind", "said"), [("none", "None"), ("str", "str"), ("float", "float")])
def test_a_wrong_result_is_the_handlers_fault(probe: Probe, kind: str, said: str) -> None:
    with pytest.raises(fastplug.ResultError, match=said) as caught:
        probe.wrong_result(kind)
    assert "test.probe/1.wrong_result" in str(caught.value)
    assert "int" in str(caught.value)
    assert not isinstance(caught.value, fastplug.ArgumentError)


# -- ends


def test_a_killed_handle_is_closed(start: Callable[..., fastplug.Client]) -> None:
    client = start(ProbePlugin)
    probe = client.dispense(Probe)
    assert probe.add(1) == 11.0
    client.kill()
    client.kill()
    for use in (lambda: probe.add(1), client.ping, client.stats, lambda: client.dispense(Probe), lambda: client.empty(5)):
        with pytest.raises(fastplug.Closed):
            use()
    assert client.exited


def test_kill_ends_a_waiting_call(start: Callable[..., fastplug.Client], gate: Gate) -> None:
    client = start(ProbePlugin, stop_timeout_s=0.2)
    probe = client.dispense(Probe)
    caught: list[BaseException] = []

    def call() -> None:
        try:
            probe.through(gate.path, 1)
        except BaseException as error:  # noqa: BLE001  what comes is the question
            caught.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    gate.wait_entered()
    client.kill()
    caller.join()
    gate.open()  # in-process the handler is still there
    assert [type(error) for error in caught] == [fastplug.Closed]


def test_kill_ends_streams_and_maps(start: Callable[..., fastplug.Client]) -> None:
    client = start(PlainFlows)
    flows: Flows = client.dispense(Flows)
    running = [threading.Semaphore(0) for _ in range(2)]
    caught: list[BaseException] = []

    def iterate(made: Iterator[object], runs: threading.Semaphore) -> None:
        try:
            for _ in made:
                runs.release()
        except BaseException as error:  # noqa: BLE001  what comes is the question
            caught.append(error)

    iterators = flows.count(10**9), fastplug.map(flows.double, itertools.count())
    threads = [threading.Thread(target=iterate, args=pair) for pair in zip(iterators, running, strict=True)]
    for thread, runs in zip(threads, running, strict=True):
        thread.start()
        assert runs.acquire(timeout=SOON_S)
    client.kill()
    for thread in threads:
        thread.join(SOON_S)
    assert [(type(error), "kill()" in str(error)) for error in caught] == [(fastplug.Closed, True)] * 2


@pytest.mark.transports("shm", "socket", "grpc")
@pytest.mark.parametrize(("how", "said"), [("exit", "exit code 3"), ("kill", "SIGKILL"), ("segv", "SIGSEGV")])
def test_a_plugin_that_dies_in_a_call_says_how(start: Callable[..., fastplug.Client], how: str, said: str) -> None:
    client = start(ProbePlugin)
    probe = client.dispense(Probe)
    with pytest.raises(fastplug.PluginDied, match=said) as caught:
        probe.die(how)
    assert caught.value.calling == "test.probe/1.die"
    assert "last words" in caught.value.stderr_tail
    assert caught.value.returncode == {"exit": 3, "kill": -signal.SIGKILL, "segv": -signal.SIGSEGV}[how]
    with pytest.raises(fastplug.PluginDied) as later:
        probe.add(1)
    assert later.value.returncode == caught.value.returncode
    assert client.exited


@pytest.mark.transports("shm", "socket", "grpc")
def test_a_plugin_killed_from_outside_ends_a_waiting_call(start: Callable[..., fastplug.Client], gate: Gate) -> None:
    client = start(ProbePlugin)
    probe = client.dispense(Probe)
    killer = threading.Thread(target=lambda: (gate.wait_entered(), os.kill(client.pid or 0, signal.SIGKILL)))
    killer.start()
    with pytest.raises(fastplug.PluginDied, match="SIGKILL") as caught:
        probe.through(gate.path, 1)
    killer.join()
    assert caught.value.calling == "test.probe/1.through"
