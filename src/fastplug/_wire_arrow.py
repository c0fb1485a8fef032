"""Tables of Arrow, taken apart into plain values and arrays of bytes, and put together again.

What travels is ``Parts``: the schema in Arrow's own form (IPC), and each column as its length, offset and buffers, which go the way of
every array: by reference where they lie in shared memory, else with one copy. A type whose buffers cannot be told apart from outside
travels as an IPC stream of one column: one copy, too.

pyarrow is imported when an interface names one of its classes. Whatever has the Arrow PyCapsule interface is accepted for them (polars,
pandas, duckdb, nanoarrow); whether that makes a copy is a matter of that library.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # pyright: ignore[reportMissingImports]  an extra

from fastplug._wire_words import Unfit, got
from fastplug.annotation import TypeNode, resolve

__all__ = ["Column", "Parts", "accepted", "of_stream", "parts_node", "put_together", "stream_of", "taken_apart"]

Bytes = npt.NDArray[np.uint8]

# Of lengths and offsets: their sums must not overflow inside of Arrow. No memory has so many bits.
ROWS_MAX = 1 << 60
# Buffers are sent as they are when they have at most so many times the bytes that the array needs of them; else a copy leaves out the rest.
_SHARE = 2


@dataclasses.dataclass
class Column:
    """One array. ``stream``: all of it as an IPC stream, and nothing else; else what Array.from_buffers takes."""

    length: int
    null_count: int  # -1: not known
    offset: int
    buffers: list[Bytes | None]
    children: list[Column]
    stream: Bytes | None = None


@dataclasses.dataclass
class Parts:
    """A table: its schema, and for each of its batches the columns. An array is a table of one column."""

    schema: bytes
    batches: list[list[Column]]


@functools.cache
def parts_node() -> TypeNode:
    """The resolved type of ``Parts``."""
    return resolve(Parts, where="fastplug._wire_arrow", globalns=globals())


# Which method of the PyCapsule interface makes which class.
_DOORS: dict[str, tuple[str, Any]] = {
    "RecordBatch": ("__arrow_c_array__", pa.record_batch),
    "Table": ("__arrow_c_stream__", pa.table),
    "Array": ("__arrow_c_array__", pa.array),
    "ChunkedArray": ("__arrow_c_stream__", pa.chunked_array),
}


def accepted(value: Any, name: str) -> Any:
    """The object of pyarrow's class ``name``; of another library's, through the PyCapsule interface. Raises Unfit."""
    if isinstance(value, getattr(pa, name)):
        return value
    method, make = _DOORS[name]
    if not hasattr(value, method):
        raise Unfit(got(value))
    try:
        return make(value)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        raise Unfit(f"{got(value)}, of which Arrow makes no {name}: {error}") from error


def _batches(value: Any) -> tuple[pa.Schema, list[list[Any]]]:
    if isinstance(value, pa.RecordBatch):
        return value.schema, [value.columns]
    if isinstance(value, pa.Table):
        return value.schema, [batch.columns for batch in value.to_batches()]
    schema = pa.schema([pa.field("", value.type)])
    return schema, [[chunk] for chunk in (value.chunks if isinstance(value, pa.ChunkedArray) else [value])]


def taken_apart(value: Any, name: str) -> Parts:
    """Raises Unfit."""
    schema, batches = _batches(accepted(value, name))
    return Parts(schema.serialize().to_pybytes(), [[_column(array) for array in columns] for columns in batches])


def _column(array: Any) -> Column:
    if isinstance(array, pa.ExtensionArray):
        return _column(array.storage)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return Column(len(array), -1, 0, [], [_column(array.indices), _column(array.dictionary)])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        made = _list(array)
    elif pa.types.is_struct(kind):
        made = _nested(array, 1, [array.field(i) for i in range(kind.num_fields)]) if array.offset == 0 else None
    else:
        made = _flat(array)
    return made or Column(0, 0, 0, [], [], stream=np.frombuffer(stream_of(array), np.uint8))


def _nested(array: Any, own: int, children: list[Any]) -> Column:
    buffers = [_bytes_of(one) for one in array.buffers()[:own]]
    return Column(len(array), array.null_count, 0, buffers, [_column(child) for child in children])


def _list(array: Any) -> Column | None:
    if array.offset or not len(array):
        return None
    fixed = pa.types.is_fixed_size_list(array.type)
    needed = len(array) * array.type.list_size if fixed else array.offsets[-1].as_py() - array.offsets[0].as_py()
    return _nested(array, 1 if fixed else 2, [array.values]) if len(array.values) <= _SHARE * needed else None


def _flat(array: Any) -> Column | None:
    """None: no flat type, or buffers that hold much more than the array needs."""
    kind, length, offset, buffers = array.type, len(array), array.offset, array.buffers()
    if kind.num_fields or len(buffers) > 3 or _is_view(kind):
        return None
    whole = [_bytes_of(one) for one in buffers]
    if len(buffers) == 3:  # text and binary: a copy leaves out what lies outside of a slice
        size = sum(one.size for one in buffers if one is not None)
        return Column(length, array.null_count, offset, whole, []) if size <= _SHARE * (array.nbytes + 512) else None
    if len(buffers) == 1:
        return Column(length, array.null_count, offset, whole, [])
    # From the last row in front of the slice whose bit is the first of a byte.
    first = offset // 8 * 8
    widths = (1, kind.bit_width)
    parts = [
        None if one is None else one[first * bits // 8 : -(-(offset + length) * bits // 8)] for one, bits in zip(whole, widths, strict=True)
    ]
    return Column(length, array.null_count, offset - first, parts, [])


def _is_view(kind: Any) -> bool:
    return any(getattr(pa.types, name, lambda _: False)(kind) for name in ("is_string_view", "is_binary_view"))


# Arrays under the buffers of what was received, by address, as long as something uses them: what goes back is recognised by it, since a
# Buffer of Arrow does not tell what it was made of.
_received: weakref.WeakValueDictionary[int, Bytes] = weakref.WeakValueDictionary()


def _bytes_of(buffer: Any) -> Bytes | None:
    if buffer is None:
        return None
    root = buffer
    while root.parent is not None:
        root = root.parent
    known = _received.get(root.address)
    start = buffer.address - root.address
    if known is not None and start + buffer.size <= known.size:
        return known[start : start + buffer.size]
    return np.frombuffer(buffer, np.uint8)


def _buffer_of(array: Bytes | None) -> Any:
    if array is None:
        return None
    if array.ndim != 1 or not array.flags.c_contiguous:
        raise ValueError("a buffer whose bytes do not lie in a row")
    if array.ctypes.data % 8:  # inside of a message; Arrow reads words of eight bytes
        array = array.copy()
    elif array.size:
        _received[array.ctypes.data] = array
    return pa.py_buffer(array)


def put_together(parts: Parts, name: str) -> Any:
    """The object of pyarrow's class ``name``, wholly validated: also what offsets and indices point to. Raises ValueError."""
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(parts.schema))
        batches = [_batch(schema, columns) for columns in parts.batches]
        return _as(name, schema, batches)
    except (pa.ArrowException, OSError, TypeError, KeyError, IndexError, NotImplementedError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {str(error)[:400]}") from error


def _batch(schema: Any, columns: list[Column]) -> Any:
    if len(columns) != len(schema):
        raise ValueError(f"{len(columns)} columns for {len(schema)} fields")
    arrays = [_array(field.type, column) for field, column in zip(schema, columns, strict=True)]
    for array in arrays:
        array.validate(full=True)
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    batch.validate()
    return batch


def _array(kind: Any, column: Column) -> Any:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _array(kind.storage_type, column))
    if column.stream is not None:
        return _of_column_stream(kind, column.stream)
    if not (0 <= column.length <= ROWS_MAX and 0 <= column.offset <= ROWS_MAX and -1 <= column.null_count <= column.length):
        raise ValueError(f"an array of length {column.length}, offset {column.offset} and {column.null_count} nulls")
    if pa.types.is_dictionary(kind):
        indices, dictionary = _children(column, [kind.index_type, kind.value_type])
        for one in (indices, dictionary):
            one.validate(full=True)
        return pa.DictionaryArray.from_arrays(indices, dictionary, ordered=kind.ordered, safe=True)
    types = [kind.field(i).type for i in range(kind.num_fields)]
    buffers = [_buffer_of(one) for one in column.buffers]
    # The first tells the nulls. Where none are announced Arrow does not look at it, and so not at its size.
    if column.null_count == 0 and buffers and not pa.types.is_null(kind):
        buffers[0] = None
    return pa.Array.from_buffers(kind, column.length, buffers, column.null_count, column.offset, _children(column, types))


