"""The slow half of _wire: what its errors say, and what of an exception travels. Nothing here runs on a call that succeeds."""

from __future__ import annotations

import builtins
import enum
import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from fastplug.errors import ArgumentError, PluginError, RemoteError, RemoteProtocolError, ResultError
from fastplug.signature import canonical

__all__ = [
    "TRACEBACK_BYTES_MAX",
    "Unbuilt",
    "Unfit",
    "argument_error",
    "buffer_bytes",
    "canonical",
    "cut_tail",
    "decimal_of",
    "exception_record",
    "flag_name",
    "flag_of",
    "given_twice",
    "got",
    "got_sequence",
    "items_of_buffer",
    "located",
    "missing",
    "result_error",
    "shown",
    "takes_positional",
    "too_many",
    "unexpected",
]

# wire.md, "Errors": longer texts would turn an error into a bulk transfer, and nobody reads them.
TRACEBACK_BYTES_MAX = 64 * 1024

_PLAIN = (type(None), bool, int, float, str, bytes)


class Unbuilt(RemoteProtocolError):
    """A class of this side refused the values of its fields. The payload itself is sound, and so is the connection; the cause is what the
    constructor raised."""

    next_step = "The connection is sound: call with values that the class takes, or mend its constructor."


class Unfit(Exception):
    """A value does not fit its declared type; ``got`` says in words what it is. Never leaves _wire: it becomes ArgumentError or
    ResultError there. With ``final`` the containers around the value do not add where it lies (limits concern the whole)."""

    def __init__(self, got: str, *, final: bool = False) -> None:
        super().__init__(got)
        self.got = got
        self.final = final

    def inside(self, where: str) -> None:
        """Adds one container: ``list whose item 3 is`` + what was known so far."""
        if not self.final:
            self.got = f"{where} {self.got}"


def got(value: object) -> str:
    """The type of a value in words: ``str``, ``decimal.Decimal``, ``numpy.ndarray[int64]``."""
    cls = type(value)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ == "numpy" and cls.__name__ == "ndarray":
        return f"{name}[{getattr(value, 'dtype', '?')}]"
    return "None" if value is None else name


def got_sequence(value: object, declared: str) -> str:
    """As ``got``, and for a list in place of a tuple, or the reverse, that this is on purpose."""
    if declared != type(value).__name__ and isinstance(value, (list, tuple)):
        return f"{got(value)} (which is not accepted for a {declared}: convert it)"
    return got(value)


def buffer_bytes(value: Any) -> int:
    """How many bytes a value with a buffer has. Raises Unfit for one that is not bytes in the end."""
    try:
        view = memoryview(value)
    except TypeError:
        raise Unfit(got(value)) from None
    except (BufferError, ValueError) as error:
        raise Unfit(f"{got(value)}, whose buffer cannot be had: {error}") from error
    if "O" in re.sub(r":[^:]*:", "", view.format):  # without the names of fields
        raise Unfit(f"{got(value)}, whose items are Python objects")
    return view.nbytes


def items_of_buffer(value: Any) -> Any:
    """An array of bytes over a buffer; over a copy, in C order, of one whose bytes do not lie in a row."""
    import numpy as np

    view = memoryview(value)
    return np.frombuffer(value if view.c_contiguous else view.tobytes(), np.uint8)


def shown(key: object) -> str:
    """A dict key, short enough for an error text."""
    try:
        text = repr(key)
    except Exception:  # noqa: BLE001  it only decorates the text of another error
        return f"a key of type {got(key)}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unfit(value: object, error: Exception) -> tuple[str, BaseException | None] | None:
    """What a failed encoding says of the value, and its cause; None for errors that do not concern the value."""
    if isinstance(error, Unfit):
        return error.got, error.__cause__
    if isinstance(error, (PluginError, MemoryError)):
        return None
    return f"{got(value)} whose own code raised {type(error).__name__}: {_guarded_str(error)}", error


def argument_error(qualified: str, parameter: str, expected: str, value: object, error: Exception) -> Exception:
    """ArgumentError for what encoding a parameter raised; errors that do not concern the value come back unchanged."""
    found = _unfit(value, error)
    if found is None:
        return error
    where = f"{qualified}(): argument {parameter!r}" if qualified else parameter
    made = ArgumentError(
        f"{where} must be {expected}, got {found[0]}", method=qualified, parameter=parameter, expected=expected, got=found[0]
    )
    made.__cause__ = found[1]
    return made


def result_error(qualified: str, expected: str, value: object, error: Exception, *, callback: bool = False) -> Exception:
    """ResultError, as ``argument_error``."""
    found = _unfit(value, error)
    if found is None:
        return error
    who, where = ("callback", "host") if callback else ("handler", "plugin")
    made = ResultError(f"{qualified}(): the {who} must return {expected}, got {found[0]}; correct the {where}")
    made.__cause__ = found[1]
    return made


def located(qualified: str, error: RemoteProtocolError) -> RemoteProtocolError:
    """The same error, with the method in its text."""
    error.args = (f"{qualified}(): {error.args[0]}",)
    return error


