"""Methods, errors and frames of the wire: binding in Python's words, defaults, what of an exception arrives, header checks."""

from __future__ import annotations

import gc
import inspect
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from tests.twin.wire_nodes import node_of

from fastplug import _wire
from fastplug._wire import Decoder, Encoder, MethodCodec, PyLink, pack_error, pack_header, unpack_error, unpack_header
from fastplug.annotation import MISSING
from fastplug.errors import ArgumentError, PluginError, RemoteError, RemoteProtocolError, ResultError


def parameter(name: str, annotation: Any, default: Any = MISSING, *, keyword_only: bool = False) -> Any:
    return SimpleNamespace(name=name, node=node_of(annotation), default=default, keyword_only=keyword_only)


def method(*parameters: Any, returns: Any = None) -> MethodCodec:
    declared: Any = SimpleNamespace(name="total", index=0, parameters=parameters, returns=node_of(returns))
    return MethodCodec("acme.dsp/1", declared)


# --- methods ----------------------------------------------------------------------------------------------------------------


def total(x: list[float], scale: float = 1.0, *, name: str = "n", strict: bool) -> None: ...


TOTAL = method(
    parameter("x", list[float]),
    parameter("scale", float, 1.0),
    parameter("name", str, "n", keyword_only=True),
    parameter("strict", bool, keyword_only=True),
)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (([1.0],), {"strict": True}),
        (([1.0], 2.0), {"strict": True, "name": "z"}),
        ((), {"x": [1.0], "strict": False}),
        ((), {"strict": False, "scale": 3.0, "x": []}),
    ],
)
def test_binding(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    bound = inspect.signature(total).bind(*args, **kwargs)
    bound.apply_defaults()
    assert TOTAL.unpack_arguments(TOTAL.pack_arguments(args, kwargs)) == (bound.args, bound.kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        (([],), {}),
        ((), {"strict": True}),
        (([], 1.0, "n"), {"strict": True}),
        (([],), {"x": [], "strict": True}),
        (([],), {"y": 1, "strict": True}),
    ],
)
def test_binding_errors_are_pythons(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as pythons:
        total(*args, **kwargs)
    with pytest.raises(ArgumentError) as ours:
        TOTAL.pack_arguments(args, kwargs)
    words = (
        str(pythons.value)
        .split("() ", 1)[1]
        .replace("from 1 to 2", "2")
        .replace("3 positional arguments (and 1 keyword-only argument)", "3")
    )
    assert str(ours.value).removeprefix("acme.dsp/1.total() ") == words


def test_trailing_arguments_left_out_take_the_plugins_defaults() -> None:
    host = method(parameter("x", int), parameter("y", int, 5))
    plugin = method(parameter("x", int), parameter("y", int, 7), parameter("z", str, "new"))
    assert plugin.unpack_arguments(host.pack_arguments((1,))) == ((1, 7, "new"), {})
    assert plugin.unpack_arguments(host.pack_arguments((1, 2), None)) == ((1, 2, "new"), {})
    gap = method(parameter("x", int, 1), parameter("y", int, 2))
    assert gap.unpack_arguments(gap.pack_arguments((), {"y": 3})) == ((1, 3), {})


@pytest.mark.parametrize("data", [b"", b"\1", b"\0\0", b"\2\0\3" + bytes(8), b"\1\0\3" + bytes(9), b"\1\0\7" + bytes(4)])
def test_arguments_that_no_host_sends(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"acme.dsp/1.total\(\): the peer sent"):
        method(parameter("x", int)).unpack_arguments(data)


def test_results() -> None:
    codec = method(returns=list[float])
    assert codec.unpack_result(codec.pack_result([1.5])) == [1.5]
    with pytest.raises(ResultError, match=r"^acme.dsp/1.total\(\): the handler must return list\[float\], got list whose item 0 is str"):
        codec.pack_result(["x"])
    with pytest.raises(RemoteProtocolError, match=r"acme.dsp/1.total\(\): .* 1 bytes behind"):
        codec.unpack_result(codec.pack_result([]) + b"\0")


# --- errors -----------------------------------------------------------------------------------------------------------------


class OwnError(LookupError, ValueError):
    pass


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001  SystemExit too
        return caught


@pytest.mark.parametrize(
    ("error", "cls", "args"),
    [
        (KeyError("k"), KeyError, ("k",)),
        (OwnError("a", 1, None, 2.5, b"x", True), LookupError, ("a", 1, None, 2.5, b"x", True)),
        (ValueError([1]), ValueError, ()),
        (ValueError("a\ud800"), ValueError, ()),
        (ValueError("x" * 100_000), ValueError, ()),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "why"), UnicodeDecodeError, ("utf-8", b"x", 0, 1, "why")),
        (SystemExit(3), RemoteError, (3,)),
        (MuteError(), RemoteError, ()),
    ],
)
def test_errors_travel(error: BaseException, cls: type[BaseException], args: tuple[Any, ...]) -> None:
    got = unpack_error(pack_error(raised(error)), "acme.dsp/1.total")
    assert isinstance(got, RemoteError)
    assert isinstance(got, cls)
    assert got.args == args
    assert got.type_name.endswith(type(error).__qualname__)
    assert "in raised" in got.remote_traceback or len(got.remote_traceback) == 65536
    assert got.method == "acme.dsp/1.total"
    assert not isinstance(got, SystemExit)


def test_long_texts_are_cut() -> None:
    got = unpack_error(pack_error(raised(ValueError("é" * 100_000))))
    assert len(got.message.encode()) <= 65536
    assert len(got.remote_traceback.encode()) <= 65536
    assert got.message.endswith("é")


@pytest.mark.parametrize("data", [b"", b"\0", b"\x0a\4\0\0\0", b"\x0a\5\0\0\0\0\0\0\0\0", pack_error(ValueError()) + b"\0"])
def test_errors_that_no_plugin_sends(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack_error(data)


# --- frames -----------------------------------------------------------------------------------------------------------------


def test_header_layout() -> None:
    data = pack_header(5, 2, 1, 2**64 - 1, 3, 4, 6, 2**62)
    assert data == struct.pack("<IHHQHHIq", 5, 2, 1, 2**64 - 1, 3, 4, 6, 2**62)
    header = unpack_header(data)
    assert header == (5, 2, 1, 2**64 - 1, 3, 4, 6, 2**62)
    assert header.remaining_ns == 2**62


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pack_header(0, 1)[:31],
        pack_header(0, 0),
        pack_header(0, 15),
        pack_header(0, 0xFFFF),
        pack_header(2**31, 1),
        pack_header(0, 1, 8),
        pack_header(0, 2, 2),
        pack_header(0, 1, 0, remaining_ns=-1),
    ],
)
def test_headers_that_no_peer_sends(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack_header(data)


def test_a_link_of_ones_own_must_do_something() -> None:
    with pytest.raises(PluginError):
        PyLink().send_frame(b"", None)
    with pytest.raises(PluginError):
        PyLink().receive_frame(None)


def test_nothing_is_kept() -> None:
    gc.collect()
    before = _wire.live()
    pair = Encoder(), Decoder()
    assert _wire.live() == {"encoders": before["encoders"] + 1, "decoders": before["decoders"] + 1}
    del pair
    assert _wire.live() == before
