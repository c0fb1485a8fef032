"""A call that goes wrong: wrong arguments, errors in the plugin, its death, its standstill. Over each transport."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.adversity.processes import gone, open_pidfds
from tests.adversity.running import Running
from tests.conformance.conftest import Gate
from tests.growing import growing_s
from tests.plugins.faults_api import Faults

import fastplug

FaultRow = Callable[..., None]
Start = Callable[..., fastplug.Client]

TRANSPORTS = ["shm", "socket", "grpc", "inproc"]
PROCESSES = TRANSPORTS[:3]
every_transport = pytest.mark.parametrize("transport", TRANSPORTS)
every_process = pytest.mark.parametrize("transport", PROCESSES)


def wait_stopped(pid: int | None) -> None:
    """Until this child of ours is stopped."""
    assert pid is not None
    status = Running(os.waitid, os.P_PID, pid, os.WSTOPPED).result()
    assert status is not None
    assert status.si_status == signal.SIGSTOP


def is_stopped(pid: int | None) -> bool:
    assert pid is not None
    return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is not None


def give_up_stopped(client: fastplug.Client, faults: Faults) -> fastplug.DeadlineExceeded:
    """What a call raises in which the plugin stops itself before the deadline comes."""
    for after_s in growing_s(0.2):
        error = Running(give_up, faults.stop_process, after_s).error()
        assert isinstance(error, fastplug.DeadlineExceeded), error
        if is_stopped(client.pid):
            break
    return error


# -- arguments and results


@every_transport
def test_a_wrong_argument(fault_row: FaultRow, start: Start, transport: str) -> None:
    client = start(transport)
    faults = client.dispense(Faults)
    calls = client.stats()["calls"]
    with pytest.raises(fastplug.ArgumentError) as caught:
        faults.echo(7)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)
    assert (caught.value.parameter, caught.value.expected) == ("x", "str")
    with pytest.raises(fastplug.ArgumentError) as unknown:
        faults.echo(y="a")  # type: ignore[call-arg]
    with pytest.raises(fastplug.ArgumentError) as cast:
        faults.plus_one(np.zeros(3, np.int64))  # type: ignore[arg-type]
    with pytest.raises(fastplug.ArgumentError) as objects:
        faults.keep(np.array([object()]))
    assert client.stats()["calls"] == calls  # nothing was sent
    assert faults.echo("a") == "a"
    if transport == "shm":
        fault_row("an argument of the wrong type", caught.value, do="argument 'x' must be str")
        fault_row("an argument that the method does not have", unknown.value, do="unexpected keyword argument 'y'")
        fault_row("an array of another dtype", cast.value, do="use .astype")
        fault_row("an array of objects", objects.value, do="Python objects do not travel")


@every_transport
def test_a_wrong_result(fault_row: FaultRow, start: Start, transport: str) -> None:
    faults = start(transport).dispense(Faults)
    with pytest.raises(fastplug.ResultError) as caught:
        faults.wrong_result()
    assert "int" in str(caught.value)
    assert faults.echo("a") == "a"
    if transport == "shm":
        fault_row("the handler returns what it did not declare", caught.value, do="correct the plugin")


@every_transport
@pytest.mark.parametrize(
    ("kind", "also"),
    [
        ("KeyError", KeyError),
        ("ValueError", ValueError),
        ("Unbuildable", ValueError),
        ("unprintable", fastplug.RemoteError),
        ("SystemExit", fastplug.RemoteError),
        ("KeyboardInterrupt", fastplug.RemoteError),
        ("StopIteration", fastplug.RemoteError),
    ],
)
def test_an_exception_in_the_plugin(fault_row: FaultRow, start: Start, transport: str, kind: str, also: type[Exception]) -> None:
    client = start(transport)
    faults = client.dispense(Faults)
    with pytest.raises(also) as caught:
        faults.fail(kind)
    error = caught.value
    assert isinstance(error, fastplug.RemoteError)
    assert isinstance(error, Exception)
    assert not isinstance(error, (StopIteration, SystemExit, KeyboardInterrupt))
    assert kind.lower() in error.type_name.lower()
    assert "in _raise" in error.remote_traceback
    assert "in _raise" in str(error)
    assert faults.echo("a") == "a"  # the plugin goes on
    if transport == "shm" and kind in ("KeyError", "SystemExit", "Unbuildable"):
        rebuilt = ", which cannot be rebuilt here" if kind == "Unbuildable" else ""
        do = "read the traceback of the plugin, which follows in the text"
        fault_row(f"a handler raises {kind}{rebuilt}", error, said=False, do=do)


# -- death


@every_process
@pytest.mark.parametrize(
    ("how", "ending"),
    [("SIGKILL", "signal 9 (SIGKILL)"), ("SIGSEGV", "signal 11 (SIGSEGV)"), ("SIGTERM", "signal 15 (SIGTERM)"), ("exit", "exit code 3")],
)
def test_the_plugin_dies_in_a_call(fault_row: FaultRow, start: Start, transport: str, how: str, ending: str) -> None:
    client = start(transport)
    faults = client.dispense(Faults)
    with pytest.raises(fastplug.PluginDied) as caught:
        faults.end_process(how)
    error = caught.value
    assert ending in str(error)
    assert error.returncode == (3 if how == "exit" else -signal.Signals[how])
    assert error.calling is not None
    assert "end_process" in error.calling
    assert error.stderr_tail[-1] == "last words"
    for _ in range(2):
        with pytest.raises((fastplug.PluginDied, fastplug.Closed)):
            faults.echo("a")
    client.kill()
    assert client.exited
    with pytest.raises((fastplug.PluginDied, fastplug.Closed)):
        faults.echo("a")
    if transport == "shm" and how in ("SIGKILL", "exit"):
        fault_row(f"the plugin dies in a call: {ending}", error, do="Start it again to go on.")


@every_process
def test_kill_minus_nine_while_a_call_waits(start: Start, transport: str, gate: Gate) -> None:
    client = start(transport)
    call = Running(client.dispense(Faults).gate, gate.path, "never")
    gate.wait_entered()
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    error = call.error()
    assert isinstance(error, fastplug.PluginDied), error
    assert "gate" in str(error)
    assert "signal 9 (SIGKILL)" in str(error)


@every_process
def test_the_plugin_dies_between_calls(fault_row: FaultRow, start: Start, transport: str) -> None:
    client = start(transport)
    faults = client.dispense(Faults)
    assert client.pid is not None
    with open_pidfds([client.pid]) as [pidfd]:
        os.kill(client.pid, signal.SIGKILL)
        assert gone(pidfd)
    with pytest.raises(fastplug.PluginDied) as caught:
        faults.echo("a")
    assert "signal 9 (SIGKILL)" in str(caught.value)
    with pytest.raises((fastplug.PluginDied, fastplug.Closed)):
        client.ping()
    client.kill()
    with pytest.raises((fastplug.PluginDied, fastplug.Closed)):
        client.dispense(Faults)
    if transport == "shm":
        fault_row("the plugin died before the call", caught.value, do="Start it again to go on.")


def test_received_arrays_outlive_the_plugin_and_lent_ones_come_back(start: Start) -> None:
    client = start("shm")
    faults = client.dispense(Faults)
    sent = client.empty(1 << 16)
    sent[:] = 1
    received = faults.plus_one(sent)
    assert faults.keep(sent) == 1
    assert client.stats()["lent"] >= 1
    with pytest.raises(fastplug.PluginDied):
        faults.end_process("SIGKILL")
    client.kill()
    assert float(received.sum()) == 2.0 * (1 << 16)
    assert not received.flags.writeable
    sent[:] = 3  # nobody reads it any more
    assert float(sent.sum()) == 3.0 * (1 << 16)


# -- standstill and deadlines


@every_process
def test_a_stopped_plugin_and_a_deadline(fault_row: FaultRow, start: Start, transport: str) -> None:
    client = start(transport, stop_timeout_s=0.2)
    faults = client.dispense(Faults)
    error = give_up_stopped(client, faults)
    assert isinstance(error, TimeoutError)
    with pytest.raises(fastplug.DeadlineExceeded) as ping:
        client.ping(timeout_s=0.1)
    client.kill()
    assert client.exited
    if transport == "shm":
        fault_row("no answer before the deadline", error, do="a late one will be dropped")
        fault_row("no answer to a ping", ping.value, do="it is stopped, or holds the GIL")


@every_process
def test_a_stopped_plugin_that_goes_on_answers_the_next_call(start: Start, transport: str) -> None:
    client = start(transport)
    faults = client.dispense(Faults)
    give_up_stopped(client, faults)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGCONT)
    assert faults.echo("mine") == "mine"  # never "went on"


@every_process
def test_kill_ends_a_stopped_plugin_while_a_call_waits(start: Start, transport: str) -> None:
    client = start(transport, stop_timeout_s=0.2)
    call = Running(client.dispense(Faults).stop_process)
    wait_stopped(client.pid)
    client.kill()
    assert isinstance(call.error(), (fastplug.Closed, fastplug.PluginDied))


@every_transport
def test_a_deadline_that_is_over_sends_nothing(fault_row: FaultRow, start: Start, transport: str) -> None:
    client = start(transport)
    faults = client.dispense(Faults)
    calls = client.stats()["calls"]
    with pytest.raises(fastplug.DeadlineExceeded) as caught, fastplug.deadline(after_s=-1):
        faults.echo("a")
    assert client.stats()["calls"] == calls
    if transport == "shm":
        fault_row("the deadline was over before the call", caught.value, do="nothing was sent")


@pytest.mark.parametrize("transport", ["shm", "socket", "inproc"])
def test_a_caller_that_queues_for_the_handle_has_its_deadline_too(fault_row: FaultRow, start: Start, transport: str, gate: Gate) -> None:
    faults = start(transport).dispense(Faults)
    first = Running(faults.gate, gate.path, "first")
    gate.wait_entered()
    with pytest.raises(fastplug.DeadlineExceeded) as caught, fastplug.deadline(after_s=0.1):
        faults.echo("second")
    gate.open()
    assert first.result() == "first"
    assert faults.echo("third") == "third"
    if transport == "socket":  # over shm it has a lane of its own, and waits in the plugin
        fault_row("the deadline ran out while other calls on the handle were under way", caught.value, do="nothing was sent")


@every_transport
def test_a_late_reply_is_dropped_and_its_arrays_come_back(start: Start, transport: str, gate: Gate) -> None:
    client = start(transport)
    faults = client.dispense(Faults)
    block = client.empty(1 << 14)
    block[:] = 1
    Running(gate.give_up, faults.gate_array, gate.path, block).result()
    gate.open()
    again = faults.plus_one(np.full(1 << 14, 5.0))
    assert float(again[0]) == 6.0
    if transport == "shm":
        del again
        stats = client.stats()
        assert stats["late_replies"] >= 1
        assert stats["lent"] == 0
        assert stats["arena"]["blocks_lent"] == 0


@pytest.mark.parametrize("transport", ["shm", "socket", "inproc"])
def test_many_late_replies_never_answer_a_later_call(start: Start, transport: str, gate: Gate) -> None:
    """Calls are given up at drawn moments: before the handler answers, while it does, after it did. Each answer is its own call's."""
    faults = start(transport).dispense(Faults)
    draw = random.Random(5)
    late = 0
    for number in range(60):
        text = f"answer {number}"
        opened_first = draw.random() < 0.5
        if opened_first:
            gate.open()
        try:
            with fastplug.deadline(after_s=draw.choice([0.0005, 0.002, 0.02])):
                assert faults.gate(gate.path, text) == text
        except fastplug.DeadlineExceeded as error:
            late += 1
            opened_first |= "nothing was sent" in str(error)
            if "nothing was sent" in str(error):
                continue
        if not opened_first:
            gate.open()
    assert late
    gate.open(200)
    assert faults.echo("the last") == "the last"


