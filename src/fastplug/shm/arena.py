"""An arena that its user makes and gives to several clients: what lies in it goes to each of them without a copy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from fastplug.config import BLOCKS_TIMEOUT_S
from fastplug.errors import Closed, ConfigError
from fastplug.shm import _arena
from fastplug.shm.budget import budget_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Arena", "numpy_in"]


@contextlib.contextmanager
def numpy_in(arena: _arena.Arena) -> Iterator[None]:
    """Numpy allocates large arrays of this thread (or task) in ``arena`` until the block ends, as long as it has memory."""
    from fastplug.shm import _ndarray_memory

    before = _ndarray_memory.allocate_from(arena, False)
    try:
        yield
    finally:
        _ndarray_memory.restore(before)


class Arena:
    """Shared memory of this process for several plugins: ``fastplug.start(..., arena=arena)``. Thread-safe; not picklable.

    An array made in it is read by each of these plugins where it lies, and so is an array that one of them returned when it is passed to
    another. That means that each of these plugins can read everything in the arena, and what the others return: give an arena only to
    plugins that may see each other's data.

    Args:
        limit_bytes: most memory in it; by default half of what the machine or the memory cgroup allows.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        if limit_bytes is not None and not limit_bytes > 0:
            raise ConfigError(f"Arena(limit_bytes=...) must be positive, got {limit_bytes!r}")
        self._pid = os.getpid()
        self._memory = _arena.Arena(budget_bytes() if limit_bytes is None else limit_bytes, ahead=True, lasting=True)

    def __repr__(self) -> str:
        return f"<fastplug Arena of at most {self._memory.limit_bytes} bytes{', closed' if self._memory.closed else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError("an Arena is memory of one process; make one where it is needed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            self.close()

    def memory(self) -> _arena.Arena:
        """What clients lend from. Raises Closed after close() and in a forked child."""
        if self._memory.closed:
            raise Closed("this Arena was closed")
        if os.getpid() != self._pid:
            raise Closed(
                f"this Arena belongs to process {self._pid}; this is process {os.getpid()}, forked from it. Make another one here."
            )
        return self._memory

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = "float64") -> npt.NDArray[Any]:
        """An uninitialised array in it; the rules are those of ``Client.empty``. Raises ArenaExhausted, Closed."""
        from fastplug.shm import _ndarray

        return _ndarray.empty(self.memory(), shape, dtype)

    def blocks(
        self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = "float64", count: int = 3, timeout_s: float = BLOCKS_TIMEOUT_S
    ) -> Iterator[npt.NDArray[Any]]:
        """As ``Client.blocks``: an array is given out again when no plugin has it. Raises ConfigError, ArenaExhausted, Closed."""
        from fastplug.shm.blocks import ring

        if count < 1:
            raise ConfigError(f"blocks(count=...) must be at least 1, got {count}")
        return ring([self.empty(shape, dtype) for _ in range(count)], timeout_s, lambda: None)

    def numpy(self) -> contextlib.AbstractContextManager[None]:
        """As ``Client.arena``: within the block, numpy's own arrays of 64 KiB and more are born in it. Raises Closed."""
        return numpy_in(self.memory())

    def stats(self) -> dict[str, Any]:
        """Segments, bytes and blocks at this moment, and who holds the block that was lent first."""
        return self._memory.stats()

    def close(self) -> None:
        """Gives the memory back; arrays over it stay as long as they are referenced. Close its clients first. Idempotent."""
        self._memory.close()