def _children(column: Column, types: list[Any]) -> list[Any]:
    if len(column.children) != len(types):
        raise ValueError(f"{len(column.children)} children for {len(types)} types")
    return [_array(kind, child) for kind, child in zip(types, column.children, strict=True)]


def _of_column_stream(kind: Any, stream: Bytes) -> Any:
    found = of_stream(stream, "Array")
    if found.type != kind:
        raise ValueError(f"a column of {found.type} where the schema says {kind}")
    return found


def _as(name: str, schema: Any, batches: list[Any]) -> Any:
    if name == "Table":
        return pa.Table.from_batches(batches, schema)
    if name == "RecordBatch":
        if len(batches) != 1:
            raise ValueError(f"{len(batches)} batches for one")
        return batches[0]
    if len(schema) != 1:
        raise ValueError(f"{len(schema)} columns for one array")
    if name == "ChunkedArray":
        return pa.chunked_array([batch.column(0) for batch in batches], schema.field(0).type)
    if len(batches) != 1:
        raise ValueError(f"{len(batches)} chunks for one array")
    return batches[0].column(0)


def stream_of(value: Any) -> bytes:
    """The bytes of an Arrow IPC stream: a batch for each of the table, or chunk of the array."""
    schema, batches = _batches(value)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for columns in batches:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    found: bytes = sink.getvalue().to_pybytes()
    return found


def of_stream(data: Any, name: str) -> Any:
    """The inverse, validated. Raises ValueError."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            schema, batches = reader.schema, list(reader)
        for batch in batches:
            batch.validate(full=True)
        return _as(name, schema, batches)
    except (pa.ArrowException, OSError, TypeError, KeyError, NotImplementedError) as error:
        raise ValueError(f"no stream of Arrow: {str(error)[:400]}") from error
