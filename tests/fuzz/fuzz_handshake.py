# Invariant: whatever bytes, environment values and log lines a peer writes, parsing ends in a value or in an error of the tree
# with a text of at most 2000 characters; it loses no byte behind the line, keeps at most 64 skipped lines, holds back bounded text,
# and what a parser accepted it formats to something that it accepts as the same.
from __future__ import annotations

import contextlib
import json
import logging
import random

from fastplug.errors import HandshakeError, PluginError
from fastplug.handshake.environment import Choice, Offer, honour, plugin_environment
from fastplug.handshake.line import SKIPPED_LINES_MAX, HandshakeLine, LineReader
from fastplug.handshake.negotiation import accept
from fastplug.process.hclog import LINE_BYTES_MAX, RECORD_BYTES_MAX, LineAssembler, format_record, parse_line

TEXT_CHARS_MAX = 2000
OFFER = Offer(pid=10, fd=5)

LINES = (
    b"1|1|unix|/tmp/plugin1|grpc|",
    b"1|1|tcp|127.0.0.1:1234",
    b"1|1|inherit|5/1/shm|fast|",
    b"1|1|unix|/x|grpc|" + b"QUJD" * 30 + b"|true",
)
OFFERS = (OFFER.format().encode(), b"pid=1;fd=2;fast=1,2,3;transport=socket;new=1")
LOG_LINES = (
    b'{"@level":"info","@message":"m","@module":"a","@timestamp":"2026-08-17T10:00:00.123456Z","field":"f"}',
    b'{"@level":"error","@message":"m","exception":"Traceback (most recent call last):\\nKeyError"}',
    b"Traceback (most recent call last):",
    b'  File "x.py", line 1, in f',
    b"    code",
    b"KeyError: 1",
    b"",
    b"During handling of the above exception, another exception occurred:",
    b"The above exception was the direct cause of the following exception:",
    b"  + Exception Group Traceback (most recent call last):",
    b"  | ExceptionGroup: eg (2 sub-exceptions)",
    b"  +-+---------------- 1 ----------------",
    b"Exception in thread Thread-1 (f):",
    b"panic: x",
    b"[WARN] x",
    b"ERROR:a:b",
    b"x.py:1: UserWarning: w",
)
TOKENS = (b"|", b"\n", b";", b"=", b",", b"/", b"-1", b"9" * 30, b"\xff", b"\0", b"\xd9\xa1", b" ", b"{", b"[", b'"', b"\\ud800", b"1e999")


def mutated(rng: random.Random, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 1:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 2:
            data[at : at + 1] = bytes([rng.randrange(256)])
        else:
            data[at:at] = data[: rng.randrange(len(data) + 1)] * rng.choice((1, 1, 2, 300))
    return bytes(data)


def check_line(rng: random.Random) -> None:
    banner = b"".join(mutated(rng, b"banner") + b"\n" for _ in range(rng.choice((0, 0, 1, 3, 70))))
    stream = banner + mutated(rng, rng.choice(LINES)) + rng.choice((b"\n", b"\r\n", b"")) + mutated(rng, b"later\n")
    reader = LineReader(multiplex_wanted=rng.random() < 0.2)
    taken, found, refused = 0, None, ""
    try:
        while taken < len(stream) and found is None:
            step = rng.choice((1, 7, 100, 10**6))
            found = reader.feed(stream[taken : taken + step])
            taken += step
        if found is not None:
            assert stream[:taken].endswith(reader.rest)
            again = HandshakeLine.parse(found.format())
            assert again.app_version == found.app_version
            assert (again.protocol, again.server_cert, again.multiplex) == (found.protocol, found.server_cert, found.multiplex)
            accept(found, versions={1}, allowed_protocols=("fast", "grpc"), offer=OFFER)
    except PluginError as error:
        refused = str(error)
    assert len(refused) <= TEXT_CHARS_MAX
    assert len(reader.skipped) <= SKIPPED_LINES_MAX + 1
    assert len(reader.eof()) <= TEXT_CHARS_MAX


def check_environment(rng: random.Random) -> None:
    text = mutated(rng, rng.choice(OFFERS)).decode("utf-8", "surrogateescape")
    offer = Offer.parse(text)
    if offer is not None:
        assert Offer.parse(offer.format()) == offer
    honour(offer, parent_pid=10, peer_pid_of_fd=10)
    choice = Choice.parse(mutated(rng, b"5/1/shm").decode("utf-8", "surrogateescape"))
    if choice is not None:
        assert Choice.parse(choice.format()) == choice
    names = ("KEY", "FASTPLUG_OFFER", "PLUGIN_PROTOCOL_VERSIONS", "PLUGIN_MIN_PORT", "PLUGIN_MAX_PORT", "FASTPLUG_LOG_LEVEL")
    found = plugin_environment({name: mutated(rng, b"1,2").decode("utf-8", "surrogateescape") for name in names}, cookie_key="KEY")
    with contextlib.suppress(HandshakeError):
        low, high = found.ports()
        assert 0 <= low <= high <= 65535


def check_log(rng: random.Random) -> None:
    assembler = LineAssembler()
    records = []
    for _ in range(rng.choice((1, 3, 10, 30) * 25 + (1500,))):
        records += assembler.feed(mutated(rng, rng.choice(LOG_LINES))[:LINE_BYTES_MAX])
    records += assembler.flush()
    assert not assembler.pending
    for fields in records[:20]:
        assert len(fields.exc_text or "") <= RECORD_BYTES_MAX + LINE_BYTES_MAX
        record = logging.LogRecord(fields.logger, fields.level, "x.py", 1, fields.message, None, None)
        record.exc_text = fields.exc_text
        vars(record).update({f"x{name}": value for name, value in fields.fields.items()})
        line = format_record(record)
        assert len(line) < LINE_BYTES_MAX
        assert all(isinstance(value, str) for value in json.loads(line).values())
        again = parse_line(line)
        assert again.message == fields.message or "characters left out" in again.message


CHECKS = (check_line, check_environment, check_log)
