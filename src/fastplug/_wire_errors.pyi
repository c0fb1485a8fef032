from typing import TypeAlias

from fastplug.errors import RemoteError

__all__ = ["pack_error", "unpack_error"]

_Data: TypeAlias = bytes | bytearray | memoryview

def pack_error(error: BaseException) -> bytes: ...
def unpack_error(data: _Data, method: str = "", raised_by: str = "plugin") -> RemoteError: ...
