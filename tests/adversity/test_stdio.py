"""The plugin's stdout and logging, in real processes: the line alone reaches stdout, everything else is a record on stderr."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap

import pytest

from fastplug.process.hclog import LineAssembler, LogRecordFields

# Far longer than any of this takes: a test that needs it has failed.
WATCHDOG_S = 120.0

LINE = b"1|1|unix|/x|grpc|\n"
# As users run plugins: what is printed stays in Python's buffer.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
START = """
import ctypes, logging, os, subprocess, sys, threading, warnings
from fastplug.process.stdio import PluginStdio
"""


def ran(program: str, *, returncode: int = 0, stdout: bytes = LINE) -> list[LogRecordFields]:
    """Run ``program`` as a plugin; the records that it wrote to stderr."""
    text = START + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=WATCHDOG_S, env=BUFFERED)
    assert done.returncode == returncode, done.stderr.decode()
    assert done.stdout == stdout
    assembler = LineAssembler()
    return [record for line in done.stderr.splitlines() for record in assembler.feed(line)] + assembler.flush()


def said(records: list[LogRecordFields]) -> list[tuple[int, str, str]]:
    return [(record.level, record.logger, record.message) for record in records]


def printed(*lines: str) -> list[tuple[int, str, str]]:
    return [(logging.INFO, "stdout", line) for line in lines]


def test_what_is_still_buffered_goes_to_the_log() -> None:
    records = ran(
        """
        print("before, in the buffer")
        stdio = PluginStdio()
        stdio.write_line("1|1|unix|/x|grpc|")
        print("after")
        print("no newline", end="")
        stdio.close()
        """
    )
    assert said(records) == printed("before, in the buffer", "after", "no newline")


def test_what_was_flushed_before_is_on_stdout() -> None:
    records = ran(
        """
        print("flushed", flush=True)
        stdio = PluginStdio()
        stdio.write_line("1|1|unix|/x|grpc|")
        stdio.close()
        """,
        stdout=b"flushed\n" + LINE,
    )
    assert records == []


def test_descriptor_1_c_code_and_children() -> None:
    records = ran(
        """
        libc = ctypes.CDLL(None)
        stdio = PluginStdio()
        stdio.write_line("1|1|unix|/x|grpc|")
        os.write(1, b"raw\\n")
        libc.printf(b"from C\\n")
        libc.fflush(None)
        subprocess.run(["echo", "from a child"], check=True)
        subprocess.run([sys.executable, "-c", "import os; os.write(1, b'\\\\xff\\\\n')"], check=True)
        stdio.close()
        """
    )
    assert said(records) == printed("raw", "from C", "from a child", "\ufffd")


def test_c_code_that_holds_the_gil_may_print_nearly_a_mebibyte() -> None:
    records = ran(
        """
        stdio = PluginStdio()
        stdio.write_line("1|1|unix|/x|grpc|")
        write = ctypes.PyDLL(None).write      # PyDLL: the GIL stays held, so nobody drains
        data = b"y" * 1023 + b"\\n"
        for _ in range(1000):
            assert write(1, data, len(data)) == len(data)
        stdio.close()
        """
    )
    assert said(records) == printed(*["y" * 1023] * 1000)


def test_megabytes_of_prints_from_many_threads_lose_nothing() -> None:
    records = ran(
        """
        stdio = PluginStdio()
        stdio.write_line("1|1|unix|/x|grpc|")
        def work(name):
            for n in range(500):
                print(name + "x" * 1000 + f" {n}\\n", end="")
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        os.write(1, b"z" * 300_000 + "\u20ac".encode() * 30_000)
        stdio.close()
        """
    )
    texts = [record.message for record in records]
    for name in "abcd":
        assert [text for text in texts if text[0] == name] == [name + "x" * 1000 + f" {n}" for n in range(500)]
    assert "".join(text for text in texts if text[0] in "z\u20ac") == "z" * 300_000 + "\u20ac" * 30_000


def test_partial_lines_are_logged_after_a_while_without_close() -> None:
    program = START + "stdio = PluginStdio()\nprint('Password: ', end='', flush=True)\nthreading.Event().wait()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as plugin:
        try:
            assert plugin.stderr is not None
            assert json.loads(plugin.stderr.readline())["@message"] == "Password: "
        finally:
            plugin.kill()


def test_logging_has_level_name_and_traceback_and_follows_the_host() -> None:
    records = ran(
        """
        stdio = PluginStdio(log_level=logging.DEBUG)
        stdio.write_line("1|1|unix|/x|grpc|")
        log = logging.getLogger("a.b")
        log.debug("d %d", 1, extra={"user": "u"})
        log.log(5, "hidden")
        stdio.set_level(logging.WARNING)
        log.info("hidden")
        print("hidden")
        try:
            {}["x"]
        except KeyError:
            log.exception("failed")
        stdio.close()
        """
    )
    assert said(records) == [(logging.DEBUG, "a.b", "d 1"), (logging.ERROR, "a.b", "failed")]
    assert records[0].fields["user"] == "u"
    assert records[1].exc_text is not None
    assert records[1].exc_text.endswith("KeyError: 'x'")


def test_without_a_level_of_the_host_info_is_shown_and_debug_is_not() -> None:
    records = ran(
        """
        stdio = PluginStdio()
        stdio.write_line("1|1|unix|/x|grpc|")
        logging.debug("hidden")
        logging.info("shown")
        stdio.close()
        assert logging.getLogger().level == logging.WARNING and not logging.getLogger().handlers
        """
    )
    assert said(records) == [(logging.INFO, "root", "shown")]


def test_handlers_of_the_user_stay_but_stderr_gets_each_record_once() -> None:
    records = ran(
        """
        logging.basicConfig(level=logging.ERROR, format="%(message)s")
        file = logging.FileHandler(f"/proc/self/fd/{os.dup(2)}", mode="a")
        file.setFormatter(logging.Formatter("[WARN] file: %(message)s"))
        root = logging.getLogger()
        root.addHandler(file)
        before = list(root.handlers)
        stdio = PluginStdio(log_level=logging.DEBUG)
        stdio.write_line("1|1|unix|/x|grpc|")
        root.warning("hidden: the user wants errors only")
        root.error("once")
        stdio.close()
        stdio.close()
        assert sorted(map(id, root.handlers)) == sorted(map(id, before)) and root.level == logging.ERROR
        """
    )
    assert sorted(said(records)) == [(logging.WARNING, "", "file: once"), (logging.ERROR, "root", "once")]


def test_uncaught_exceptions_are_one_record_each() -> None:
    records = ran(
        """
        stdio = PluginStdio()
        stdio.write_line("1|1|unix|/x|grpc|")
        def fail(): raise ValueError("in a thread")
        def leave(): raise SystemExit(3)
        for target in (fail, leave):
            thread = threading.Thread(target=target, name="worker")
            thread.start()
            thread.join()
        warnings.warn("old", stacklevel=1)
        stdio.close()
        raise KeyError("in main, after close")
        """,
        returncode=1,
    )
    assert [(record.level, record.message) for record in records if record.logger == "uncaught"] == [
        (logging.ERROR, "uncaught in worker: ValueError: in a thread"),
        (logging.ERROR, "uncaught: KeyError: 'in main, after close'"),
    ]
    assert all(record.exc_text and "Traceback" in record.exc_text for record in records if record.logger == "uncaught")
    assert [record.level for record in records if "UserWarning: old" in record.message] == [logging.WARNING]


def test_hooks_of_the_user_stay() -> None:
    records = ran(
        """
        sys.excepthook = lambda *args: os.write(2, b"[WARN] mine\\n")
        stdio = PluginStdio()
        stdio.write_line("1|1|unix|/x|grpc|")
        stdio.close()
        raise KeyError
        """,
        returncode=1,
    )
    assert said(records) == [(logging.WARNING, "", "mine")]


def test_close_puts_stdout_back_and_leaves_no_descriptor() -> None:
    records = ran(
        """
        before = os.listdir("/proc/self/fd")
        stdio = PluginStdio()
        stdio.write_line("1|1|unix|/x|grpc|")
        stdio.close()
        assert os.listdir("/proc/self/fd") == before
        assert threading.active_count() == 1
        print("on stdout again")
        """,
        stdout=LINE + b"on stdout again\n",
    )
    assert records == []


def test_a_surviving_child_with_the_pipe_does_not_hold_close() -> None:
    records = ran(
        """
        stdio = PluginStdio()
        stdio.write_line("1|1|unix|/x|grpc|")
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        print("x")
        stdio.close()
        child.stdin.close()
        child.wait()
        """
    )
    assert said(records) == printed("x")


def test_a_host_that_is_gone_is_an_error_of_the_tree_and_logging_goes_on() -> None:
    program = START + textwrap.dedent(
        """
        from fastplug.errors import HandshakeError
        stdio = PluginStdio()
        sys.stdin.read()
        try:
            stdio.write_line("1|1|unix|/x|grpc|")
        except HandshakeError as error:
            logging.info("%s", error)
        stdio.close()
        """
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as plugin:  # type: ignore[call-overload]  # by keyword
        plugin.stdout.close()
        plugin.stdin.close()
        assert "the host is gone or closed it" in json.loads(plugin.stderr.read())["@message"]
    assert plugin.returncode == 0


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_standard_descriptors(closed: tuple[int, ...]) -> None:
    program = START + textwrap.dedent(
        """
        from fastplug.errors import HandshakeError
        try:
            stdio = PluginStdio()
        except HandshakeError:
            os._exit(7)
        stdio.write_line("1|1|unix|/x|grpc|")
        logging.error("nowhere")
        stdio.close()
        os._exit(8)
        """
    )
    close = "".join(f"os.close({fd});" for fd in closed)
    launcher = f"import os, sys; {close} os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    done = subprocess.run([sys.executable, "-c", launcher, program], capture_output=True, timeout=WATCHDOG_S, env=os.environ)
    assert done.returncode == (7 if 1 in closed else 8)
