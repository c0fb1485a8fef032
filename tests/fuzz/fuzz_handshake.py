# Invariant: whatever bytes, environment values, reattach texts and log lines a peer writes, parsing ends in a value or in an error of
# the tree with a text of at most 2000 characters; it loses no byte behind the line, keeps at most 64 skipped lines, holds back bounded
# text, and what a parser accepted it formats to something that it accepts as the same.
from __future__ import annotations

import contextlib
import json
import logging
import random

from fastplug.config import HandshakeConfig
from fastplug.errors import ConfigError, HandshakeError, PluginError
from fastplug.handshake.environment import (
    Choice,
    Offer,
    family_marks,
    honour,
    host_environment,
    is_vouched,
    plugin_environment,
    vouch_message,
)
from fastplug.handshake.line import SKIPPED_LINES_MAX, HandshakeLine, LineReader
from fastplug.handshake.negotiation import accept, choose_version
from fastplug.process.hclog import LINE_BYTES_MAX, RECORD_BYTES_MAX, LineAssembler, format_record, parse_line
from fastplug.reattach_config import format_reattach, parse_reattach

TEXT_CHARS_MAX = 2000
NAMES = (
    "KEY", "FASTPLUG_OFFER", "PLUGIN_PROTOCOL_VERSIONS", "PLUGIN_MIN_PORT", "PLUGIN_MAX_PORT", "FASTPLUG_LOG_LEVEL", "FASTPLUG_FAMILY",
    "PLUGIN_CLIENT_CERT", "PLUGIN_MULTIPLEX_GRPC", "PLUGIN_UNIX_SOCKET_DIR", "PLUGIN_UNIX_SOCKET_GROUP",
)  # fmt: skip
OFFER = Offer(pid=10, fd=5)

LINES = (
    b"1|1|unix|/tmp/plugin1|grpc|",
    b"1|1|tcp|127.0.0.1:1234",
    b"1|1|inherit|5/1/shm|fast|",
    b"1|1|unix|/x|grpc|" + b"QUJD" * 30 + b"|true",
)
# What may stand in each of the seven fields, and behind them.
FIELDS = (
    (b"1", b"2", b"one", b"", b"+1", b"1" * 30, b"-1"),
    (b"1", b"9", b"", b"x", b"01"),
    (b"unix", b"tcp", b"inherit", b"pigeon", b""),
    (b"/tmp/plugin1", b"127.0.0.1:80", b":1234", b"5/1/shm", b"", b"/\xff", b"[::1]:99999"),
    (b"grpc", b"netrpc", b"fast", b"soap", b""),
    (b"", b"extra", b"QUJD" * 30, b"QUJD" * 30 + b"=", b"*" * 60, b"A" * 53),
    (b"true", b"false", b"T", b"0", b"", b"maybe"),
    (b"", b"more"),
)
REATTACH = (
    b'{"a/b": {"Protocol": "grpc", "ProtocolVersion": 5, "Pid": 1, "Test": true, "Addr": {"Network": "unix", "String": "/path"}}}',
    b'{"": {"Protocol": "", "Addr": {"Network": "tcp", "String": "127.0.0.1:1"}}, "b": {"Pid": -1}}',
    b"[]",
    b'{"a": null}',
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
    line = rng.choice(LINES) if rng.random() < 0.5 else b"|".join(rng.choice(values) for values in FIELDS[: rng.randrange(3, 9)])
    stream = banner + mutated(rng, line) + rng.choice((b"\n", b"\r\n", b"")) + mutated(rng, b"later\n")
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
    lying = vouch_message(OFFER)
    vouched = is_vouched(offer, mutated(rng, lying))
    assert vouched <= (offer is not None)
    assert is_vouched(offer, lying + b"more") == (offer == OFFER)
    chosen = honour(offer, parent_pid=rng.choice((10, 1)), peer_pid_of_fd=rng.choice((10, 0, None)), vouched=vouched)
    assert not isinstance(chosen, Choice) or offer is not None
    choice = Choice.parse(mutated(rng, b"5/1/shm").decode("utf-8", "surrogateescape"))
    if choice is not None:
        assert Choice.parse(choice.format()) == choice
    environ = {name: mutated(rng, rng.choice((b"1,2", b"", b"25000"))).decode("utf-8", "surrogateescape") for name in NAMES}
    found = plugin_environment(environ, cookie_key="KEY")
    assert set(found.remove) == set(NAMES) - {"FASTPLUG_FAMILY"}
    assert choose_version((1, 3), found.versions) in (1, 3)
    marks = family_marks(environ["FASTPLUG_FAMILY"], "0" * 16)
    assert len(marks) < 300
    with contextlib.suppress(ConfigError):  # a host whose own environment is full of the same
        made = host_environment(environ, environ, HandshakeConfig(1, "KEY", "value"), versions=(1,), family=marks)
        assert (made["KEY"], made["PLUGIN_PROTOCOL_VERSIONS"], made["FASTPLUG_FAMILY"]) == ("value", "1", marks)
        assert "FASTPLUG_OFFER" not in made
    with contextlib.suppress(HandshakeError):
        low, high = found.ports()
        assert 0 <= low <= high <= 65535


def check_reattach(rng: random.Random) -> None:
    text = mutated(rng, rng.choice(REATTACH)).decode("utf-8", "surrogateescape")
    refused = ""
    try:
        found = parse_reattach(text)
        assert parse_reattach(format_reattach(found)) == found
    except ConfigError as error:
        refused = str(error)
    assert len(refused) <= TEXT_CHARS_MAX


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


CHECKS = (check_line, check_environment, check_reattach, check_log)
