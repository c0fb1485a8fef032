"""What plugins write to stderr, as log records; and log records as plugins write them. Pure.

The common language is hclog's JSON: one object a line with "@level", "@message", "@module", "@timestamp", everything else being
fields. A Go host expects strings everywhere (it panics otherwise) and a timestamp with exactly six digits. From a plugin other values are
tolerated, and a line with another timestamp is plain text, as for a Go host. Besides JSON a line may be

    [WARN] text                      a Go logger's prefix
    WARNING:name:text                Python's logging.BASIC_FORMAT
    file.py:3: UserWarning: text     Python's warnings
    panic: ..., fatal error: ...     Go; Fatal Python error: ...   CPython. Everything after it is an error, too
    Traceback (most recent call last):   one record, whatever is chained to it or grouped in it
    anything else                    INFO: go-plugin takes it for DEBUG, and so hides what a plugin's author wanted to be seen
"""

from __future__ import annotations

import datetime as dt
import enum
import json
import logging
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["TRACE", "LineAssembler", "LogRecordFields", "format_record", "parse_line"]

# hclog has a level below debug; logging's convention for such a one is 5.
TRACE: Final = 5
# Plain text is for people: see the module's docstring.
PLAIN_LEVEL: Final = logging.INFO

# A Go host reads lines up to this length; a longer one arrives there in pieces that are no JSON.
LINE_BYTES_MAX: Final = 64 * 1024
# One record: a deep traceback fits (RecursionError is about 30 lines, Python itself leaves out what repeats).
RECORD_BYTES_MAX: Final = 64 * 1024
RECORD_LINES_MAX: Final = 1000
# Unindented lines taken for the rest of a multi-line exception message (pydantic prints some 20); nothing marks its end.
MESSAGE_LINES_MAX: Final = 32

_LEVELS: Final = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
_GO_PREFIX: Final = re.compile(r"\[(TRACE|DEBUG|INFO|WARN|ERROR)\]\s*")
# hclog has no name for CRITICAL or for a level of one's own: a field beside "@level" says the number.
_EXACT_LEVEL: Final = "python_level"
_LEVEL_DIGITS: Final = 4

# Go: 2006-01-02T15:04:05.000000Z07:00
_TIMESTAMP: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}(Z|[+-][0-9]{2}:[0-9]{2})")

_BASIC_FORMAT: Final = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL):([\w.\-]+):")
_WARNING: Final = re.compile(r"\S.{0,400}?:[0-9]{1,9}: \w{0,80}Warning: ")
_PANIC: Final = re.compile(r"panic: |fatal error: |Fatal Python error: ")


@dataclass(slots=True)
class LogRecordFields:
    """One record of a plugin: ``level`` as in logging, ``logger`` as the plugin names it ("" if it does not), ``timestamp`` in
    seconds since the epoch or None, ``fields`` whatever else was in the JSON, ``exc_text`` a traceback or None."""

    level: int
    message: str
    logger: str = ""
    timestamp: float | None = None
    fields: dict[str, object] = field(default_factory=dict)
    exc_text: str | None = None


def parse_line(line: bytes | str, *, plain_level: int = PLAIN_LEVEL) -> LogRecordFields:
    """The record in one line (its newline is ignored). Never raises: what is not understood is plain text."""
    text = (line.decode("utf-8", "replace") if isinstance(line, bytes) else line).rstrip("\r\n")
    if text.startswith("{"):
        record = _from_json(text)
        if record is not None:
            return record
    if match := _GO_PREFIX.match(text):
        return LogRecordFields(_LEVELS[match[1].lower()], text[match.end() :])
    if match := _BASIC_FORMAT.match(text):
        return LogRecordFields(_LEVELS[match[1].lower()], text[match.end() :], logger=match[2])
    if _WARNING.match(text):
        return LogRecordFields(logging.WARNING, text)
    if _PANIC.match(text):
        return LogRecordFields(logging.ERROR, text)
    return LogRecordFields(plain_level, text)


