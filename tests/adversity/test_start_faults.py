"""What is no plugin, or no plugin for this host: an error that says what to do, and nothing left of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.adversity.running import COMMAND, plugin_environment
from tests.growing import growing_s

import fastplug

FaultRow = Callable[..., None]
PRINTER = "import sys, time; sys.stdout.write({text!r}); sys.stdout.flush(); time.sleep(1000)"


def script(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def printing(text: str) -> list[str]:
    """Prints, and then stays: what ends it is the host."""
    return script(PRINTER.format(text=text))


def refused(target: Any, kind: type[fastplug.PluginError], **options: Any) -> fastplug.PluginError:
    with pytest.raises(fastplug.PluginError) as caught:
        fastplug.start(target, name="acme", **options)
    assert type(caught.value) is kind, caught.value
    return caught.value


def test_a_file_that_does_not_exist(fault_row: FaultRow, tmp_path: Path) -> None:
    error = refused(tmp_path / "plugin.py", fastplug.StartError)
    fault_row("the target is a file that does not exist", error, do="correct the path")


def test_a_program_that_does_not_exist(fault_row: FaultRow) -> None:
    error = refused(["/no/such/program"], fastplug.StartError)
    assert isinstance(error.__cause__, FileNotFoundError)
    fault_row("the target is a command that does not exist", error, do="There is no file /no/such/program")


def test_a_name_that_is_nothing(fault_row: FaultRow) -> None:
    error = refused("no-such-plugin-anywhere", fastplug.StartError)
    fault_row("the target is a name that is no file, entry point or program", error, do="Install it, or name its file")


def test_a_file_that_is_not_executable(fault_row: FaultRow, tmp_path: Path) -> None:
    program = tmp_path / "plugin"
    program.write_text("#!/bin/sh\n")
    error = refused([str(program)], fastplug.StartError)
    fault_row("the target is not executable", error, do="chmod +x")


def test_a_class_that_cannot_be_imported(fault_row: FaultRow) -> None:
    error = refused("no.such.module:Class", fastplug.StartError)
    fault_row("the in-process target cannot be imported", error, do="Is it on sys.path, spelled as it is defined?")


def test_a_program_that_exits_at_once(fault_row: FaultRow) -> None:
    error = refused(script("import sys; sys.exit('the database is down')"), fastplug.StartError)
    assert "the database is down" in str(error)
    assert "exit code 1" in str(error)
    fault_row("it exits at once", error, do="look at its last lines on stderr")


def test_a_program_that_exits_without_a_word(fault_row: FaultRow) -> None:
    error = refused(["/bin/true"], fastplug.StartError)
    assert "exit code 0: it ended without an error: does it call fastplug.serve()" in str(error)
    fault_row("it exits at once with code 0", error, do="Run it by hand to see why")


def test_a_program_that_crashes(fault_row: FaultRow) -> None:
    error = refused(["/bin/sh", "-c", "kill -SEGV $$"], fastplug.StartError)
    assert "signal 11" in str(error)
    fault_row("it crashes at once", error, do="Run it by hand to see why")


def test_an_exception_before_serve_is_shown() -> None:
    error = refused(script("import no_such_dependency"), fastplug.StartError)
    assert "ModuleNotFoundError: No module named 'no_such_dependency'" in str(error)


def test_garbage(fault_row: FaultRow) -> None:
    error = refused(printing("\x00\x01 garbage | more \ufffd\n"), fastplug.HandshakeError)
    assert "garbage | more" in str(error)
    fault_row("it prints a line with `|` that is no handshake line", error, do="in the plugin, print to stderr until it serves")


def test_a_line_without_end(fault_row: FaultRow) -> None:
    error = refused(printing("x" * 70_000), fastplug.HandshakeError)
    fault_row("it prints 64 KiB without a newline", error, do="The program is no plugin")


def test_a_program_that_ends_in_the_middle_of_its_line() -> None:
    error = refused(script("print('1|1|unix', end='')"), fastplug.StartError)
    assert "it ended in the middle of a line: '1|1|unix'" in str(error)


BANNER = """
import runpy
print('line\\n' * {lines}, end='', flush=True)
runpy.run_module('tests.plugins.faults_plugin', run_name='__main__')
"""


@pytest.mark.parametrize("lines", [1, 64])
def test_text_before_the_line_is_skipped(lines: int) -> None:
    with fastplug.start([sys.executable, "-c", BANNER.format(lines=lines)], env=plugin_environment()) as client:
        client.ping()


def test_too_much_text_before_the_line(fault_row: FaultRow) -> None:
    error = refused([sys.executable, "-c", BANNER.format(lines=65)], fastplug.HandshakeError, env=plugin_environment())
    fault_row("it prints 65 lines before its handshake line", error, do="in the plugin, print to stderr until it serves")


def test_nothing_is_printed(fault_row: FaultRow) -> None:
    error = refused(printing(""), fastplug.HandshakeTimeout, start_timeout_s=0.2)
    assert isinstance(error, TimeoutError)
    fault_row("it prints nothing", error, do="A slow start needs a larger start_timeout_s.")


def test_a_timeout_tells_what_was_printed() -> None:
    for start_timeout_s in growing_s(0.5):
        error = refused(printing("Loading model\nStill loading\n"), fastplug.HandshakeTimeout, start_timeout_s=start_timeout_s)
        if "Loading model / Still loading" in str(error):
            break


def test_a_closed_stdout() -> None:
    error = refused(script("import os, time; os.close(1); time.sleep(1000)"), fastplug.StartError)
    assert "failed to read any lines" in str(error)


def test_the_cookie_is_wrong(fault_row: FaultRow) -> None:
    handshake = fastplug.HandshakeConfig(1, "OTHER_PLUGIN", "hello")
    error = refused(COMMAND, fastplug.StartError, handshake=handshake, env=plugin_environment())
    assert "exit code 1" in str(error)
    fault_row("the plugin wants another magic cookie", error, do="host and plugin need the same HandshakeConfig")


@pytest.mark.parametrize(
    ("line", "kind", "what", "do"),
    [
        ("1|1|unix|/x|soap|", fastplug.UnsupportedProtocol, "it speaks an unknown protocol", "build the plugin for one of these"),
        ("1|1|unix|/x|netrpc|", fastplug.UnsupportedProtocol, "it speaks a protocol that this host does not allow", "allow gRPC"),
        (
            "2|1|unix|/x|grpc|",
            fastplug.IncompatibleVersion,
            "it has an unknown core version",
            "the plugin usually only needs to be recompiled",
        ),
        ("one|1|unix|/x|grpc|", fastplug.HandshakeError, "its core version is no number", "print to stderr until it serves"),
        ("1|9|unix|/x|grpc|", fastplug.IncompatibleVersion, "it serves another application version", "Update the older of the two"),
        ("1|one|unix|/x|grpc|", fastplug.HandshakeError, "its application version is no number", "Report this to the plugin author."),
        ("1|1|pigeon|/x|grpc|", fastplug.HandshakeError, "it listens on an unknown kind of network", "Report this to the plugin author."),
        ("1|1|unix||grpc|", fastplug.HandshakeError, "its address is empty", "Report this to the plugin author."),
        (
            "1|1|inherit|3/1/shm|grpc|",
            fastplug.HandshakeError,
            "it speaks gRPC over an inherited descriptor",
            "Report this to the plugin author.",
        ),
        (
            "1|1|inherit|999/1/shm|fast|",
            fastplug.HandshakeError,
            "it takes a descriptor that was not offered",
            "Report this to the plugin author.",
        ),
    ],
)
def test_a_line_that_is_refused(fault_row: FaultRow, line: str, kind: type[fastplug.PluginError], what: str, do: str) -> None:
    fault_row(what, refused(printing(line + "\n"), kind), do=do)


TAKER = """
import os, sys, time
offer = dict(part.split("=") for part in os.environ["FASTPLUG_OFFER"].split(";"))
print("1|1|inherit|" + {address!r}.format(**offer) + "|fast|", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("address", ["{fd}/9/shm", "{fd}/1/pigeon", "{fd}/1/shm", "{fd}/1", "{fd}"])
def test_an_offer_that_was_not_made(address: str) -> None:
    error = refused(script(TAKER.format(address=address)), fastplug.HandshakeError, transport="socket")
    assert "was offered" in str(error)


def test_a_plugin_that_prints_its_line_and_does_not_go_on(fault_row: FaultRow) -> None:
    error = refused(script(TAKER.format(address="{fd}/1/shm")), fastplug.HandshakeTimeout, connect_timeout_s=0.2)
    fault_row("it prints its line and says nothing more", error, do="raise connect_timeout_s")


def test_a_plugin_that_prints_its_line_and_dies(fault_row: FaultRow) -> None:
    code = TAKER.format(address="{fd}/1/shm").replace("time.sleep(1000)", "sys.exit('out of licences')")
    error = refused(script(code), fastplug.PluginDied)
    assert "out of licences" in str(error)
    assert "exit code 1" in str(error)
    fault_row("it prints its line and dies", error, do="Start it again to go on.")


def test_a_host_that_wants_fast_and_a_plugin_that_cannot(fault_row: FaultRow) -> None:
    """A shell in between: the plugin is no child of the maker of the offer, and speaks gRPC."""
    shell = ["/bin/sh", "-c", f"{' '.join(COMMAND)}; exit"]
    error = refused(shell, fastplug.UnsupportedProtocol, transport="shm", env=plugin_environment())
    fault_row("a launcher stands between host and plugin, and transport='shm' is forced", error, do="Start it directly, or allow gRPC")


@fastplug.interface("test.faults/1")
class Later(Protocol):
    def echo(self, x: int) -> str: ...


@fastplug.interface("test.faults/1")
class More(Protocol):
    def echo(self, x: str) -> str: ...
    def brand_new(self, x: str) -> str: ...


@fastplug.interface("test.elsewhere/1")
class Elsewhere(Protocol):
    def echo(self, x: str) -> str: ...


def mismatch(client: fastplug.Client, iface: Any) -> fastplug.InterfaceMismatch:
    with pytest.raises(fastplug.InterfaceMismatch) as caught:
        client.dispense(iface)
    return caught.value


@pytest.mark.parametrize("transport", ["shm", "socket", "inproc"])
def test_an_interface_that_differs(fault_row: FaultRow, start: Callable[..., fastplug.Client], transport: str) -> None:
    client = start(transport)
    error = mismatch(client, Later)
    assert (error.method, error.expected, error.got) == ("echo", "echo(x: int) -> str", "echo(x: str) -> str")
    assert error.expected in str(error)
    assert error.got in str(error)
    missing = mismatch(client, More)
    assert (missing.method, missing.got) == ("brand_new", None)
    assert "brand_new(x: str) -> str" in str(missing)
    other = mismatch(client, Elsewhere)
    client.ping()  # the plugin is as well as before
    if transport == "shm":
        fault_row("a method differs between host and plugin", error, do="echo(x: str) -> str")
        fault_row("the plugin lacks a method", missing, do="brand_new(x: str) -> str")
        fault_row("the plugin lacks the interface", other, do="test.elsewhere/1")


def test_a_name_that_is_not_in_the_plugin_set(fault_row: FaultRow, start: Callable[..., fastplug.Client]) -> None:
    client = start("socket")
    with pytest.raises(fastplug.ConfigError) as caught:
        client.dispense("kv")
    fault_row("dispense() of a name that is not in the plugin set", caught.value, do="Or pass the interface's class.")


def test_a_plugin_started_by_hand() -> None:
    import subprocess

    done = subprocess.run(COMMAND, env={"PATH": "/usr/bin", **plugin_environment()}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "This binary is a plugin" in done.stderr
    assert "test.faults/1" in done.stderr


def test_fifty_starts_and_failures_in_a_row() -> None:
    """The fixture nothing_left_behind is what fails if one of them leaves something."""
    for _ in range(25):
        refused(["/bin/true"], fastplug.StartError)
        refused(["/no/such/program"], fastplug.StartError)
