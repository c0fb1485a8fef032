"""Debuggers in a plugin: ``breakpoint()`` and ``pdb.set_trace()`` talk to the controlling terminal.

A plugin is a background process group and its stdout is a pipe, so a debugger that reads stdin would be stopped by the kernel
(SIGTTIN) and its prompt would end in a log. Here pdb reads and writes /dev/tty. The plugin's group is the terminal's foreground
group while it waits for a command, and only then: afterwards the group that had the terminal has it again, so Ctrl-C ends the
host's waiting call, as ever.

While debuggers are enabled SIGTTIN, SIGTTOU and SIGTSTP are ignored: a read from the terminal outside a debugger, such as
input(), then raises OSError (EIO) in the handler instead of stopping the plugin, and Ctrl-Z at the prompt does nothing, since no
shell knows how to continue a plugin. sys.stdin stays what was inherited.

PYTHONBREAKPOINT and sys.breakpointhook work as ever; debuggers other than pdb see to their terminal themselves. Without a
controlling terminal pdb.set_trace() logs an error and the handler goes on.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.machinery
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any, Final

from fastplug.errors import ConfigError

__all__ = ["Terminal", "enable_debuggers"]

TERMINAL_PATH: Final = "/dev/tty"
# A line that a terminal in canonical mode delivers is at most 4096 bytes.
READ_BYTES: Final = 4096

# One prompt at a time: the second debugger would otherwise take its own group for the one to give the terminal back to.
_prompt = threading.Lock()
_log = logging.getLogger("fastplug.debugger")


class Terminal(io.TextIOBase):
    """The controlling terminal as a text file, for pdb. It holds no descriptor: each operation opens /dev/tty."""

    encoding = "utf-8"

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]  # typeshed has no None here
        """One line, with this process's group in the foreground; "" at the end of file or when the terminal is gone."""
        with _prompt, _opened() as fd, _foreground(fd):
            line = b""
            while not line.endswith(b"\n"):
                data = _read(fd)
                if not data:
                    break
                line += data
        return line.decode("utf-8", "replace")

    def write(self, text: str, /) -> int:
        data = text.encode("utf-8", "replace")
        with _opened() as fd, _unstoppable():
            while data:
                data = data[os.write(fd, data) :]
        return len(text)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, READ_BYTES)
    except OSError as error:
        if error.errno == errno.EIO:
            return b""  # the terminal hung up, or somebody else has taken the foreground
        raise


@contextlib.contextmanager
def _opened() -> Iterator[int]:
    fd = os.open(TERMINAL_PATH, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _unstoppable() -> Iterator[None]:
    """A background group may write to the terminal and change its foreground group: with SIGTTOU blocked the kernel lets it.

    Blocked per thread, so that it needs no main thread and changes nothing for anybody else.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _foreground(fd: int) -> Iterator[None]:
    """Make this process's group the foreground group, and give the terminal back to the group that had it."""
    own, before = os.getpgrp(), os.tcgetpgrp(fd)
    if before == own:
        yield
        return
    with _unstoppable():
        os.tcsetpgrp(fd, own)
    try:
        yield
    finally:
        with _unstoppable():
            try:
                if os.tcgetpgrp(fd) == own:
                    os.tcsetpgrp(fd, before)
            except OSError as error:
                _log.warning("the terminal could not be given back to process group %d: %s", before, error)


def enable_debuggers() -> Callable[[], None]:
    """Let pdb use the controlling terminal from now on, whether it is imported already or will be. Call it from the main thread
    if possible: only there can the signals above be ignored. Returns what undoes it (to be called in the
    same thread). Does not import pdb."""
    finder = _PdbFinder()
    undo = contextlib.ExitStack()
    undo.callback(finder.restore)
    loaded = sys.modules.get("pdb")
    if loaded is not None:
        finder.adapt(loaded)
    else:
        sys.meta_path.insert(0, finder)
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP):
            if signal.getsignal(signum) is signal.SIG_DFL:
                undo.callback(signal.signal, signum, signal.signal(signum, signal.SIG_IGN))
    return undo.close


class _PdbFinder(MetaPathFinder):
    """Finds pdb where it always is, and adapts it as soon as it is loaded."""

    def __init__(self) -> None:
        self._adapted: list[tuple[Any, str, Any]] = []

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /) -> Any:
        if fullname != "pdb":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _AdaptingLoader(spec.loader, self.adapt)
        return spec

    def adapt(self, pdb: Any) -> None:
        """Change pdb's defaults: the terminal where the caller names no files, and no exception where there is none."""
        initialize = pdb.Pdb.__init__

        def init(self: Any, completekey: str = "tab", stdin: Any = None, stdout: Any = None, *rest: Any, **options: Any) -> None:
            if stdin is None and stdout is None:
                stdin = stdout = _terminal()
                if len(rest) < 2:
                    options.setdefault("nosigint", True)  # plugins ignore SIGINT; pdb would put a handler of its own there
            initialize(self, completekey, stdin, stdout, *rest, **options)

        def set_trace(*, header: str | None = None, **options: Any) -> None:
            try:
                debugger = pdb.Pdb()
            except ConfigError as error:
                _log.error("%s The handler goes on.", error, stack_info=True)  # the stack tells where
                return
            if header is not None:
                debugger.message(header)
            debugger.set_trace(sys._getframe(1), **options)

        for owner, name, replacement in ((pdb.Pdb, "__init__", init), (pdb, "set_trace", set_trace)):
            self._adapted.append((owner, name, getattr(owner, name)))
            setattr(owner, name, replacement)

    def restore(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        while self._adapted:
            setattr(*self._adapted.pop())


class _AdaptingLoader(Loader):
    """pdb's own loader, and then ``adapt``."""

    def __init__(self, loader: Loader, adapt: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._adapt = adapt

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # whoever asks the module later sees nothing of this
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._adapt(module)


def _terminal() -> Terminal:
    try:
        with _opened():
            return Terminal()
    except OSError as error:
        raise ConfigError(
            f"pdb needs a controlling terminal, and this plugin has none ({error}). Start the host from a terminal to debug the plugin."
        ) from error
