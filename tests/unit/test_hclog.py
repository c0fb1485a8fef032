"""Lines of plugins to records and back. Real tracebacks of this interpreter, each exactly one record; arbitrary bytes never raise."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastplug.process.hclog import LINE_BYTES_MAX, RECORD_BYTES_MAX, TRACE, LineAssembler, LogRecordFields, format_record, parse_line


def assembled(text: str) -> list[LogRecordFields]:
    assembler = LineAssembler()
    return [record for line in text.splitlines(keepends=True) for record in assembler.feed(line)] + assembler.flush()


@pytest.mark.parametrize(
    ("line", "level", "message", "logger"),
    [
        ("hello", logging.INFO, "hello", ""),
        ("[WARN] careful", logging.WARNING, "careful", ""),
        ("[TRACE] x", TRACE, "x", ""),
        ("ERROR:a.b:it broke", logging.ERROR, "it broke", "a.b"),
        ("/x/y.py:3: DeprecationWarning: old", logging.WARNING, "/x/y.py:3: DeprecationWarning: old", ""),
        ("panic: runtime error", logging.ERROR, "panic: runtime error", ""),
        ('{"@level":"debug","@message":"plugin address","@module":"kv"}', logging.DEBUG, "plugin address", "kv"),
        ('{"@level":" WARN ","@message":"x"}', logging.WARNING, "x", ""),
        ('{"@message":"x"}', logging.INFO, "x", ""),
        ('{"@level":3,"@message":"x"}', logging.INFO, '{"@level":3,"@message":"x"}', ""),
        ('{"@level":"error","@message":{"a":1},"@module":7}', logging.ERROR, '{"a": 1}', "7"),
        ('{"level":"error","msg":"of another library"}', logging.INFO, '{"level":"error","msg":"of another library"}', ""),
        ("{" * 5000, logging.INFO, "{" * 5000, ""),
        ('{"@message":' + "[" * 50000, logging.INFO, '{"@message":' + "[" * 50000, ""),
        ('{"@message":' + "9" * 5000 + "}", logging.INFO, '{"@message":' + "9" * 5000 + "}", ""),
    ],
)
def test_one_line(line: str, level: int, message: str, logger: str) -> None:
    for form in (line, line.encode(), line + "\r\n"):
        record = parse_line(form)
        assert (record.level, record.message, record.logger) == (level, message, logger)


def test_timestamp_and_fields_of_a_go_plugin() -> None:
    line = '{"@level":"info","@message":"m","@timestamp":"2026-08-17T10:00:00.123456+02:00","address":"/tmp/x","n":[1]}'
    record = parse_line(line)
    assert record.timestamp == 1786953600.123456
    assert record.fields == {"address": "/tmp/x", "n": [1]}


@pytest.mark.parametrize(
    "timestamp",
    [
        '"yesterday"',
        "7",
        "null",
        "[]",
        '""',
        '"2026-08-17T10:00:00Z"',
        '"2026-08-17T10:00:00.123Z"',
        '"2026-08-17T10:00:00.1234567Z"',
        '"2026-08-17T10:00:00.123456"',
        '"2026-08-17 10:00:00.123456Z"',
        '"2026-08-17T10:00:00.123456+0200"',
        '"2026-13-17T10:00:00.123456Z"',
        '"2026-08-17T25:00:00.123456Z"',
    ],
)
def test_a_line_with_a_timestamp_that_go_does_not_parse_is_text(timestamp: str) -> None:
    line = f'{{"@level":"error","@message":"m","@timestamp":{timestamp}}}'
    record = parse_line(line)
    assert (record.level, record.message, record.timestamp, record.fields) == (logging.INFO, line, None, {})


@pytest.mark.parametrize(("timestamp", "seconds"), [("1970-01-01T00:00:01.500000Z", 1.5), ("1970-01-01T01:00:00.000000+01:00", 0.0)])
def test_timestamps_that_go_parses(timestamp: str, seconds: float) -> None:
    assert parse_line(f'{{"@message":"m","@timestamp":"{timestamp}"}}').timestamp == seconds


def plain() -> None:
    raise ValueError("boom")


def caused() -> None:
    try:
        plain()
    except ValueError as error:
        raise KeyError("lost") from error


def during() -> None:
    try:
        caused()
    except KeyError:
        raise RuntimeError("several\nlines  \n  of text") from None


def in_context() -> None:
    try:
        caused()
    except KeyError:
        plain()


def noted() -> None:
    error = ValueError("boom")
    error.add_note("a note\nof two lines")
    raise error


def grouped() -> None:
    try:
        plain()
    except ValueError as first:
        raise ExceptionGroup("eg", [first, ExceptionGroup("inner", [TypeError("2"), KeyError("3")])]) from first


def after_a_group() -> None:
    try:
        grouped()
    except ExceptionGroup:
        plain()


def too_deep() -> None:
    too_deep()


def syntax() -> None:
    compile("x = = 1", "x.py", "exec")


RAISING = (plain, caused, during, in_context, noted, grouped, after_a_group, too_deep, syntax)


@pytest.mark.parametrize("raising", RAISING)
def test_a_traceback_is_one_record(raising: Callable[[], None]) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  whatever it is, it is printed as Python prints it
        raising()
    text = "".join(traceback.format_exception(caught.value))
    records = assembled(f"before\n{text}[INFO] after\n")
    assert [(r.level, r.message) for r in records[::2]] == [(logging.INFO, "before"), (logging.INFO, "after")]
    (record,) = records[1:-1]
    assert record.level == logging.ERROR
    assert record.exc_text == text.rstrip()
    assert record.message.startswith(f"{type(caught.value).__name__}: ")


def test_a_syntax_error_of_the_main_script_and_an_exception_in_a_thread() -> None:
    text = '  File "bad.py", line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax\n'
    assert [r.message for r in assembled(text)] == ["SyntaxError: invalid syntax"]
    text = 'Exception in thread Thread-1 (f):\nTraceback (most recent call last):\n  File "x.py", line 1, in f\nKeyError: 1\n'
    (record,) = assembled(text)
    assert (record.message, record.exc_text) == ("KeyError: 1", text.rstrip())
    assert [r.message for r in assembled("Exception in thread x\nhello\n")] == ["Exception in thread x", "hello"]


def test_two_tracebacks_are_two_records_and_json_ends_one() -> None:
    one = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nKeyError: 1\n'
    assert [r.message for r in assembled(one + one)] == ["KeyError: 1", "KeyError: 1"]
    records = assembled(one + '{"@message":"next","@level":"info"}\n')
    assert [(r.level, r.message) for r in records] == [(logging.ERROR, "KeyError: 1"), (logging.INFO, "next")]
    assert [r.message for r in assembled(one + "\nlater text\n")] == ["KeyError: 1", "later text"]


def test_after_a_panic_everything_is_an_error() -> None:
    records = assembled("fine\npanic: oh\n\ngoroutine 1 [running]:\n\t/x/main.go:3\n[INFO] not this\n")
    levels = [logging.INFO, logging.ERROR, logging.ERROR, logging.ERROR, logging.INFO]
    assert [r.level for r in records] == levels


def test_an_endless_traceback_comes_in_bounded_pieces() -> None:
    records = assembled("Traceback (most recent call last):\n" + "  x\n" * 2500 + "KeyError: 1\n" + "more\n" * 100)
    assert all(len(record.exc_text or "") <= RECORD_BYTES_MAX for record in records)
    assert [record.level for record in records[:3]] == [logging.ERROR] * 3
    assert sum(record.level == logging.INFO for record in records) == 100 - 31


@given(st.lists(st.binary() | st.sampled_from([b"Traceback (most recent call last):", b"  x", b"", b'{"@message":1}', b"  + x", b"E: x"])))
def test_arbitrary_lines_never_raise_and_lose_no_text(lines: list[bytes]) -> None:
    assembler = LineAssembler()
    records = [record for line in lines for record in assembler.feed(line)] + assembler.flush()
    assert not assembler.pending
    assert len(records) <= len(lines)
    joined = "\n".join((record.exc_text or "") + record.message for record in records)
    assert all(len(line) < 3 or line.decode("utf-8", "replace").strip() in joined for line in lines if not line.startswith((b"{", b"[")))


def record_of(message: object = "m", *args: object, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("a.b", logging.WARNING, "/x/y.py", 7, message, args, None)
    vars(record).update(extra)
    return record


def test_a_record_as_a_go_host_wants_it() -> None:
    record = record_of("n = %d", 3, user="x", count=5)
    record.created = 1786953600.0
    members = json.loads(format_record(record))
    assert members == {
        "@level": "warn",
        "@message": "n = 3",
        "@module": "a.b",
        "@timestamp": "2026-08-17T08:00:00.000000Z",
        "@caller": "/x/y.py:7",
        "user": "x",
        "count": "5",
    }


@pytest.mark.parametrize(
    ("level", "name"), [(60, "error"), (40, "error"), (35, "warn"), (20, "info"), (10, "debug"), (5, "trace"), (0, "trace")]
)
def test_levels_round_up_to_the_next_that_hclog_knows(level: int, name: str) -> None:
    record = record_of()
    record.levelno = level
    assert json.loads(format_record(record))["@level"] == name


def test_a_traceback_travels_in_one_record() -> None:
    record = record_of("failed")
    try:
        in_context()
    except ValueError:
        record.exc_info = sys.exc_info()
    line = format_record(record)
    assert "\n" not in line
    (back,) = assembled(line)
    assert back.message == "failed"
    assert back.exc_text is not None
    assert back.exc_text.endswith("ValueError: boom")
    assert "During handling" in back.exc_text


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize(
    "record",
    [
        record_of("%d", "x"),
        record_of("%s %s", 1),
        record_of(Hostile()),
        record_of("x", field=Hostile()),
        record_of("x" * 10**6),
        record_of("\U0001f600" * 10**5, a="\ud800" * 10**5, b="\0" * 10**5),
        record_of("x", **{f"field{n}": "\0" * 10**4 for n in range(100)}),
        record_of("x", created="now"),
        record_of("x", created=1e300),
        record_of("x", levelno="high"),
        record_of("x", name=Hostile(), pathname=None, exc_info=(1, 2), exc_text=3),
        record_of("x", exc_info=True),
    ],
)
def test_formatting_never_raises_and_fits(record: logging.LogRecord) -> None:
    line = format_record(record)
    assert len(line) < LINE_BYTES_MAX
    members = json.loads(line)
    assert all(isinstance(value, str) for value in members.values())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", members["@timestamp"])


@given(st.text(), st.integers(-10, 100), st.floats())
def test_any_record_is_understood_again(message: str, level: int, created: float) -> None:
    record = record_of(message)
    record.levelno, record.created, record.args = level, created, None
    back = parse_line(format_record(record))
    assert back.message == message
    assert back.logger == "a.b"
