"""The code that protoc and grpc's plugin for it generate from ledger.proto: stubs as users have them."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

from tests.plugins.protoc import generated

__all__ = ["ledger_pb2", "ledger_pb2_grpc"]

sys.path.insert(0, str(generated(Path(__file__).with_name("ledger.proto"))))
with warnings.catch_warnings():
    # protoc is older than the runtime where the lowest protobuf is installed: a warning for code that is checked in.
    warnings.filterwarnings("ignore", "Protobuf gencode version", UserWarning)
    ledger_pb2: Any = importlib.import_module("ledger_pb2")
    ledger_pb2_grpc: Any = importlib.import_module("ledger_pb2_grpc")
