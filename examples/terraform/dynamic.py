"""Terraform's DynamicValue: MessagePack with one addition, values that are not known before apply.

Source: terraform's docs/plugin-protocol/object-wire-format.md. The two sides know a value's type from the schema, so plain data is enough.
"""

from __future__ import annotations

import enum
import json
from typing import Any

import msgspec

__all__ = ["UNKNOWN", "pack", "unpack"]


class Unknown(enum.Enum):
    """A value that only apply will bring."""

    UNKNOWN = "(known after apply)"

    def __repr__(self) -> str:
        return self.value


UNKNOWN = Unknown.UNKNOWN

# The extension that stands for it; its payload is ignored.
_UNKNOWN = msgspec.msgpack.Ext(0, b"\0")
# An unknown value of which something is known.
_REFINED_UNKNOWN_CODE = 12


def pack(value: Any) -> dict[str, bytes]:
    """The fields of a DynamicValue: what ``client.service`` takes for one."""
    return {"msgpack": msgspec.msgpack.encode(_without_unknowns(value))}


def _without_unknowns(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_unknowns(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_unknowns(item) for item in value]
    return _UNKNOWN if value is UNKNOWN else value


def _extension(code: int, data: memoryview) -> Unknown:
    if code not in (_UNKNOWN.code, _REFINED_UNKNOWN_CODE):
        raise ValueError(f"MessagePack extension {code} is none of Terraform's")
    return UNKNOWN


def unpack(dynamic: Any) -> Any:
    """The value of a DynamicValue message; None for an empty one."""
    if dynamic.json:
        return json.loads(dynamic.json)
    return msgspec.msgpack.decode(dynamic.msgpack, ext_hook=_extension) if dynamic.msgpack else None
