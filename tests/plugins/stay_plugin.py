"""Goes on without its host (``--stay``), and shows what it was started with. ``--tcp`` listens there; ``--versions`` serves 1, 2 and 5."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

from tests.plugins.stay_api import Stay

import fastplug

__all__ = ["Staying"]


class Staying(Stay):
    def __init__(self, version: int = 1) -> None:
        self._version = version

    def pid(self) -> int:
        return os.getpid()

    def doubled(self, x: int) -> int:
        result = 2 * x
        return result  # noqa: RET504  a debugger stops here, and changes it

    def version(self) -> int:
        return self._version

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def read_stdin(self, size: int) -> bytes:
        return os.read(0, size)

    def spawn(self, code: str) -> int:
        """A child in a session of its own that runs ``code`` and holds this plugin's stdout and stderr."""
        return subprocess.Popen([sys.executable, "-I", "-S", "-c", code], start_new_session=True).pid

    def log(self, message: str) -> None:
        logging.getLogger("stay").warning(message)


def main() -> None:
    versions = {
        number: {"stay": fastplug.InterfacePlugin(Stay, Staying(number))} for number in ((1, 2, 5) if "--versions" in sys.argv else (1,))
    }
    fastplug.serve(
        versioned_plugins=versions,
        on_host_exit="stay" if "--stay" in sys.argv else "stop",
        network="tcp" if "--tcp" in sys.argv else "unix",
    )


if __name__ == "__main__":
    main()