def _from_json(text: str) -> LogRecordFields | None:
    try:
        members = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(members, dict) or "@message" not in members:
        return None
    level = _LEVELS.get(str(members.pop("@level", "info")).strip().lower())
    if level is None:
        return None  # "off" or an unknown one: go-plugin shows such a line verbatim, too
    level = _exact_level(members.pop(_EXACT_LEVEL, None), level)
    timestamp = _timestamp(members["@timestamp"]) if "@timestamp" in members else None
    if timestamp is None and "@timestamp" in members:
        return None  # whatever wrote it, it was not hclog: go-plugin shows the line as it stands, too
    members.pop("@timestamp", None)
    exc_text = members.get("exception")
    if isinstance(exc_text, str) and "Traceback (most recent call last):" in exc_text:
        del members["exception"]
    else:
        exc_text = None
    return LogRecordFields(
        level=level,
        message=_text(members.pop("@message")),
        logger=_text(members.pop("@module", "")),
        timestamp=timestamp,
        fields=members,
        exc_text=exc_text,
    )


def _exact_level(value: object, level: int) -> int:
    """The number that logging has for a level, when it is one that hclog would give the name we were told."""
    if not isinstance(value, str) or not value.isdecimal() or len(value) > _LEVEL_DIGITS:
        return level
    exact = int(value)
    return exact if _LEVELS[_level_name(exact)] == level else level


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=repr)


def _timestamp(value: object) -> float | None:
    """Seconds since the epoch, of a text in exactly the layout that Go parses."""
    if not isinstance(value, str) or not _TIMESTAMP.fullmatch(value):
        return None
    try:
        return dt.datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        return None


class _Token(enum.Enum):
    """What a line can be to a traceback."""

    HEADER = enum.auto()  # Traceback (most recent call last):
    GROUP_HEADER = enum.auto()  #   + Exception Group Traceback (most recent call last):
    FILE = enum.auto()  #   File "x.py", line 1: a SyntaxError in the main script has no header
    PREFACE = enum.auto()  # Exception in thread ..., Exception ignored in ...
    CHAIN = enum.auto()  # During handling of ..., The above exception was ...
    GROUP_LINE = enum.auto()  #   | ...
    INDENTED = enum.auto()
    BLANK = enum.auto()
    LEVELLED = enum.auto()  # a record of its own: JSON, or text with a level
    TEXT = enum.auto()


class _State(enum.Enum):
    """Where in a traceback we are."""

    IDLE = enum.auto()
    PREFACE = enum.auto()
    FRAMES = enum.auto()
    MESSAGE = enum.auto()  # behind the line with the exception; more lines of its message or its notes may follow
    GAP = enum.auto()  # an empty line: the end, or a chained exception
    CHAINED = enum.auto()
    GROUP = enum.auto()


_TOKENS: Final = (
    (re.compile(r"Traceback \(most recent call last\):\s*$"), _Token.HEADER),
    (re.compile(r"\s*\+ Exception Group Traceback \(most recent call last\):\s*$"), _Token.GROUP_HEADER),
    (re.compile(r'  File ".*", line [0-9]+'), _Token.FILE),
    (re.compile(r"Exception in thread |Exception ignored in|Exception in callback "), _Token.PREFACE),
    (re.compile(r"During handling of the above exception, another|The above exception was the direct cause of"), _Token.CHAIN),
    (re.compile(r"\s+[|+]"), _Token.GROUP_LINE),
    (re.compile(r"\s+\S"), _Token.INDENTED),
    (re.compile(r"\s*$"), _Token.BLANK),
    (re.compile("|".join(p.pattern for p in (_GO_PREFIX, _BASIC_FORMAT, _PANIC)) + r'|\{"'), _Token.LEVELLED),
)

