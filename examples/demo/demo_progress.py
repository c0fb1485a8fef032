"""A progress bar: in place on a terminal, a line per half elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

__all__ = ["Progress"]

WIDTH = 32
REDRAW_S = 0.05  # drawing is not what is being measured
LABEL_WIDTH = 40


class Progress:
    """``with Progress("label", total) as progress: progress.step()``."""

    def __init__(self, label: str, total: int) -> None:
        self.label = label
        self.total = max(total, 1)
        self.done = 0
        self._tty = sys.stderr.isatty()
        self._due = 0.0 if self._tty else 0.5

    def __enter__(self) -> Self:
        self._draw()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._tty:
            self._draw()
            sys.stderr.write("\n")

    def step(self, count: int = 1) -> None:
        self.done += count
        if self._tty:
            now = time.monotonic()
            if now >= self._due:
                self._due = now + REDRAW_S
                self._draw()
        elif self.done / self.total >= self._due:
            sys.stderr.write(f"  {self.label:{LABEL_WIDTH}} {100 * self.done // self.total:3} %\n")
            self._due += 0.5

    def _draw(self) -> None:
        if self._tty:
            filled = WIDTH * self.done // self.total
            bar = "█" * filled + "·" * (WIDTH - filled)
            sys.stderr.write(f"\r  {self.label:{LABEL_WIDTH}} {bar} {100 * self.done // self.total:3} %")
            sys.stderr.flush()
