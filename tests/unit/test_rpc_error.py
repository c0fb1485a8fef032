"""RpcError alone, and as a grpc.RpcError."""

from __future__ import annotations

import pickle
import subprocess
import sys

import grpc
import pytest

from fastplug.errors import PluginError, RpcError


def test_with_grpc_it_is_one_of_grpcs() -> None:
    error = RpcError(5, "no such thing", b"\x01", [("why", "gone")])
    assert isinstance(error, RpcError)
    assert isinstance(error, PluginError)
    assert isinstance(error, grpc.RpcError)
    assert (error.code, error.message, error.details, error.trailers) == (5, "no such thing", b"\x01", (("why", "gone"),))
    told = [error.code(), error.details(), error.trailing_metadata()]  # type: ignore[operator, attr-defined]
    assert told == [grpc.StatusCode.NOT_FOUND, "no such thing", (("why", "gone"),)]
    assert str(error) == "gRPC status 5: no such thing"
    assert RpcError(99, "x").code() is grpc.StatusCode.UNKNOWN  # type: ignore[operator]
    with pytest.raises(grpc.RpcError):
        raise error


def test_it_travels() -> None:
    error = pickle.loads(pickle.dumps(RpcError(8, "full", b"d", [("a", b"b")])))
    assert (type(error).__name__, error.code, error.details, error.trailers) == ("RpcError", 8, b"d", (("a", b"b"),))
    assert isinstance(error, grpc.RpcError)


def test_a_subclass_stays_one() -> None:
    class Mine(RpcError):
        pass

    assert isinstance(Mine(1, "x"), Mine)
    assert isinstance(Mine(1, "x"), grpc.RpcError)


def test_without_grpc_nothing_is_imported_and_later_ones_are_both() -> None:
    program = """
import sys
from fastplug.errors import RpcError
before = RpcError(5, "x")
assert "grpc" not in sys.modules and type(before) is RpcError and before.code == 5
import grpc
assert isinstance(RpcError(5, "x"), grpc.RpcError) and not isinstance(before, grpc.RpcError)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
