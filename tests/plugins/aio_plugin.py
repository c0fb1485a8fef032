"""Asynchronous handlers."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
from tests.plugins.aio_api import Aio, AioStreams, Floats

import fastplug


class _Logged:
    def __init__(self) -> None:
        self._log: list[str] = []

    def log(self) -> list[str]:
        found, self._log = self._log, []
        return found


class AioPlugin(_Logged, Aio):
    def __init__(self) -> None:
        super().__init__()
        self._there = 0
        self._all = asyncio.Event()

    async def double(self, n: int, *, more: int = 0) -> int:
        await asyncio.sleep(0)
        return 2 * n + more

    async def fail(self, n: int) -> int:
        await asyncio.sleep(0)
        if n < 0:
            raise SystemExit(n)
        raise KeyError(n)

    async def meet(self, count: int) -> int:
        self._there += 1
        if self._there == count:
            self._there = 0
            self._all.set()
            self._all = asyncio.Event()
        else:
            await self._all.wait()
        return count

    async def rest(self, folder: str) -> None:
        context = fastplug.context()
        try:
            await self._for_ever(folder)
        except asyncio.CancelledError:
            self._log.append(f"cancelled {context.cancelled}")
            raise

    async def _for_ever(self, folder: str) -> None:
        (Path(folder) / "entered").write_bytes(b".")
        await asyncio.get_running_loop().create_future()

    async def who(self) -> str:
        before = fastplug.context()
        for _ in range(3):
            await asyncio.sleep(0)
        assert fastplug.context() is before
        told = await asyncio.create_task(self._told())
        return f"{before.metadata.get('who', 'nobody')} {told}"

    async def _told(self) -> str:
        return fastplug.context().metadata.get("who", "nobody")

    async def scaled(self, x: Floats, by: float) -> Floats:
        await asyncio.sleep(0)
        made = fastplug.empty_like(x)
        np.multiply(x, by, out=made)
        return made

    def plain(self, n: int) -> int:
        return n + 1


class AioStreamsPlugin(_Logged, AioStreams):
    async def count(self, n: int) -> AsyncIterator[int]:
        try:
            for i in range(n):
                if i % 7 == 0:
                    await asyncio.sleep(0)
                yield i
        except (GeneratorExit, asyncio.CancelledError) as ended:
            self._log.append(type(ended).__name__)
            raise
        else:
            self._log.append("ended")

    async def arrays(self, size: int, n: int) -> AsyncIterator[Floats]:
        for i in range(n):
            yield np.full(size, float(i))

    async def break_at(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        raise KeyError(n)

    async def beats(self) -> AsyncIterator[int]:
        try:
            yield os.getpid()
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self._log.append("cancelled")
            raise

    async def total(self, values: AsyncIterator[int]) -> int:
        found = 0
        async for value in values:
            found += value
        return found

    async def first(self, values: AsyncIterator[int]) -> int:
        return await anext(values)

    async def doubled(self, values: AsyncIterator[int]) -> AsyncIterator[int]:
        async for value in values:
            yield 2 * value

    async def asked(self, n: int, tell: Callable[[int], int]) -> int:
        return sum([await asyncio.to_thread(tell, i) for i in range(n)]) + tell(n)

    def each(self, n: int) -> Iterator[int]:
        yield from range(n)


class UncollectedAioStreamsPlugin(AioStreamsPlugin):
    """What is in a cycle stays."""

    def __init__(self) -> None:
        super().__init__()
        gc.disable()
