# Invariant: whatever frames a peer sends about calls, streams, callbacks, cancellations and metadata, the plugin's half ends with the link
# or with RemoteProtocolError, and the caller's half with a result or an error of the tree; each bounded, and nothing hangs.
from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from fastplug._wire import MethodCodec, PyLink, pack_error, pack_header, unpack_header
from fastplug.deadlines import deadline
from fastplug.errors import Closed, PluginError, RemoteProtocolError
from fastplug.interfaces import interface, interface_of
from fastplug.protocols._call import Caller
from fastplug.protocols._inline import DeferredPort
from fastplug.protocols._remote import Mapped, Remote
from fastplug.protocols._serve import Server

REQUEST, REPLY, ERROR, ITEM, END, CREDIT, CLOSE, CANCEL, CALLBACK, RETURN, RAISE, RELEASE, REQUESTS, REPLIES = range(1, 15)
WAITS, METADATA = 2, 4
FRAMES_MAX = 40
# Of a call that waits in vain, because the peer has nothing more to say and yet does not end.
CALL_S = 0.05


@interface("fuzz.calls/1")
class Calls(Protocol):
    def double(self, n: int) -> int: ...
    def count(self, n: int) -> Iterator[int]: ...
    def total(self, values: Iterator[int]) -> int: ...
    def doubled(self, values: Iterator[int]) -> Iterator[int]: ...
    def each(self, n: int, tell: Callable[[int], int]) -> int: ...
    def keep(self, tell: Callable[[int], int]) -> None: ...


class PlainCalls:
    def __init__(self) -> None:
        self.kept: list[Callable[[int], int]] = []

    def double(self, n: int) -> int:
        return 2 * n

    def count(self, n: int) -> Iterator[int]:
        yield from range(min(n, 100))

    def total(self, values: Iterator[int]) -> int:
        return sum(values)

    def doubled(self, values: Iterator[int]) -> Iterator[int]:
        for value in values:
            yield 2 * value

    def each(self, n: int, tell: Callable[[int], int]) -> int:
        return sum(tell(i) for i in range(min(n, 5)))

    def keep(self, tell: Callable[[int], int]) -> None:
        self.kept = [*self.kept[-3:], tell]


METHODS = interface_of(Calls).methods


class Script(PyLink):
    """A peer that sends what ``next_frame`` says, and reads what it is sent. The end comes by itself."""

    def __init__(self, next_frame: Callable[[], bytes | None]) -> None:
        self.sent: list[bytes] = []
        self._next_frame = next_frame

    def send_frame(self, frame: bytes, until_s: float | None) -> None:
        self.sent.append(bytes(frame))

    def receive_frame(self, until_s: float | None) -> bytes | None:
        frame = self._next_frame()
        if frame is None:
            raise EOFError
        return frame


def number(n: int) -> bytes:
    return struct.pack("<Bq", 3, n)


def metadata(rng: random.Random) -> bytes:
    """A dict of texts, or nearly."""
    count = rng.choice((0, 1, 3, 64, 65, 300))
    texts = [rng.choice((b"", b"k%d" % n, b"x" * rng.choice((1, 130, 9000)))) for n in range(2 * count)]
    body = b"".join(struct.pack("<BI", 7, len(text)) + text for text in texts)
    return struct.pack("<BI", 0x0B, rng.choice((count, count, count + 1, 2**32 - 1))) + body


def packed(rng: random.Random, before: bytes) -> bytes:
    """As many as announced, or nearly."""
    count = rng.choice((0, 1, 2, 5, 32, 33))
    return struct.pack("<H", count) + (before + number(rng.randrange(50))) * (count + (rng.randrange(5) == 0))


