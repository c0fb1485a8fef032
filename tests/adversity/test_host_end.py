"""The end of a host, in all its forms: silent, with its own exit code, and no plugin left (which the fixture of all tests sees)."""

from __future__ import annotations

import pytest
from tests.adversity.hosts import run_host

TRANSPORTS = ["shm", "socket", "grpc", "inproc"]
every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


def ends_silently(code: str, *arguments: str, returncode: int = 0) -> str:
    done = run_host(code, *arguments)
    assert (done.stderr, done.returncode) == ("", returncode)
    return done.stdout


@every_transport
def test_an_open_client_at_exit(transport: str) -> None:
    ends_silently(
        """
        client = started(sys.argv[1])
        faults = client.dispense(Faults)
        assert faults.echo("a") == "a"
        """,
        transport,
    )


@every_transport
def test_a_handle_in_a_global_and_arrays(transport: str) -> None:
    ends_silently(
        """
        import numpy as np
        faults = started(sys.argv[1]).dispense(Faults)
        sent = fastplug.client_of(faults).empty(10000)
        received = [faults.plus_one(sent), faults.plus_one(np.zeros(20000))]
        """,
        transport,
    )


@every_transport
def test_a_daemon_thread_inside_a_call(transport: str, tmp_path: pytest.TempPathFactory) -> None:
    ends_silently(
        """
        from pathlib import Path
        from tests.conformance.conftest import Gate
        faults = started(sys.argv[1]).dispense(Faults)
        gate = Gate(Path(sys.argv[2]))
        thread = threading.Thread(target=lambda: faults.gate(gate.path, "never"), daemon=True)
        threading.excepthook = lambda args: None       # it ends with Closed, if it gets that far
        thread.start()
        gate.wait_entered()
        """,
        transport,
        str(tmp_path),
    )


@every_transport
def test_os_exit(transport: str) -> None:
    ends_silently(
        """
        faults = started(sys.argv[1]).dispense(Faults)
        assert faults.echo("a") == "a"
        os._exit(5)
        """,
        transport,
        returncode=5,
    )


@every_transport
def test_an_exception_ends_the_host(transport: str) -> None:
    done = run_host('faults = started(sys.argv[1]).dispense(Faults); faults.fail("KeyError")', transport)
    assert done.returncode == 1
    assert "RemoteKeyError" in done.stderr
    assert done.stderr.count("in _raise") == 1  # the plugin's traceback is part of it
    assert "Exception ignored" not in done.stderr


@every_transport
def test_a_client_that_is_dropped_without_kill(transport: str) -> None:
    """Nobody holds it any more: at the latest the end of the host ends the plugin."""
    ends_silently(
        """
        import gc
        client = started(sys.argv[1])
        client.dispense(Faults).echo("a")
        del client
        gc.collect()
        """,
        transport,
    )


def test_a_plugin_that_was_killed_before_the_host_ends() -> None:
    ends_silently(
        """
        clients = [started(transport) for transport in ("shm", "socket", "grpc")]
        for client in clients:
            os.kill(client.pid, signal.SIGKILL)
        """
    )


@every_transport
def test_after_the_last_plugin_nothing_is_left(transport: str) -> None:
    """Descriptors, threads and mapped segments as before the first one; the first start loads modules, which may open something."""
    ends_silently(
        """
        import gc
        from pathlib import Path
        from fastplug.process.warden import warden

        def held():
            gc.collect()
            maps = Path("/proc/self/maps").read_text()
            threads = sorted(thread.name for thread in threading.enumerate())
            return sorted(os.listdir("/proc/self/fd")), threads, maps.count("memfd:fastplug")

        def once():
            with started(sys.argv[1]) as client:
                faults = client.dispense(Faults)
                array = faults.plus_one(client.empty(100_000))
                assert array.size == 100_000

        once()
        before = held()
        for _ in range(3):
            once()
        assert warden.pid is None
        after = held()
        assert before == after, (before, after)
        """,
        transport,
    )


@pytest.mark.long
@pytest.mark.parametrize("transport", ["shm", "socket"])
def test_fifty_plugins_in_a_row(transport: str) -> None:
    ends_silently(
        """
        held = []
        for number in range(50):
            with started(sys.argv[1]) as client:
                assert client.dispense(Faults).echo(str(number)) == str(number)
            held.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
        assert held[-1] == held[1], held
        """,
        transport,
    )


# -- kill() from everywhere


@every_transport
def test_kill_from_four_threads_at_once(transport: str) -> None:
    ends_silently(
        """
        client = started(sys.argv[1])
        barrier = threading.Barrier(4)
        def kill():
            barrier.wait()
            client.kill()
            assert client.exited
        for running in [Running(kill) for _ in range(4)]:
            running.result()
        """,
        transport,
    )


@every_transport
def test_kill_while_a_call_waits_in_another_thread(transport: str, tmp_path: pytest.TempPathFactory) -> None:
    said = ends_silently(
        """
        from pathlib import Path
        from tests.conformance.conftest import Gate
        client = started(sys.argv[1], stop_timeout_s=0.2)
        gate = Gate(Path(sys.argv[2]))
        call = Running(client.dispense(Faults).gate, gate.path, "never")
        gate.wait_entered()
        client.kill()
        if sys.argv[1] == "inproc":
            gate.close()
        print(type(call.error()).__name__)
        """,
        transport,
        str(tmp_path),
    )
    assert said == "Closed\n"


def test_kill_during_a_start(tmp_path: pytest.TempPathFactory) -> None:
    """The plugin says that it runs, and never prints its line; another thread kills. start() ends with Closed."""
    ends_silently(
        """
        fifo = sys.argv[1] + "/runs"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDWR)
        code = f"import time; open({fifo!r}, 'w').write('.'); time.sleep(1000)"
        config = fastplug.ClientConfig(target=[sys.executable, "-c", code])
        client = fastplug.Client(config)
        start = Running(client.start)
        os.read(reader, 1)
        client.kill()
        assert client.exited
        error = start.error()
        assert isinstance(error, fastplug.Closed), repr(error)
        assert "killed while it started" in str(error)
        os.close(reader)
        """,
        str(tmp_path),
    )


def test_kill_and_start_race() -> None:
    """kill() at no particular moment of a start: whatever comes first, nothing is left, and start() ends with Closed or a Client."""
    ends_silently(
        """
        for turn in range(30):
            client = fastplug.Client(fastplug.ClientConfig(target=[sys.executable, "-m", "tests.plugins.faults_plugin"]))
            start = Running(client.start)
            for _ in range(turn * 200):
                client.exited
            client.kill()
            try:
                start.result()
            except fastplug.Closed:
                pass
            assert client.exited
            client.kill()
        assert threading.active_count() == 1, threading.enumerate()
        """
    )


def test_a_plugin_started_by_a_thread_that_ended() -> None:
    ends_silently(
        """
        start = Running(started, "shm")
        client = start.result()
        start.thread.join()
        faults = client.dispense(Faults)
        assert faults.echo("a") == "a"
        client.kill()
        """
    )


def test_failed_starts_leave_no_thread_and_no_warden() -> None:
    ends_silently(
        """
        from fastplug.process.warden import warden
        for target in (["/bin/true"], ["/no/such/program"], [sys.executable, "-c", "print('a|b')"]) * 3:
            try:
                fastplug.start(target)
            except fastplug.PluginError:
                pass
        assert warden.pid is None
        assert threading.active_count() == 1, threading.enumerate()
        """
    )
