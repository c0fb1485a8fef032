"""The twelve bytes before everything (yamux: spec.md, "Framing"), big-endian:

    version u8 = 0 | type u8 | flags u16 | stream id u32 | length u32

The length is that of the payload in DATA, a number of bytes in WINDOW_UPDATE, an opaque value in PING, a code in GO_AWAY; only DATA has a
payload. Stream 0 is the session.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

__all__ = ["HEADER", "HEADER_BYTES", "INITIAL_WINDOW_BYTES", "LENGTH_MAX", "VERSION", "Flag", "FrameType", "GoAwayCode", "header"]

VERSION: Final = 0
HEADER: Final = struct.Struct("!BBHII")
HEADER_BYTES: Final = HEADER.size
# Both sides start each direction of a stream with this much, without having said so.
INITIAL_WINDOW_BYTES: Final = 256 * 1024
# What fits into the length, and so the largest window that can be meant.
LENGTH_MAX: Final = 2**32 - 1


class FrameType(enum.IntEnum):
    """The second byte."""

    DATA = 0
    WINDOW_UPDATE = 1
    PING = 2
    GO_AWAY = 3


class Flag(enum.IntFlag):
    """Bits of the third and fourth byte, in DATA and WINDOW_UPDATE; PING uses SYN to ask and ACK to answer. Others mean nothing."""

    SYN = 1
    ACK = 2
    FIN = 4
    RST = 8


class GoAwayCode(enum.IntEnum):
    """Why a side goes away. NORMAL only means that it takes no more streams."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


def header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """One header."""
    return HEADER.pack(VERSION, kind, flags, stream_id, length)