def payload(rng: random.Random, kind: int) -> bytes:
    arguments = struct.pack("<H", rng.choice((0, 1, 1, 2))) + b"".join(
        rng.choice((number(rng.randrange(50)), b"\x15", struct.pack("<BQ", 0x14, rng.getrandbits(8)))) for _ in range(rng.randrange(3))
    )
    likely = {
        REQUEST: arguments,
        REPLY: number(rng.randrange(9)),
        ERROR: pack_error(KeyError(1)),
        ITEM: number(rng.randrange(9)),
        CREDIT: struct.pack("<I", rng.choice((0, 1, 16, 33, 2**32 - 1))),
        CALLBACK: struct.pack("<QH", rng.getrandbits(8), 0) + struct.pack("<H", 1) + number(3),
        RETURN: number(5),
        RAISE: pack_error(ValueError("x")),
        RELEASE: struct.pack("<Q", rng.getrandbits(8)) * rng.randrange(3),
        REQUESTS: packed(rng, struct.pack("<H", 1)),
        REPLIES: packed(rng, b""),
    }.get(kind, b"")
    if rng.randrange(4):
        return likely
    changed = bytearray(likely + rng.randbytes(rng.randrange(4)))
    for _ in range(rng.randrange(3)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed) + 1)] if rng.randrange(2) else changed)


def frame(rng: random.Random, kinds: range, calls: list[int]) -> bytes:
    kind = rng.choice(kinds)
    flags = rng.choice((0, 0, WAITS, METADATA, WAITS | METADATA)) if kind == REQUEST else 0
    body = (metadata(rng) if flags & METADATA else b"") + payload(rng, kind)
    call = rng.choice(calls)
    return (
        pack_header(len(body), kind, flags, call, 0, rng.randrange(len(METHODS) + (rng.randrange(20) == 0)), 0, rng.choice((0, 0, 10**9)))
        + body
    )


def bounded(error: BaseException) -> None:
    assert len(str(error)) < 2000


def check_plugin(rng: random.Random) -> None:
    """A host that sends anything."""
    implementation = PlainCalls()
    left = iter(range(rng.randrange(1, FRAMES_MAX)))
    calls = [1, 2, 3, 4, 5]

    def next_frame() -> bytes | None:
        return (
            frame(rng, range(REQUEST, REPLIES + 1) if rng.randrange(3) else range(REQUEST, REQUEST + 1), calls)
            if next(left, None) is not None
            else None
        )

    link = Script(next_frame)
    server = Server(link, DeferredPort(), [[(MethodCodec("fuzz.calls/1", one), getattr(implementation, one.name)) for one in METHODS]])
    server.line.close()  # no callback link will come
    try:
        server.run()
    except RemoteProtocolError as error:
        bounded(error)
    for sent in link.sent:
        assert unpack_header(sent).size == len(sent) - 32


def check_caller(rng: random.Random) -> None:
    """A plugin that answers anything."""
    left = iter(range(rng.randrange(1, FRAMES_MAX)))
    made: list[int] = []

    def next_frame() -> bytes | None:
        if next(left, None) is None:
            return None
        made[:] = [unpack_header(sent).call for sent in link.sent if unpack_header(sent).kind in (REQUEST, REQUESTS)] or [0]
        return frame(rng, range(REPLY, REPLIES + 1), [*made, made[-1], made[-1], rng.randrange(9)])

    link = Script(next_frame)
    caller = Caller(link, DeferredPort(), lambda method: Closed("the end"))
    remotes = [Remote(caller, MethodCodec("fuzz.calls/1", one), 0, index, None, one.signature) for index, one in enumerate(METHODS)]
    for _ in range(3):
        one = rng.choice(remotes)
        if one.__name__ == "double" and rng.randrange(2):
            with contextlib.suppress(PluginError, KeyError, ValueError), deadline(after_s=CALL_S):
                list(Mapped(one, (range(rng.randrange(1, 80)),), 40, rng.randrange(2) == 0, False))
            continue
        with contextlib.suppress(PluginError, KeyError, ValueError), deadline(after_s=CALL_S):
            found: Any = one(*arguments_of(one.__name__, rng))
            if hasattr(found, "close"):
                with found:
                    list(found)


def arguments_of(name: str, rng: random.Random) -> tuple[Any, ...]:
    n = rng.randrange(40)
    return {"double": (n,), "count": (n,), "each": (n, abs), "keep": (abs,)}.get(name, (range(n),))


CHECKS = (check_plugin, check_caller)