def too_many(qualified: str, positional: int, given: int) -> ArgumentError:
    """More positional arguments than parameters that take them."""
    plural, verb = "" if positional == 1 else "s", "was" if given == 1 else "were"
    return ArgumentError(f"{qualified}() takes {positional} positional argument{plural} but {given} {verb} given", method=qualified)


def unexpected(qualified: str, name: str) -> ArgumentError:
    """A keyword that no parameter has."""
    return ArgumentError(f"{qualified}() got an unexpected keyword argument {name!r}", method=qualified, parameter=name)


def given_twice(qualified: str, name: str) -> ArgumentError:
    """By position and by keyword."""
    return ArgumentError(f"{qualified}() got multiple values for argument {name!r}", method=qualified, parameter=name)


def missing(qualified: str, positional: Sequence[str], keyword_only: Sequence[str]) -> ArgumentError:
    """Parameters without a value and without a default; those that may be positional are named first, as Python does."""
    names, manner = (positional, "positional") if positional else (keyword_only, "keyword-only")
    listed = [repr(name) for name in names]
    told = " and ".join(listed) if len(listed) < 3 else f"{', '.join(listed[:-1])}, and {listed[-1]}"
    plural = "" if len(names) == 1 else "s"
    return ArgumentError(
        f"{qualified}() missing {len(names)} required {manner} argument{plural}: {told}", method=qualified, parameter=names[0]
    )


def flag_name(cls: type[enum.Enum], value: object) -> bytes:
    """``=`` and the value of a Flag that is no single member. Raises Unfit for what is no member of ``cls`` at all."""
    if not isinstance(value, cls) or not isinstance(value, enum.Flag):
        raise Unfit(got(value))
    return b"=%d" % value.value


def flag_of(cls: type[enum.Enum], text: bytes) -> enum.Enum | None:
    """The inverse of ``flag_name``; None for what cannot be one."""
    if not issubclass(cls, enum.Flag) or not re.fullmatch(rb"=(0|-?[1-9][0-9]{0,99})", text):
        return None
    try:
        made = cls(int(text[1:]))
    except ValueError:  # bits that the class does not allow
        return None
    return made if isinstance(made, cls) else None  # a class may choose to give a plain int for unknown bits


def decimal_of(cls: Any, text: str) -> Any:
    """The Decimal with this text, or None. Only what str() of a Decimal can be: the constructor also takes spaces, ``_`` and
    every digit of Unicode, and a context that does not trap InvalidOperation would make NaN of garbage."""
    number = r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?"
    if not re.fullmatch(rf"-?({number}|Infinity|s?NaN[0-9]*)", text, re.ASCII):
        return None
    try:
        return cls(text)
    except (ValueError, ArithmeticError):  # an exponent that is out of the range of every Decimal
        return None


def takes_positional(cls: type, names: Sequence[str]) -> bool:
    """Whether the constructor takes exactly these fields by position, in this order."""
    import inspect

    parameters = list(inspect.signature(cls).parameters.values())[: len(names)]
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == list(names)


def cut_tail(text: str, limit_bytes: int = TRACEBACK_BYTES_MAX) -> str:
    """The end of a text, as many whole characters as fit; what UTF-8 cannot encode is escaped."""
    data = text.encode("utf-8", "backslashreplace")
    return data[-limit_bytes:].decode("utf-8", "ignore")


def _guarded_str(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001  the code of a class we do not know
        return f"<str() of this {type(error).__name__} raised {type(broken).__name__}>"


def _handler_traceback(traceback: TracebackType | None) -> TracebackType | None:
    """Without fastplug's own frames at its head: they are of no use to the author of the handler."""
    inner = traceback
    # by module: the file names of compiled modules vary
    while inner is not None and str(inner.tb_frame.f_globals.get("__name__")).startswith("fastplug."):
        inner = inner.tb_next
    return inner


def _formatted(error: BaseException) -> str:
    import traceback  # only a failing call pays for it

    try:
        return "".join(traceback.format_exception(type(error), error, _handler_traceback(error.__traceback__)))
    except Exception as broken:  # noqa: BLE001  a __str__ or a __cause__ that raises, a source file that is no text
        return f"<the traceback could not be formatted: {type(broken).__name__}>\n"


def _plain_args(error: BaseException) -> list[Any]:
    args = error.args
    if not all(type(arg) in _PLAIN for arg in args):
        return []
    size = sum(len(arg) if isinstance(arg, (str, bytes)) else arg.bit_length() // 8 if isinstance(arg, int) else 8 for arg in args)
    if size > TRACEBACK_BYTES_MAX or any(isinstance(arg, str) and not _encodable(arg) for arg in args):
        return []
    return list(args)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def exception_record(error: BaseException) -> tuple[str, list[str], str, list[Any], str]:
    """The five values of an ERROR payload (wire.md, "Errors")."""
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    bases = [base.__name__ for base in cls.__mro__ if base.__module__ == "builtins" and getattr(builtins, base.__name__, None) is base]
    bases = [base for base in bases if base not in ("BaseException", "object")]  # every exception is one
    message = error.headline if isinstance(error, RemoteError) else _guarded_str(error)  # its traceback is a part of what follows
    return cut_tail(name), bases, cut_tail(message), _plain_args(error), cut_tail(_formatted(error))
