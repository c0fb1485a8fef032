"""A host that forks while it has a plugin: the child can do nothing to it, says so, ends silently, and reads what was received."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.adversity.hosts import run_host

import fastplug

IN_CHILD = """
import json, re, traceback
import numpy as np

def in_child(work):
    \"\"\"Runs work() in a forked child that ends in order, with its atexit handlers; what it returned.\"\"\"
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(9)
        os.close(reader)
        os.close(writer)
        sys.exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    return json.loads(answer)

def refusals():
    \"\"\"What each use of the plugin raises.\"\"\"
    found = []
    for use in (lambda: faults.echo("a"), lambda: client.dispense(Faults), lambda: client.ping(), lambda: client.stats(),
                lambda: client.empty(3), lambda: next(client.blocks(3))):
        try:
            use()
        except Exception as error:
            found.append([type(error).__name__, str(error).replace(str(client._owner_pid), "PARENT").replace(str(os.getpid()), "CHILD")])
        else:
            found.append(["nothing", ""])
    client.kill()           # does nothing here
    return found
"""


@pytest.mark.parametrize("transport", ["shm", "socket", "grpc"])
def test_a_live_handle_in_a_forked_child(fault_row: Callable[..., None], transport: str) -> None:
    done = run_host(
        IN_CHILD
        + """
client = started(sys.argv[1])
faults = client.dispense(Faults)
assert faults.echo("a") == "a"
for name, text in in_child(refusals):
    assert name == "Closed" and "PARENT" in text and "CHILD" in text, (name, text)
    print(text)
assert faults.echo("b") == "b"      # the parent goes on
client.ping()
client.kill()
""",
        transport,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    if transport == "shm":
        text = done.stdout.splitlines()[0].replace("PARENT", "1").replace("CHILD", "2")
        fault_row("a handle is used in a forked child", fastplug.Closed(text), do="Open the plugin again here")


def test_received_arrays_in_a_forked_child() -> None:
    """They are readable there; when they go in the child, the parent's leases stay."""
    done = run_host(
        IN_CHILD
        + """
client = started("shm")
faults = client.dispense(Faults)
sent = client.empty(50_000)
sent[:] = 1
received = [faults.plus_one(sent)]
faults.keep(sent)
before = client.stats()["lent"]

def read_and_drop():
    total = float(received[0].sum())
    received.clear()
    return total

assert in_child(read_and_drop) == 100_000.0
assert float(received[0].sum()) == 100_000.0
for _ in range(20):
    again = faults.plus_one(np.zeros(50_000))       # would be written where received lies, if the child had given it back
assert float(received[0].sum()) == 100_000.0
assert client.stats()["lent"] == before
client.kill()
""",
    )
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_child_that_lives_longer_than_the_host() -> None:
    """It holds copies of the host's descriptors, and no plugin stays alive for that."""
    done = run_host(
        """
        client = started("shm")
        plugin = os.pidfd_open(client.pid)
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)              # until the parent is gone
            import select
            select.select([plugin], [], [])
            os.write(1, b"the plugin is gone\\n")
            os._exit(0)
        os.close(reader)
        os._exit(0)
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("the plugin is gone\n", "", 0)


def test_a_fork_while_another_thread_is_in_a_call(tmp_path: pytest.TempPathFactory) -> None:
    done = run_host(
        IN_CHILD
        + """
from pathlib import Path
from tests.conformance.conftest import Gate
gate = Gate(Path(sys.argv[1]))
client = started("shm")
faults = client.dispense(Faults)
call = Running(faults.gate, gate.path, "mine")
gate.wait_entered()
import warnings
warnings.simplefilter("ignore", DeprecationWarning)     # Python 3.12 on: a fork of a process with threads
assert {name for name, _ in in_child(refusals)} == {"Closed"}
gate.open()
assert call.result() == "mine"
client.kill()
gate.close()
""",
        str(tmp_path),
    )
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_child_opens_a_plugin_of_its_own() -> None:
    done = run_host(
        IN_CHILD
        + """
client = started("shm")
faults = client.dispense(Faults)

def own():
    with started("shm") as mine:
        return mine.dispense(Faults).echo("mine")

assert in_child(own) == "mine"
assert faults.echo("a") == "a"
client.kill()
"""
    )
    assert (done.stderr, done.returncode) == ("", 0)
