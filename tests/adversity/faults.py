"""docs/faults.md: one row per fault, written by the tests that cause them.

A test that causes a fault ends with ``fault_row(what, error, do=...)``. It must find its row in the committed file;
``pytest tests/adversity --write-faults`` writes the file anew.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
from pathlib import Path

from fastplug import errors

__all__ = ["DOCUMENT", "Row", "document", "row_of", "rows_in"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
ROOT = DOCUMENT.parents[1]

HEAD = """# Faults

Made by the tests in `tests/adversity` (`pytest tests/adversity --write-faults`); every other run compares. Each row is an error as a test
met it: its text without the plugin's traceback and the command line, with pids and paths shortened.

| what happens | error | fault of | text | what to do |
|---|---|---|---|---|
"""

# The error's type says whose fault it is; the first class that fits counts.
FAULT_OF: tuple[tuple[type[BaseException], str], ...] = (
    (errors.ConfigError, "the caller"),
    (errors.ArgumentError, "the caller"),
    (errors.Closed, "the caller"),
    (errors.ConnectionLost, "whoever ended the connection"),
    (errors.DeadlineExceeded, "nobody: it took longer than the caller allowed"),
    (KeyboardInterrupt, "nobody: the user's wish"),
    (errors.LocalProtocolError, "the caller"),
    (errors.ArenaExhausted, "who keeps the arrays"),
    (errors.CopyRequired, "the caller"),
    (errors.HandshakeError, "the plugin, or the two do not belong together"),
    (errors.StartError, "the plugin, or its command"),
    (errors.PluginError, "the plugin"),
)


@dataclasses.dataclass(frozen=True, order=True)
class Row:
    what: str
    error: str
    fault_of: str
    text: str
    do: str

    def line(self) -> str:
        return "| " + " | ".join(_cell(cell) for cell in dataclasses.astuple(self)) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def _classes(error: BaseException) -> str:
    ancestors = [base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins" and base is not Exception]
    builtin = ancestors[0] if ancestors[0] not in ("BaseException", "object") else ""
    own = type(error).__name__
    return f"`{own}`" + (f" (also `{builtin}`)" if builtin and builtin != own else "")


def normalised(text: str) -> str:
    """What differs from run to run, and from machine to machine, replaced."""
    text = text.partition("\n\nThe plugin's traceback:")[0]
    text = re.sub(r"\nCommand: .*", "", text)
    for known, word in ((str(ROOT), "..."), (tempfile.gettempdir(), "/tmp"), (sys.executable, "python")):
        text = text.replace(known, word)
    text = re.sub(r"/[^ '\"|]*/pytest-[^ /]+/pytest-\d+/[^ /'\"]+", "/tmp", text)
    text = re.sub(r"\b(pid|process) \d+", r"\1 N", text)
    text = re.sub(r"pid=\d+;fd=\d+", "pid=N;fd=N", text)
    text = re.sub(r"plugin-dir\w+/plugin\d+", "plugin-dirN/pluginN", text)
    text = re.sub(r"\b\d+ (allocations ago|blocks are lent)", r"N \1", text)  # the other side gives back when it comes to it
    return text.rstrip()


def row_of(what: str, error: BaseException, do: str) -> Row:
    """``do``: what the text tells the reader to do; it must be in it (or stand for itself where a text is not ours)."""
    text = str(error)
    fault_of = next(words for cls, words in FAULT_OF if isinstance(error, cls))
    return Row(what, _classes(error), fault_of, normalised(text), normalised(do))


def document(rows: set[Row]) -> str:
    return HEAD + "".join(row.line() + "\n" for row in sorted(rows))


def rows_in(text: str) -> set[str]:
    return {line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| what happens")}
