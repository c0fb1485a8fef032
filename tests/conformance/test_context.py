"""What a handler learns of its call, and what a caller that gave up learns of the handler."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.conformance.conftest import Gate, started
from tests.growing import growing_s
from tests.plugins.context_api import Contexts
from tests.plugins.context_plugin import ContextPlugin
from tests.tracing import TRACED, not_traced

import fastplug

SHORT_S = 0.2
LONG_S = 3600.0
# Of a call that a correct plugin answers at once; the error says where it hangs.
WATCHDOG_S = 60.0
# Of what needs a plugin that gets a CPU within the 100 ms that it has to say where it is.
TRIES = 20


def told(error: fastplug.DeadlineExceeded) -> bool:
    """Whether the plugin itself did; else it was busy, and a signal handler may have."""
    return bool(error.plugin_stack) and "all threads" not in error.plugin_stack


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, ContextPlugin) as client:
        client.ping()  # gRPC connects with its first call
        plugin: Contexts = client.dispense(Contexts)  # the thread for callbacks starts here
        if not TRACED:
            call_back(plugin)
        yield client


def call_back(plugin: Contexts) -> None:
    """What carries callbacks that call, while their host's thread waits, is there from the first one on."""

    def tell() -> int:
        plugin.add(1, 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return 1

    plugin.keep(tell)
    with pytest.raises(KeyboardInterrupt):
        plugin.ask_kept(False)
    with fastplug.deadline(after_s=WATCHDOG_S):
        while not plugin.seen():
            pass


@pytest.fixture
def plugin(client: fastplug.Client) -> Contexts:
    return client.dispense(Contexts)


def test_metadata_reaches_the_handler(plugin: Contexts) -> None:
    assert plugin.metadata() == {}
    with fastplug.metadata({"trace-id": "4bf9 2f!"}, tenant="acme"):
        assert plugin.metadata() == {"trace-id": "4bf9 2f!", "tenant": "acme"}
        with fastplug.metadata(tenant="other", empty=""):
            assert plugin.metadata() == {"trace-id": "4bf9 2f!", "tenant": "other", "empty": ""}
            assert plugin.add(2, 3) == 5
        assert plugin.metadata() == {"trace-id": "4bf9 2f!", "tenant": "acme"}
    assert plugin.metadata() == {}
    with fastplug.metadata({f"k{i}": "v" * 100 for i in range(60)}):
        assert len(plugin.metadata()) == 60


@pytest.mark.transports("grpc")  # over the others a host that sends more breaks the protocol: tests/unit/test_call_frames.py
@pytest.mark.parametrize(
    ("headers", "fits"),
    [
        ([("key", "x" * 8189)], True),
        ([(f"k{n}", "") for n in range(64)], True),
        ([("key", "x" * 8190)], False),
        ([("key-bin", b"x" * 8190)], False),
        ([(f"k{n}", "") for n in range(65)], False),
        ([("same", "")] * 65, False),
        ([("key", "x" * (64 << 10))], False),
    ],
)
def test_a_host_of_another_make_may_not_send_more_metadata(
    client: fastplug.Client, headers: list[tuple[str, str | bytes]], fits: bool
) -> None:
    import grpc

    call = client.channel.unary_unary("/test.context.v1.Context/Metadata")
    if fits:
        assert headers[-1][0].encode() in call(b"", metadata=headers)
    else:
        with pytest.raises(grpc.RpcError, match="64 of 8192") as caught:
            call(b"", metadata=headers)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(b"") == b""


def test_the_remaining_time_reaches_the_handler(plugin: Contexts) -> None:
    assert plugin.remaining_s() is None
    assert not plugin.cancelled()
    with fastplug.deadline(after_s=LONG_S):
        remaining_s = plugin.remaining_s()
        assert remaining_s is not None
        assert LONG_S - 60 < remaining_s <= LONG_S * 1.01  # grpcio rounds up
        assert not plugin.cancelled()


def test_a_deadline_reaches_a_handler_that_runs_and_its_stack_comes_back(plugin: Contexts, gate: Gate) -> None:
    for _ in range(TRIES):
        error = gate.give_up(plugin.sleep_until_cancelled, gate.path)
        gate.open()
        assert plugin.seen() == ["callback", "cancelled True"]
        if told(error):
            break
    assert error.plugin_stack.splitlines()[0].endswith("in sleep_until_cancelled")
    assert "in pass_gate" in error.plugin_stack
    assert error.no_stack == ""
    assert "Where the plugin was" in str(error)
    assert plugin.add(1, 1) == 2


def test_ctrl_c_reaches_a_handler_that_runs(plugin: Contexts, gate: Gate) -> None:
    gate.open()
    main = threading.main_thread().ident
    assert main is not None
    sender = threading.Thread(target=lambda: (gate.wait_entered(), signal.pthread_kill(main, signal.SIGINT)))
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        plugin.sleep_until_cancelled(gate.path)
    sender.join()
    with fastplug.deadline(after_s=WATCHDOG_S):
        assert plugin.seen() == ["callback", "cancelled True"]


def test_a_call_that_was_given_up_before_its_handler_began_does_not_begin(plugin: Contexts, gate: Gate) -> None:
    gate.give_up(plugin.sleep_until_cancelled, gate.path)
    for after_s in growing_s(SHORT_S):
        with pytest.raises(fastplug.DeadlineExceeded) as second, fastplug.deadline(after_s=after_s):
            plugin.sleep_until_cancelled(gate.path)
        if told(second.value):
            break
    assert "has not begun" in second.value.plugin_stack
    assert "pass_gate" in second.value.plugin_stack, "what keeps it from beginning"
    gate.open()
    assert plugin.seen() == ["callback", "cancelled True"], "of the first alone"


@pytest.mark.transports("shm", "socket")
def test_a_call_that_is_answered_while_it_is_cancelled_is_cancelled(transport: str, gate: Gate) -> None:
    """The plugin's thread that is asked for the stack says nothing, and the answer comes meanwhile: it is late."""
    with started(transport, ContextPlugin) as client:
        plugin = client.dispense(Contexts)
        call = fastplug.submit(plugin.answer_when_cancelled, gate.path)
        gate.open()
        gate.wait_entered()
        reader = threading.Thread(target=call.exception)
        reader.start()
        assert call.cancel()
        plugin.let_go()  # behind the answer
        reader.join(WATCHDOG_S)
        assert not reader.is_alive()
        assert call.cancelled()
        with pytest.raises(fastplug.Cancelled, match="cancelled by its caller"):
            call.result()


@not_traced
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("how", ["cancel", "interrupt"])
def test_a_handler_is_told_that_it_was_cancelled_while_another_ran_on_top_of_it(
    plugin: Contexts, gate: Gate, early: bool, how: str
) -> None:
    """It waits for a callback that was kept; that makes a call, which the one worker runs on top."""
    plugin.keep(lambda: plugin.stand(gate.path))
    if how == "cancel":
        call = fastplug.submit(plugin.ask_kept, early)
        gate.wait_entered()
        assert call.cancel()
    else:
        main = threading.main_thread().ident
        assert main is not None
        sender = threading.Thread(target=lambda: (gate.wait_entered(), signal.pthread_kill(main, signal.SIGINT)))
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            plugin.ask_kept(early)
        sender.join()
    gate.open()
    with fastplug.deadline(after_s=WATCHDOG_S):
        while not (seen := plugin.seen()):  # which may run on top of it, too
            pass
    assert seen == ["asked, cancelled True"]


@pytest.mark.transports("grpc")  # where the plugin keeps the deadline by a clock of its own
def test_a_plugin_that_gives_up_at_the_deadline_before_its_host(plugin: Contexts) -> None:
    with pytest.raises(fastplug.DeadlineExceeded), fastplug.deadline(after_s=SHORT_S):
        plugin.give_up_first(iter([1]))


@pytest.mark.transports("shm", "socket", "grpc")
def test_the_stack_also_while_c_code_holds_the_gil(transport: str, gate: Gate) -> None:
    for _ in range(TRIES):
        with started(transport, ContextPlugin) as client:
            plugin = client.dispense(Contexts)
            gate.open()
            error = gate.give_up(plugin.hold_the_gil, gate.path, 10**12)
            assert not client.exited
        if transport == "grpc" or error.plugin_stack:  # a signal handler has 50 ms, too
            break
    if transport == "grpc":
        assert "C code holds its GIL" in error.no_stack
    else:
        assert "in hold_the_gil" in error.plugin_stack
        assert "C code holds the GIL" in error.plugin_stack


@pytest.mark.transports("shm", "socket", "grpc")
def test_a_stopped_process_has_no_stack_and_it_is_said(client: fastplug.Client, plugin: Contexts) -> None:
    assert client.pid is not None
    os.kill(client.pid, signal.SIGSTOP)
    try:
        for after_s in growing_s(SHORT_S):
            with pytest.raises(fastplug.DeadlineExceeded) as caught, fastplug.deadline(after_s=after_s):
                plugin.add(1, 2)
            if "nothing was sent" not in str(caught.value):
                break
    finally:
        os.kill(client.pid, signal.SIGCONT)
    assert caught.value.plugin_stack == ""
    assert "is stopped" in caught.value.no_stack
    assert caught.value.no_stack in str(caught.value)
    assert plugin.add(1, 2) == 3


def test_outside_of_a_handler_there_is_no_context() -> None:
    with pytest.raises(fastplug.LocalProtocolError, match="for handlers"):
        fastplug.context()


@pytest.mark.parametrize(
    "wrong",
    [
        {"Upper": "x"},
        {"": "x"},
        {"grpc-timeout": "1"},
        {"fastplug-host": "1"},
        {"raw-bin": "x"},
        {"content-type": "x"},
        {"user-agent": "x"},
        {"te": "trailers"},
        {"connection": "close"},
        {"key": "é"},
        {"key": " x"},
        {"key": "a\nb"},
        {"key": "x" * 9000},
        {f"k{i}": "" for i in range(65)},
    ],
)
def test_metadata_that_some_protocol_cannot_carry_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(fastplug.ConfigError, match="metadata"), fastplug.metadata(wrong):
        pass
    not_a_text: Callable[..., object] = fastplug.metadata
    with pytest.raises(fastplug.ConfigError), not_a_text(number=3):  # type: ignore[attr-defined]
        pass