def test_many_abandoned_calls_fill_the_ring(fault_row: FaultRow, start: Start) -> None:
    """A plugin that is stopped takes nothing: when its ring is full, a call is refused in time, and all is well when it goes on."""
    client = start("shm")
    faults = client.dispense(Faults)
    give_up_stopped(client, faults)
    text = "x" * 12_000
    for _ in range(2000):
        error = Running(give_up, faults.echo, 0.005, text).error()
        assert isinstance(error, fastplug.DeadlineExceeded)
        if "ring is full" in str(error):
            break
    assert "its ring is full; nothing was sent" in str(error)
    fault_row("a plugin that takes no more calls, and a deadline", error, do="nothing was sent")
    assert client.pid is not None
    os.kill(client.pid, signal.SIGCONT)
    assert faults.echo("mine") == "mine"
    assert client.stats()["late_replies"] > 10


def give_up(function: Callable[..., Any], after_s: float, *args: Any) -> Any:
    with fastplug.deadline(after_s=after_s):
        return function(*args)


# -- memory


def test_who_keeps_more_than_the_arena_holds(fault_row: FaultRow, start: Start) -> None:
    client = start("shm", arena_limit_bytes=16 << 20)
    faults = client.dispense(Faults)
    for _ in range(40):  # the plugin alone: what it keeps beyond the arena are copies of its own
        faults.keep(client.empty(1 << 17))
    assert client.stats()["plugin_copies"] > 10
    assert faults.drop() == 40
    kept = []
    with pytest.raises(fastplug.ArenaExhausted) as caught:  # noqa: PT012  which call of the loop is the machine's affair
        for _ in range(40):
            kept.append(client.empty(1 << 17))
            faults.keep(kept[-1])
    assert isinstance(caught.value, MemoryError)
    do = "Drop arrays that are no longer needed on either side, or raise arena_limit_bytes."
    fault_row("host and plugin keep more arrays than fit into the arena", caught.value, do=do)
    assert faults.drop() == len(kept) > 5
    kept.clear()
    assert client.empty(1 << 17).size == 1 << 17


