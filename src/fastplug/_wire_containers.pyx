# The codecs of values that hold values, and how a tree of TypeNodes becomes a tree of codecs.

from cpython.dict cimport PyDict_Check, PyDict_Next, PyDict_SetItem, PyDict_Size
from cpython.list cimport PyList_Append, PyList_Check, PyList_GET_ITEM, PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.object cimport PyObject, PyObject_GetAttr
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_Check, PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from fastplug._wire_buffer cimport (
    Codec, Decoder, Encoder, Tag, broken, enter, enter_decoder, expect, length, put_head, skip_value, tuple_of,
)

import sys

from fastplug import _wire_scalars as scalars
from fastplug import _wire_words as words
from fastplug._wire_words import Unbuilt, Unfit
from fastplug.annotation import MISSING, Kind
from fastplug.errors import LocalProtocolError

__all__ = ["compile_node", "has_arrays", "packs"]

cdef extern from "Python.h":
    object PyObject_Call(object function, PyObject* args, PyObject* kwargs)

cdef enum:
    # Made at once for a list whose length a peer announces; a longer one grows as its items really come.
    ITEMS_AT_ONCE = 1 << 16


cdef class Nested(Codec):
    cdef int setup(self, object node, dict memo) except -1:
        self.children = tuple([compile_one(arg, memo) for arg in node.args])
        return 0


cdef class ListCodec(Nested):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef Codec item
        cdef Py_ssize_t i = 0, n
        if not PyList_Check(value):
            raise Unfit(words.got_sequence(value, "list"))
        item = <Codec>PyTuple_GET_ITEM(self.children, 0)
        n = PyList_GET_SIZE(value)
        put_head(enc, Tag.LIST, n)
        enter(enc)
        try:
            while i < n:
                if PyList_GET_SIZE(value) != n:           # an item's own code (a property, a tzinfo) may change the list
                    raise Unfit("a container that changed in length while it was encoded", final=True)
                one = <object>PyList_GET_ITEM(value, i)
                item.encode(enc, one)
                i += 1
        except Unfit as unfit:
            unfit.inside(f"list whose item {i} is")
            raise
        enc.depth -= 1
        return 0

    cdef object decode(self, Decoder dec):
        expect(dec, self, Tag.LIST)
        return items_of(dec, <Codec>PyTuple_GET_ITEM(self.children, 0))


cdef list items_of(Decoder dec, Codec item):
    cdef Py_ssize_t i, n = length(dec)
    cdef Py_ssize_t at_once = min(n, <Py_ssize_t>ITEMS_AT_ONCE)
    cdef list made = PyList_New(at_once)
    enter_decoder(dec)
    for i in range(at_once):
        one = item.decode(dec)
        Py_INCREF(one)
        PyList_SET_ITEM(made, i, one)
    for i in range(at_once, n):
        PyList_Append(made, item.decode(dec))
    dec.depth -= 1
    return made


cdef class TupleCodec(Nested):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef Py_ssize_t i = 0, n = PyTuple_GET_SIZE(self.children)
        if not PyTuple_Check(value):
            raise Unfit(words.got_sequence(value, "tuple"))
        if PyTuple_GET_SIZE(value) != n:
            raise Unfit(f"tuple of length {PyTuple_GET_SIZE(value)}")
        put_head(enc, Tag.TUPLE, n)
        enter(enc)
        try:
            while i < n:
                (<Codec>PyTuple_GET_ITEM(self.children, i)).encode(enc, <object>PyTuple_GET_ITEM(value, i))
                i += 1
        except Unfit as unfit:
            unfit.inside(f"tuple whose item {i} is")
            raise
        enc.depth -= 1
        return 0

    cdef object decode(self, Decoder dec):
        cdef Py_ssize_t n = PyTuple_GET_SIZE(self.children)
        cdef Py_ssize_t count
        expect(dec, self, Tag.TUPLE)
        count = length(dec)
        if count != n:
            raise broken(dec, f"a tuple of length {count} where {self.canonical} is declared")
        enter_decoder(dec)
        made = tuple_of(dec, self.children, n)
        dec.depth -= 1
        return made


cdef class SequenceCodec(Nested):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef Codec item
        cdef Py_ssize_t i = 0, n
        if not PyTuple_Check(value):
            raise Unfit(words.got_sequence(value, "tuple"))
        item = <Codec>PyTuple_GET_ITEM(self.children, 0)
        n = PyTuple_GET_SIZE(value)
        put_head(enc, Tag.TUPLE, n)
        enter(enc)
        try:
            while i < n:
                item.encode(enc, <object>PyTuple_GET_ITEM(value, i))
                i += 1
        except Unfit as unfit:
            unfit.inside(f"tuple whose item {i} is")
            raise
        enc.depth -= 1
        return 0

    cdef object decode(self, Decoder dec):
        expect(dec, self, Tag.TUPLE)
        return tuple(items_of(dec, <Codec>PyTuple_GET_ITEM(self.children, 0)))