# Whatever is not in the table ends the record, and the line is looked at again from IDLE.
_NEXT: Final = {
    (_State.IDLE, _Token.HEADER): _State.FRAMES,
    (_State.IDLE, _Token.FILE): _State.FRAMES,
    (_State.IDLE, _Token.GROUP_HEADER): _State.GROUP,
    (_State.IDLE, _Token.PREFACE): _State.PREFACE,
    (_State.PREFACE, _Token.HEADER): _State.FRAMES,
    (_State.PREFACE, _Token.GROUP_HEADER): _State.GROUP,
    (_State.FRAMES, _Token.FILE): _State.FRAMES,
    (_State.FRAMES, _Token.INDENTED): _State.FRAMES,
    (_State.FRAMES, _Token.GROUP_LINE): _State.FRAMES,
    (_State.FRAMES, _Token.TEXT): _State.MESSAGE,
    (_State.MESSAGE, _Token.TEXT): _State.MESSAGE,
    (_State.MESSAGE, _Token.INDENTED): _State.MESSAGE,
    (_State.MESSAGE, _Token.FILE): _State.MESSAGE,
    (_State.MESSAGE, _Token.GROUP_LINE): _State.MESSAGE,
    (_State.MESSAGE, _Token.BLANK): _State.GAP,
    (_State.GAP, _Token.CHAIN): _State.CHAINED,
    (_State.CHAINED, _Token.BLANK): _State.CHAINED,
    (_State.CHAINED, _Token.HEADER): _State.FRAMES,
    (_State.CHAINED, _Token.GROUP_HEADER): _State.GROUP,
    (_State.GROUP, _Token.GROUP_LINE): _State.GROUP,
    (_State.GROUP, _Token.GROUP_HEADER): _State.GROUP,
    (_State.GROUP, _Token.BLANK): _State.GAP,
}

# The exception itself inside a group's drawing: two spaces, a bar, one space (its frames have more).
_GROUP_SUMMARY: Final = re.compile(r"  \| (\S.*)")


def _token(text: str) -> _Token:
    return next((token for pattern, token in _TOKENS if pattern.match(text)), _Token.TEXT)


class LineAssembler:
    """Lines in, records out; a traceback is one record of level ERROR. Not thread-safe.

    A record may be complete only when the next line comes: call ``flush()`` when there is none for a while, and at the end.
    Bounds: a record of more than 64 KiB or 1000 lines comes in pieces.
    """

    def __init__(self, *, plain_level: int = PLAIN_LEVEL) -> None:
        self._plain_level = plain_level
        self._state = _State.IDLE
        self._block: list[str] = []
        self._block_chars = 0
        self._message_lines = 0
        self._summary = ""
        self._last_level = plain_level

    @property
    def pending(self) -> bool:
        """Whether lines are held back because more of the same record may follow."""
        return bool(self._block)

    def feed(self, line: bytes | str) -> list[LogRecordFields]:
        """Take one line, with or without its newline; the records that are complete now."""
        text = (line.decode("utf-8", "replace") if isinstance(line, bytes) else line).rstrip("\r\n")
        token = _token(text)
        records: list[LogRecordFields] = []
        state = _NEXT.get((self._state, token))
        if state is None or (token is _Token.TEXT and self._message_lines >= MESSAGE_LINES_MAX):
            records += self.flush()
            state = _NEXT.get((_State.IDLE, token))
        if state is None:
            if token is not _Token.BLANK:
                records.append(self._single(text))
            return records
        if len(self._block) >= RECORD_LINES_MAX or self._block_chars + len(text) > RECORD_BYTES_MAX:
            records += self._cut()
        self._take(state, token, text)
        return records

    def feed_rest(self, piece: bytes | str) -> list[LogRecordFields]:
        """Take a further piece of the line that was fed last, which was too long for one: whatever it looks like, it is no line."""
        text = (piece.decode("utf-8", "replace") if isinstance(piece, bytes) else piece).rstrip("\r\n")
        if not self._block:
            return [LogRecordFields(self._last_level, text)]
        records = self._cut() if self._block_chars + len(text) > RECORD_BYTES_MAX else []
        self._block.append(text)
        self._block_chars += len(text) + 1
        return records

    def flush(self) -> list[LogRecordFields]:
        """What is held back, as it stands."""
        records = self._cut()
        self._state = _State.IDLE
        self._summary = ""
        self._message_lines = 0
        return records

    def _take(self, state: _State, token: _Token, text: str) -> None:
        self._block.append(text)
        self._block_chars += len(text) + 1
        if state is _State.MESSAGE and self._state is not _State.MESSAGE:
            self._summary = text
            self._message_lines = 0
        elif state is _State.GROUP and (match := _GROUP_SUMMARY.match(text)):
            self._summary = match[1]
        self._message_lines += state is _State.MESSAGE and token is _Token.TEXT
        self._state = state

    def _cut(self) -> list[LogRecordFields]:
        block, self._block, self._block_chars = "\n".join(self._block).rstrip(), [], 0
        if not block:
            return []
        if self._state is _State.PREFACE:
            return [LogRecordFields(logging.ERROR, block)]
        return [LogRecordFields(logging.ERROR, self._summary or block.partition("\n")[0].strip(), exc_text=block)]

    def _single(self, text: str) -> LogRecordFields:
        if _PANIC.match(text):
            self._plain_level = logging.ERROR  # as go-plugin: what a dying process says next belongs to it
        record = parse_line(text, plain_level=self._plain_level)
        self._last_level = record.level
        return record