def test_blocks_that_do_not_come_back(fault_row: FaultRow, start: Start) -> None:
    client = start("shm")
    faults = client.dispense(Faults)
    ring = client.blocks(1 << 14, count=2, timeout_s=0.1)
    for _ in range(2):
        faults.keep(next(ring))
    with pytest.raises(fastplug.ArenaExhausted) as caught:
        next(ring)
    fault_row(
        "blocks() and a plugin that keeps them all", caught.value, do="Let the reader drop its arrays, or ask for more blocks (count=)."
    )


def test_a_copy_where_none_is_allowed(fault_row: FaultRow, start: Start) -> None:
    client = start("shm", strict_zero_copy=True)
    faults = client.dispense(Faults)
    with pytest.raises(fastplug.CopyRequired) as caught:
        faults.plus_one(np.zeros(1 << 14))
    assert float(faults.plus_one(client.empty(1 << 14)).size) == 1 << 14
    fault_row("strict_zero_copy and an array that would have to be copied", caught.value, do="client.empty")


# -- use from inside a call


@every_process
def test_a_call_from_a_signal_handler_of_the_thread_that_waits(fault_row: FaultRow, start: Start, transport: str, gate: Gate) -> None:
    if transport == "grpc":
        pytest.skip("one connection carries several calls at once there")
    faults = start(transport).dispense(Faults)
    caught: list[BaseException] = []

    def handler(number: int, frame: object) -> None:
        try:
            faults.echo("from the handler")
        except fastplug.LocalProtocolError as error:
            caught.append(error)
        gate.open()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        main = threading.main_thread().ident
        assert main is not None
        interrupter = Running(lambda: (gate.wait_entered(), signal.pthread_kill(main, signal.SIGUSR1)))
        assert faults.gate(gate.path, "mine") == "mine"
        interrupter.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(caught) == 1
    if transport == "shm":
        what = "a call from a signal handler of the thread that waits on the same handle"
        fault_row(what, caught[0], do="make the call after that one, or open a second handle")


@every_process
@pytest.mark.parametrize("stopped", [False, True], ids=["in order", "by force"])
def test_kill_ends_what_the_plugin_started(start: Start, transport: str, stopped: bool) -> None:
    """What is in its group always; what has a session of its own can be found only while its parent lives: when the end comes by force."""
    client = start(transport, stop_timeout_s=0.1 if stopped else 10)
    assert client.pid is not None
    with open_pidfds(client.dispense(Faults).children()) as [in_group, in_session]:
        if stopped:
            os.kill(client.pid, signal.SIGSTOP)
        client.kill()
        assert gone(in_group)
        if not stopped:
            signal.pidfd_send_signal(in_session, signal.SIGKILL)
        assert gone(in_session)