cdef class DictCodec(Nested):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef PyObject* key = NULL
        cdef PyObject* item = NULL
        cdef Py_ssize_t pos = 0, n
        cdef bint in_key = True
        if not PyDict_Check(value):
            raise Unfit(words.got(value))
        n = PyDict_Size(value)
        put_head(enc, Tag.DICT, n)
        enter(enc)
        try:
            while PyDict_Next(value, &pos, &key, &item):
                held_key, held_item = <object>key, <object>item
                in_key = True
                (<Codec>PyTuple_GET_ITEM(self.children, 0)).encode(enc, held_key)
                in_key = False
                (<Codec>PyTuple_GET_ITEM(self.children, 1)).encode(enc, held_item)
                if PyDict_Size(value) != n:
                    raise Unfit("a container that changed in length while it was encoded", final=True)
        except Unfit as unfit:
            unfit.inside("dict with a key that is" if in_key else f"dict whose value at {words.shown(held_key)} is")
            raise
        enc.depth -= 1
        return 0

    cdef object decode(self, Decoder dec):
        cdef Py_ssize_t i, n
        cdef dict made = {}
        expect(dec, self, Tag.DICT)
        n = length(dec)
        enter_decoder(dec)
        for i in range(n):
            key = (<Codec>PyTuple_GET_ITEM(self.children, 0)).decode(dec)
            PyDict_SetItem(made, key, (<Codec>PyTuple_GET_ITEM(self.children, 1)).decode(dec))
        dec.depth -= 1
        return made


cdef class OptionalCodec(Nested):
    cdef int encode(self, Encoder enc, object value) except -1:
        if value is None:
            enc.take(1)[0] = Tag.NONE
            return 0
        return (<Codec>PyTuple_GET_ITEM(self.children, 0)).encode(enc, value)

    cdef object decode(self, Decoder dec):
        if dec.pos < dec.size and dec.data[dec.pos] == Tag.NONE:
            dec.pos += 1
            return None
        return (<Codec>PyTuple_GET_ITEM(self.children, 0)).decode(dec)


cdef class StructCodec(Codec):
    cdef bint positional                                  # its constructor takes all fields by position, in this order

    cdef int setup(self, object node, dict memo) except -1:
        self.cls = node.cls
        self.names = tuple([sys.intern(field.name) for field in node.fields])
        self.defaults = tuple([field.default for field in node.fields])
        self.children = tuple([compile_one(field.node, memo) for field in node.fields])
        self.positional = words.takes_positional(node.cls, self.names)
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        cdef Py_ssize_t i = 0, n = PyTuple_GET_SIZE(self.children)
        if type(value) is not self.cls and not isinstance(value, self.cls):
            raise Unfit(words.got(value))
        put_head(enc, Tag.STRUCT, n)
        enter(enc)
        try:
            while i < n:
                one = PyObject_GetAttr(value, <object>PyTuple_GET_ITEM(self.names, i))
                (<Codec>PyTuple_GET_ITEM(self.children, i)).encode(enc, one)
                i += 1
        except Unfit as unfit:
            unfit.inside(f"{self.canonical} whose field {self.names[i]!r} is")
            raise
        except AttributeError as error:
            raise Unfit(f"{self.canonical} without a field {self.names[i]!r}") from error
        enc.depth -= 1
        return 0

    cdef object decode(self, Decoder dec):
        cdef Py_ssize_t n = PyTuple_GET_SIZE(self.children)
        cdef Py_ssize_t i, count
        cdef tuple values
        expect(dec, self, Tag.STRUCT)
        count = length(dec)
        enter_decoder(dec)
        if count < n:
            values = self.completed(dec, tuple_of(dec, self.children, count))
        else:
            values = tuple_of(dec, self.children, n)
            for i in range(count - n):                    # fields that a newer peer added
                skip_value(dec)
        dec.depth -= 1
        try:
            if self.positional:
                return PyObject_Call(self.cls, <PyObject*>values, NULL)
            return self.cls(**dict(zip(self.names, values)))
        except Exception as error:
            raise Unbuilt(f"the peer sent a {self.canonical} that its constructor here refuses ({type(error).__name__}: {error})") from error

    cdef tuple completed(self, Decoder dec, tuple values):
        # With the defaults of the fields that an older peer does not know.
        cdef list made = list(values)
        for i in range(len(values), len(self.names)):
            default = self.defaults[i]
            if default is MISSING:
                raise broken(dec, f"a {self.canonical} without a field {self.names[i]!r}")
            made.append(default())
        return tuple(made)


