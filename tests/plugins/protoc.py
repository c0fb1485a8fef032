"""Runs protoc when its result is missing or older than its source."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["generated"]

ROOT = Path(__file__).parents[2]
PROTOC_TIMEOUT_S = 120


def generated(proto: Path) -> Path:
    """A folder with ``<name>_pb2.py`` and ``<name>_pb2_grpc.py``, made by this interpreter's grpcio-tools."""
    version = str(sys.implementation.cache_tag)
    folder = ROOT / "build" / "protoc" / version / proto.stem
    made = folder / f"{proto.stem}_pb2_grpc.py"
    if not made.exists() or made.stat().st_mtime < proto.stat().st_mtime:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            places = [f"-I{proto.parent}", f"--python_out={fresh}", f"--grpc_python_out={fresh}"]
            subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *places, proto.name], check=True, timeout=PROTOC_TIMEOUT_S)
            folder.mkdir(exist_ok=True)
            for name in sorted(os.listdir(fresh)):  # ..._pb2.py before ..._pb2_grpc.py, whose presence says that both are there
                (Path(fresh) / name).replace(folder / name)
    return folder