_STANDARD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Smaller and smaller limits in characters for each text of a record, until the line fits: JSON escapes can make 12 bytes of one.
_TEXT_CHARS_MAX: Final = (24_000, 8_000, 2_000, 500)
_FIELDS_MAX: Final = 32


def format_record(record: logging.LogRecord) -> str:
    """One line of hclog JSON without a newline: strings only, at most 64 KiB, the traceback as "exception". Never raises."""
    texts = {
        "@level": _level_name(record.levelno),
        "@message": _message(record),
        "@module": _safely(lambda: str(record.name)),
        "@timestamp": _format_timestamp(record.created),
        "@caller": _safely(lambda: f"{record.pathname}:{record.lineno}"),
    }
    if record.levelno != _LEVELS[texts["@level"]]:
        texts[_EXACT_LEVEL] = str(record.levelno)[:_LEVEL_DIGITS]
    exception = _safely(lambda: _exception(record))
    if exception:
        texts["exception"] = exception
    extra = [name for name in vars(record) if name not in _STANDARD_ATTRIBUTES and name not in texts]
    for name in extra[:_FIELDS_MAX]:
        texts[name[:80]] = _safely(lambda name=name: str(getattr(record, name)))  # type: ignore[misc]  # mypy: a lambda's default
    for limit in _TEXT_CHARS_MAX:
        line = json.dumps({name: _shortened(text, limit) for name, text in texts.items()})
        if len(line) < LINE_BYTES_MAX:
            return line
    return json.dumps({name: _shortened(text, _TEXT_CHARS_MAX[-1]) for name, text in texts.items() if name[:1] == "@"})


def _safely(make: Callable[[], str]) -> str:
    try:
        return make()
    except Exception as error:  # noqa: BLE001  str() of a user's object: a log record must not become an exception
        return f"<{type(error).__name__} while this was formatted>"


def _message(record: logging.LogRecord) -> str:
    try:
        return str(record.getMessage())
    except Exception as error:  # noqa: BLE001  as above; the template at least can be shown
        return f"{_safely(lambda: str(record.msg))} <{type(error).__name__}: the arguments do not fit>"


def _exception(record: logging.LogRecord) -> str:
    parts = [record.exc_text or (_format_traceback(record.exc_info) if record.exc_info else ""), record.stack_info or ""]
    return "\n".join(part.rstrip("\n") for part in parts if part)


def _format_traceback(exc_info: object) -> str:
    error = exc_info[1] if isinstance(exc_info, tuple) and len(exc_info) == 3 else None
    return "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""


def _level_name(level: object) -> str:
    if not isinstance(level, int):
        return "info"
    steps = ((logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info"), (logging.DEBUG, "debug"))
    return next((name for least, name in steps if level >= least), "trace")


def _format_timestamp(created: float) -> str:
    try:
        moment = dt.datetime.fromtimestamp(created, dt.UTC)
    except (ValueError, OverflowError, OSError, TypeError):
        moment = dt.datetime.fromtimestamp(0, dt.UTC)  # a Go host takes a line without a valid one for plain text
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _shortened(text: str, limit: int) -> str:
    """Head and tail of ``text``: the tail of a traceback names the exception."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