cdef class ArrayCodec(Codec):
    cdef int setup(self, object node, dict memo) except -1:
        self.dtype = node.dtype
        self.children = ()
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        if enc.port is None:
            raise LocalProtocolError("this connection carries no arrays; it was made without an array port")
        return enc.port.put(enc, value, self)

    cdef object decode(self, Decoder dec):
        expect(dec, self, Tag.ARRAY)
        if dec.port is None:
            raise LocalProtocolError("this connection carries no arrays; it was made without an array port")
        return dec.port.get(dec, self)


cdef class ArrowCodec(Codec):
    """A table of Arrow, taken apart into a struct of plain values and arrays (_wire_arrow.py); that struct is what travels."""

    cdef int setup(self, object node, dict memo) except -1:
        from fastplug import _wire_arrow            # pyarrow is there: whoever declared its class has imported it

        self.cls = node.cls
        self.extra = _wire_arrow
        self.children = (compile_node(_wire_arrow.parts_node()),)
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        return (<Codec>PyTuple_GET_ITEM(self.children, 0)).encode(enc, self.extra.taken_apart(value, self.cls.__name__))

    cdef object decode(self, Decoder dec):
        parts = (<Codec>PyTuple_GET_ITEM(self.children, 0)).decode(dec)
        try:
            return self.extra.put_together(parts, self.cls.__name__)
        except ValueError as error:
            raise Unbuilt(f"the peer sent a {self.canonical} that is wrong: {error}") from error


cdef class StreamCodec(Nested):
    cdef int encode(self, Encoder enc, object value) except -1:
        if enc.references is None:
            raise LocalProtocolError("this connection carries no streams")
        enc.references.put_stream(value, self)
        enc.take(1)[0] = Tag.STREAM
        return 0

    cdef object decode(self, Decoder dec):
        expect(dec, self, Tag.STREAM)
        if dec.references is None:
            raise LocalProtocolError("this connection carries no streams")
        return dec.references.get_stream(self)


cdef class CallbackCodec(Codec):
    cdef int setup(self, object node, dict memo) except -1:
        self.children = ()
        self.extra = [node, None]                         # the second: for whoever carries callbacks
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        cdef uint64_t number
        cdef unsigned char* p
        if enc.references is None:
            raise LocalProtocolError("this connection carries no callbacks")
        number = enc.references.put_callback(value, self)
        p = enc.take(9)
        p[0] = Tag.CALLBACK
        memcpy(p + 1, &number, 8)
        return 0

    cdef object decode(self, Decoder dec):
        cdef uint64_t number
        expect(dec, self, Tag.CALLBACK)
        memcpy(&number, dec.need(8), 8)
        if dec.references is None:
            raise LocalProtocolError("this connection carries no callbacks")
        return dec.references.get_callback(number, self)


# In the order of annotation.Kind.
cdef tuple CODECS = (
    scalars.NoneCodec, scalars.BoolCodec, scalars.IntCodec, scalars.FloatCodec, scalars.ComplexCodec, scalars.StrCodec, scalars.BytesCodec,
    ListCodec, TupleCodec, SequenceCodec, DictCodec, scalars.DatetimeCodec, scalars.DateCodec, scalars.TimedeltaCodec,
    scalars.DecimalCodec, scalars.UuidCodec, scalars.EnumCodec, OptionalCodec, StructCodec, ArrayCodec, scalars.BufferCodec,
    ArrowCodec, StreamCodec, CallbackCodec,
)


def compile_node(node):
    """The Codec of an ``annotation.TypeNode``. Immutable, so it may be shared by threads."""
    return compile_one(node, {})


cdef Codec compile_one(object node, dict memo):
    # Remembered before its children are compiled: a recursive dataclass finds itself.
    cdef Codec codec = memo.get(node)
    if codec is None:
        codec = CODECS[node.kind]()
        memo[node] = codec
        codec.kind = node.kind
        codec.canonical = words.canonical(node)
        codec.setup(node, memo)
    return codec


cdef frozenset ARRAY_KINDS = frozenset((int(Kind.ARRAY), int(Kind.BUFFER)))
# Those whose decoding runs nothing but this code.
cdef frozenset PACKED_KINDS = frozenset([int(kind) for kind in (
    Kind.NONE, Kind.BOOL, Kind.INT, Kind.FLOAT, Kind.COMPLEX, Kind.STR, Kind.BYTES, Kind.LIST, Kind.TUPLE, Kind.SEQUENCE, Kind.DICT, Kind.OPTIONAL,
)])


cdef set kinds_in(Codec codec):
    cdef set seen = set()
    cdef list waiting = [codec]
    while waiting:
        one = <Codec>waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting.extend(one.children)
    return {one.kind for one in seen}


def has_arrays(Codec codec not None):
    """Whether an array may stand anywhere in a value of this codec."""
    return not ARRAY_KINDS.isdisjoint(kinds_in(codec))


def packs(Codec codec not None):
    """Whether its values may share a frame with those of other calls (docs/wire.md, "Packed calls")."""
    return kinds_in(codec) <= PACKED_KINDS
