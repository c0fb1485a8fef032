"""Debuggers in a plugin, under a pty: a session leader starts a process group of its own, which is a background one.

Host and plugin are real processes; the test types at the master side. That a command is read at all shows that the plugin had the
foreground while it read (a background read fails with EIO), and the host's own input() afterwards shows that it has it back.
"""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

# Far longer than any of this takes: a test that needs it has failed.
WATCHDOG_S = 60.0

HOST = """
import fcntl, os, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
settings = termios.tcgetattr(0)
settings[3] |= termios.TOSTOP          # the stricter terminal: background writes stop the writer, too
termios.tcsetattr(0, termios.TCSANOW, settings)
plugin = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, process_group=0)
said, _ = plugin.communicate()
assert os.tcgetpgrp(0) == os.getpgrp()
print("plugin ended", plugin.returncode, "and said", said.decode(), flush=True)
print("host read", input("host> "), flush=True)
"""

PLUGIN = """
import logging, os, signal, sys, threading
from fastplug.process.terminal import enable_debuggers
disable = enable_debuggers()
assert "pdb" not in sys.modules
assert os.getpgrp() == os.getpid()
"""


class Keyboard:
    """The human side of the terminal."""

    def __init__(self, plugin: str) -> None:
        self.seen = ""
        self.master, slave = pty.openpty()
        argv = [sys.executable, "-c", HOST, PLUGIN + textwrap.dedent(plugin)]
        self.host = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)

    def wait_for(self, text: str) -> str:
        """What appeared up to and with ``text``."""
        while text not in self.seen:
            assert select.select([self.master], [], [], WATCHDOG_S)[0], f"nothing came; so far: {self.seen!r}"
            try:
                data = os.read(self.master, 4096)
            except OSError:
                data = b""
            assert data, f"the terminal was closed; so far: {self.seen!r}"
            self.seen += data.decode()
        head, _, self.seen = self.seen.partition(text)
        return head + text

    def wait_for_foreground(self) -> None:
        """Until the plugin waits for a command: its prompt comes before that, and keys that signal go to the foreground group."""
        end = time.monotonic() + WATCHDOG_S
        while os.tcgetpgrp(self.master) == self.host.pid:
            assert time.monotonic() < end, "the plugin did not take the foreground"
            os.sched_yield()  # nothing announces a change of the foreground group

    def types(self, line: str) -> None:
        os.write(self.master, line.encode() + b"\n")

    def commands(self, *lines: str) -> str:
        """Type each line at a prompt of pdb; what appeared."""
        appeared = ""
        for line in lines:
            appeared += self.wait_for("(Pdb) ")
            self.types(line)
        return appeared

    def end(self, said: str) -> str:
        appeared = self.wait_for(f"plugin ended 0 and said {said}\r\n")
        self.wait_for("host> ")
        self.types("hello")
        self.wait_for("host read hello\r\n")
        assert self.host.wait(WATCHDOG_S) == 0
        return appeared

    def close(self) -> None:
        os.close(self.master)
        self.host.kill()
        self.host.wait()


@pytest.fixture
def keyboards() -> Iterator[list[Keyboard]]:
    keyboards: list[Keyboard] = []
    yield keyboards
    for keyboard in keyboards:
        keyboard.close()


def at(keyboards: list[Keyboard], plugin: str) -> Keyboard:
    keyboards.append(Keyboard(plugin))
    return keyboards[0]


WAYS = {
    "breakpoint": "breakpoint()",
    "set_trace": "import pdb; pdb.set_trace()",
    "from_pdb": "from pdb import set_trace as stop; stop(header='look here')",
    "Pdb": "import pdb; pdb.Pdb(skip=['x.*']).set_trace()",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_breakpoint_takes_the_terminal_and_gives_it_back(keyboards: list[Keyboard], way: str) -> None:
    keyboard = at(
        keyboards,
        f"""
        def handler(x):
            {WAYS[way]}
            return x + 1
        print(handler(41), end="")
        """,
    )
    appeared = keyboard.commands("p x * 2", "w", "x = 1", "print('printed', x)", "c")
    assert "82\r\n" in appeared
    assert "printed 1\r\n" in appeared
    assert appeared.count("handler()") == 2
    assert way != "from_pdb" or "look here" in appeared
    keyboard.end("2")


def test_a_debugger_that_was_imported_before(keyboards: list[Keyboard]) -> None:
    keyboard = at(
        keyboards,
        """
        disable()
        import pdb
        original = pdb.set_trace
        disable = enable_debuggers()
        breakpoint()
        disable()
        assert pdb.set_trace is original and not any("Pdb" in type(finder).__name__ for finder in sys.meta_path)
        assert signal.getsignal(signal.SIGTTIN) is signal.SIG_DFL
        """,
    )
    keyboard.commands("n", "c")
    keyboard.end("")


def test_threads_and_several_breakpoints_take_turns(keyboards: list[Keyboard]) -> None:
    keyboard = at(
        keyboards,
        """
        def handler(n):
            breakpoint()
            print(n, end="")
        threads = [threading.Thread(target=handler, args=(7,)) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        """,
    )
    keyboard.commands("n = 8", "c", "n = 8", "c", "n = 8", "c")
    # Two prompts may appear before the first answer, so the answers need not pair up; but each thread was answered and went on.
    assert "Error" not in keyboard.wait_for("and said ")


def test_ctrl_z_and_ctrl_c_at_the_prompt_do_not_stop_the_plugin(keyboards: list[Keyboard]) -> None:
    keyboard = at(
        keyboards,
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)      # as serve() does
        x = 5
        breakpoint()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        """,
    )
    keyboard.wait_for("(Pdb) ")
    keyboard.wait_for_foreground()
    os.write(keyboard.master, b"\x1a\x03")
    keyboard.types("p x + 1000")
    keyboard.wait_for("1005\r\n")
    keyboard.commands("c")
    keyboard.end("")


def test_end_of_file_at_the_prompt_ends_the_handler(keyboards: list[Keyboard]) -> None:
    keyboard = at(
        keyboards,
        """
        import bdb
        def handler():
            breakpoint()
            print("not reached")
        try:
            handler()
        except bdb.BdbQuit:
            print("quit", end="")
        """,
    )
    keyboard.wait_for("(Pdb) ")
    os.write(keyboard.master, b"\x04")
    keyboard.end("quit")


def test_input_outside_the_debugger_is_an_error_and_does_not_stop_the_process(keyboards: list[Keyboard]) -> None:
    keyboard = at(
        keyboards,
        """
        try:
            input()
        except OSError as error:
            print(error.errno, end="")
        """,
    )
    keyboard.end("5")


def test_pythonbreakpoint_is_honoured(keyboards: list[Keyboard]) -> None:
    keyboard = at(keyboards, "os.environ['PYTHONBREAKPOINT'] = '0'; breakpoint(); print('pdb' in sys.modules, end='')")
    keyboard.end("False")


@pytest.mark.parametrize("way", ["breakpoint", "set_trace", "from_pdb"])
def test_without_a_terminal_it_is_logged_and_the_handler_goes_on(way: str) -> None:
    program = f"{PLUGIN}\nlogging.basicConfig()\ndef handler():\n    {WAYS[way]}\n    print('went on')\nhandler()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=WATCHDOG_S, start_new_session=True, text=True)
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "ERROR:fastplug.debugger:pdb needs a controlling terminal, and this plugin has none" in done.stderr
    assert "in handler" in done.stderr
