# Errors as the peers have them: wire.md, "Errors".

from cpython.bytes cimport PyBytes_FromStringAndSize

from fastplug._wire_buffer cimport Codec, Decoder, Encoder, Tag, broken, confused, expect, finish, length, load, put_head, tag_of

from fastplug import _wire_words as words
from fastplug._wire_containers import compile_node
from fastplug.annotation import Kind, TypeNode
from fastplug.errors import remote_error

__all__ = ["pack_error", "unpack_error"]

# The types of the five parts of an error, and of what its args may be (wire.md, "Errors").
cdef Codec TEXT = compile_node(TypeNode(Kind.STR))
cdef Codec NAMES = compile_node(TypeNode(Kind.LIST, (TypeNode(Kind.STR),)))
cdef dict PLAIN = {
    cls: compile_node(TypeNode(kind))
    for cls, kind in ((type(None), Kind.NONE), (bool, Kind.BOOL), (int, Kind.INT), (float, Kind.FLOAT), (str, Kind.STR), (bytes, Kind.BYTES))
}
cdef dict PLAIN_BY_TAG = {
    Tag.NONE: PLAIN[type(None)], Tag.FALSE: PLAIN[bool], Tag.TRUE: PLAIN[bool], Tag.INT64: PLAIN[int], Tag.INT: PLAIN[int], Tag.FLOAT: PLAIN[float],
    Tag.STR: PLAIN[str], Tag.BYTES: PLAIN[bytes],
}


cdef int put_plain(Encoder enc, object value) except -1:
    # wire.md, "Errors": the args of an exception, whose types are not declared.
    cdef Codec codec = PLAIN[type(value)]
    return codec.encode(enc, value)


cdef object plain_of(Decoder dec):
    cdef int tag = dec.data[dec.pos] if dec.pos < dec.size else -1
    cdef Codec codec = PLAIN_BY_TAG.get(tag)
    if codec is None:
        raise confused(dec, "a plain value", tag_of(dec))
    return codec.decode(dec)


cdef int encode_error(Encoder enc, object error) except -1:
    enc.reset()
    try:
        return put_error(enc, error)
    except Exception as broken:
        enc.reset()
        return put_error(enc, RuntimeError(f"{type(error).__name__}, which could not be encoded: {type(broken).__name__}"))


cdef int put_error(Encoder enc, object error) except -1:
    type_name, bases, message, args, traceback = words.exception_record(error)
    put_head(enc, Tag.TUPLE, 5)
    TEXT.encode(enc, type_name)
    NAMES.encode(enc, bases)
    TEXT.encode(enc, message)
    put_head(enc, Tag.LIST, len(args))
    for arg in args:
        put_plain(enc, arg)
    TEXT.encode(enc, traceback)
    return 0


cdef object decode_error(Decoder dec, str method, str raised_by="plugin"):
    cdef Py_ssize_t count, i
    if tag_of(dec) != Tag.TUPLE:
        raise broken(dec, "an error that is no tuple")
    if length(dec) != 5:
        raise broken(dec, "an error that has not five parts")
    type_name = TEXT.decode(dec)
    bases = NAMES.decode(dec)
    message = TEXT.decode(dec)
    expect(dec, NAMES, Tag.LIST)
    count = length(dec)
    args = [plain_of(dec) for i in range(count)]
    traceback = TEXT.decode(dec)
    finish(dec)
    return remote_error(type_name, bases, message, args, words.cut_tail(traceback), method, raised_by)


def pack_error(error):
    """The payload of an ERROR frame for a live exception."""
    cdef Encoder enc = Encoder()
    encode_error(enc, error)
    return PyBytes_FromStringAndSize(<char*>enc.data, enc.size)


def unpack_error(data, str method="", str raised_by="plugin"):
    """The RemoteError that the payload of an ERROR frame stands for. Raises RemoteProtocolError."""
    cdef Decoder dec = Decoder()
    load(dec, data)
    return decode_error(dec, method, raised_by)
