"""The code that protoc and grpc's plugin for it generate from ledger.proto: stubs as users have them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from tests.plugins.protoc import generated

__all__ = ["ledger_pb2", "ledger_pb2_grpc"]

sys.path.insert(0, str(generated(Path(__file__).with_name("ledger.proto"))))
ledger_pb2: Any = importlib.import_module("ledger_pb2")
ledger_pb2_grpc: Any = importlib.import_module("ledger_pb2_grpc")
