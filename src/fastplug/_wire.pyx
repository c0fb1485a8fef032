# What a method makes of values, and frames. _wire.pxd is the header one reads; docs/wire.md specifies the bytes.
#
# _wire is five modules: _wire_buffer (memory and primitives), _wire_scalars and _wire_containers (one small Codec class per kind),
# _wire_errors, and this one. A value that does not fit raises Unfit and grows its path on the way out; MethodCodec turns it into ArgumentError or
# ResultError. Whatever the peer may have caused is RemoteProtocolError. _wire_words holds what only failing calls need.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.string cimport memcpy

from fastplug._wire_buffer cimport broken, finish, load, tuple_of

from collections import namedtuple

from fastplug import _wire_words as words
from fastplug._wire_buffer import live
from fastplug._wire_containers import compile_node, has_arrays, packs
from fastplug._wire_errors import pack_error, unpack_error
from fastplug._wire_words import Unfit
from fastplug.annotation import MISSING, Kind, TypeNode, has_references
from fastplug.contexts import METADATA_BYTES_MAX, METADATA_ENTRIES_MAX
from fastplug.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "ArrayPort", "Codec", "Decoder", "Encoder", "Header", "HandoverLink", "Link", "MESSAGE_BYTES_MAX", "Memory", "MethodCodec", "PyLink", "References", "Unfit",
    "compile_node", "has_arrays", "live", "pack_error", "pack_header", "unpack_error", "unpack_header",
]

cdef extern from "Python.h":
    ctypedef struct PyTupleObject:
        PyObject* ob_item[1]
    object PyObject_Vectorcall(object function, PyObject** args, size_t count, PyObject* names)
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    void Py_INCREF(PyObject*)

MESSAGE_BYTES_MAX = MESSAGE_MAX
# Cython keeps a cimported class to itself; Python finds them here, too.
globals().update({cls.__name__: cls for cls in (ArrayPort, Codec, Decoder, Encoder, Memory, References)})


cdef class MethodCodec:
    def __init__(self, str interface not None, method, *, bint callback=False):
        parameters = method.parameters
        self.interface = interface
        self.name = method.name
        self.qualified = f"{interface}.{method.name}" if method.name else interface
        self.callback = callback
        self.parameters = tuple([parameter.name for parameter in parameters])
        self.codecs = tuple([compile_node(parameter.node) for parameter in parameters])
        self.defaults = tuple([parameter.default for parameter in parameters])
        self.keyword_only = tuple([parameter.name for parameter in parameters if parameter.keyword_only])
        self.positional = len(self.parameters) - len(self.keyword_only)
        self.result = compile_node(method.returns)
        self.result_arrays = has_arrays(self.result)
        if method.returns.kind is Kind.STREAM:
            self.item = compile_node(method.returns.args[0])
        for parameter in parameters:
            if parameter.node.kind is Kind.STREAM:
                self.fed = compile_node(parameter.node.args[0])
        self.has_references = any([has_references(node) for node in (method.returns, *[parameter.node for parameter in parameters])])
        self.packs = len(self.codecs) <= VALUES_MAX and all([packs(codec) for codec in (self.result, *self.codecs)])

    def __repr__(self):
        return f"<MethodCodec {self.qualified}>"

    cdef int encode_arguments(self, Encoder enc, tuple args, dict kwargs) except -1:
        cdef Py_ssize_t at = -1
        try:
            return self.put_arguments(enc, args, kwargs, &at)
        except Exception as error:
            raise self.refused(args, kwargs, at, error)

    cdef int put_arguments(self, Encoder enc, tuple args, dict kwargs, Py_ssize_t* at) except -1:
        cdef Py_ssize_t i, n
        cdef uint16_t count
        if not self.fits(args, kwargs):
            args = self.bound(args, kwargs or {})
        n = PyTuple_GET_SIZE(args)
        count = <uint16_t>n
        memcpy(enc.take(2), &count, 2)
        for i in range(n):
            at[0] = i
            (<Codec>PyTuple_GET_ITEM(self.codecs, i)).encode(enc, <object>PyTuple_GET_ITEM(args, i))
        at[0] = -1
        return 0

    cdef bint takes_one(self) noexcept:
        return PyTuple_GET_SIZE(self.codecs) == 1 and self.positional == 1

    cdef int put_only(self, Encoder enc, object value, Py_ssize_t* at) except -1:
        cdef uint16_t count = 1
        memcpy(enc.take(2), &count, 2)
        at[0] = 0
        (<Codec>PyTuple_GET_ITEM(self.codecs, 0)).encode(enc, value)
        at[0] = -1
        return 0

    cdef int put_each(self, Encoder enc, list values, Py_ssize_t* next, Py_ssize_t end, Py_ssize_t* size, Py_ssize_t limit, Py_ssize_t* at) except -1:
        cdef Codec codec = <Codec>PyTuple_GET_ITEM(self.codecs, 0)
        cdef uint16_t count = 1
        while next[0] < end:
            memcpy(enc.take(2), &count, 2)
            at[0] = 0
            codec.encode(enc, values[next[0]])
            at[0] = -1
            if enc.size > limit:
                break
            size[0] = enc.size
            next[0] += 1
        return 0

    cdef object refused(self, tuple args, dict kwargs, Py_ssize_t at, Exception error):
        if at < 0:
            return error                # not about a value
        if not self.fits(args, kwargs):
            args = self.bound(args, kwargs or {})
        return words.argument_error(self.qualified, self.parameters[at], self.codecs[at].canonical, args[at], error)

    cdef bint fits(self, tuple args, dict kwargs) noexcept:
        return PyTuple_GET_SIZE(args) == PyTuple_GET_SIZE(self.codecs) and not self.keyword_only and not kwargs

    cdef tuple bound(self, tuple args, dict kwargs):
        # The values in order of declaration, as far as the last one given: the plugin's defaults stand for the rest.
        cdef Py_ssize_t given = len(args)
        cdef Py_ssize_t end = given
        cdef list values
        if given > self.positional:
            raise words.too_many(self.qualified, self.positional, given)
        values = list(args) + list(self.defaults[given:])
        for name, value in kwargs.items():
            if name not in self.parameters:
                raise words.unexpected(self.qualified, name)
            i = self.parameters.index(name)
            if i < given:
                raise words.given_twice(self.qualified, name)
            values[i] = value
            end = max(end, i + 1)
        lacking = [name for name, value in zip(self.parameters, values) if value is MISSING]
        if lacking:
            raise words.missing(self.qualified, [name for name in lacking if name not in self.keyword_only], lacking)
        return tuple(values[:end])

    cdef tuple decode_arguments(self, Decoder dec, bint last=True):
        cdef Py_ssize_t i, count, n = PyTuple_GET_SIZE(self.codecs)
        cdef tuple values
        try:
            count = self.count_of(dec)
            values = tuple_of(dec, self.codecs, count)
            if last:
                finish(dec)
            if count < n:
                values += tuple([self.default_of(dec, i) for i in range(count, n)])
        except RemoteProtocolError as error:
            raise words.located(self.qualified, error)
        return values

    cdef Py_ssize_t surplus(self, Decoder dec, Py_ssize_t count) except -1:
        raise broken(dec, f"{count} arguments for {len(self.codecs)} parameters")

    cdef object default_of(self, Decoder dec, Py_ssize_t i):
        if self.defaults[i] is MISSING:
            raise broken(dec, f"no argument {self.parameters[i]!r}")
        return self.defaults[i]

    cdef int decode_values(self, Decoder dec, Values* values, bint last) except -1:
        cdef Py_ssize_t i, count = self.count_of(dec)
        for i in range(count):
            one = (<Codec>PyTuple_GET_ITEM(self.codecs, i)).decode(dec)
            Py_INCREF(<PyObject*>one)
            values.items[i] = <PyObject*>one
            values.count = i + 1
        if last:
            finish(dec)
        for i in range(count, PyTuple_GET_SIZE(self.codecs)):
            one = self.default_of(dec, i)
            Py_INCREF(<PyObject*>one)
            values.items[i] = <PyObject*>one
            values.count = i + 1
        return 0

    cdef object call(self, object function, tuple values):
        return PyObject_Vectorcall(function, &(<PyTupleObject*>values).ob_item[0], self.positional, self.names())

    cdef object call_values(self, object function, PyObject* owner, Values* values):
        if owner == NULL:
            return PyObject_Vectorcall(function, values.items, self.positional | PY_VECTORCALL_ARGUMENTS_OFFSET, self.names())
        values.spare = owner
        return PyObject_Vectorcall(function, &values.spare, self.positional + 1, self.names())

    cdef PyObject* names(self) noexcept:
        return <PyObject*>self.keyword_only if self.keyword_only else NULL

    cdef int encode_result(self, Encoder enc, object value) except -1:
        try:
            return self.put_result(enc, value)
        except Exception as error:
            raise self.unfit_result(value, error)

    cdef int put_result(self, Encoder enc, object value) except -1:
        if self.result_arrays and enc.port is not None:
            enc.port.offer(<PyObject*>value)
        return self.result.encode(enc, value)

    cdef object unfit_result(self, object value, object error):
        if not isinstance(error, Exception):
            return error
        return words.result_error(self.qualified, self.result.canonical, value, error, callback=self.callback)

    cdef object decode_result(self, Decoder dec):
        return self._decoded(dec, self.result)

    cdef object take_result(self, Decoder dec):
        value = self.result.decode(dec)
        finish(dec)
        return value

    cdef object located(self, object error):
        return words.located(self.qualified, error) if isinstance(error, RemoteProtocolError) else error

    cdef int encode_item(self, Encoder enc, object value) except -1:
        try:
            return self.item.encode(enc, value)
        except Exception as error:
            raise words.result_error(self.qualified, self.item.canonical, value, error)

    cdef object decode_item(self, Decoder dec):
        return self._decoded(dec, self.item)

    cdef int encode_fed(self, Encoder enc, object value) except -1:
        try:
            return self.fed.encode(enc, value)
        except Exception as error:
            raise words.argument_error(self.qualified, "item of the stream", self.fed.canonical, value, error)

    cdef object decode_fed(self, Decoder dec):
        return self._decoded(dec, self.fed)

    cdef object _decoded(self, Decoder dec, Codec codec):
        try:
            value = codec.decode(dec)
            finish(dec)
        except RemoteProtocolError as error:
            raise words.located(self.qualified, error)
        return value

    def pack_arguments(self, tuple args not None, dict kwargs=None, *, Encoder encoder=None):
        """The payload of a REQUEST. Raises ArgumentError. For tests and tools, as the next three."""
        cdef Encoder enc = encoder or Encoder()
        enc.reset()
        self.encode_arguments(enc, args, kwargs)
        return PyBytes_FromStringAndSize(<char*>enc.data, enc.size)

    def unpack_arguments(self, data, *, Decoder decoder=None):
        """``(args, kwargs)`` as the handler gets them. Raises RemoteProtocolError."""
        cdef Decoder dec = decoder or Decoder()
        load(dec, data)
        values = self.decode_arguments(dec)
        return values[:self.positional], dict(zip(self.keyword_only, values[self.positional:]))

    def pack_result(self, value, *, Encoder encoder=None):
        """The payload of a REPLY. Raises ResultError."""
        cdef Encoder enc = encoder or Encoder()
        enc.reset()
        self.encode_result(enc, value)
        return PyBytes_FromStringAndSize(<char*>enc.data, enc.size)

    def unpack_result(self, data, *, Decoder decoder=None):
        """What the caller gets. Raises RemoteProtocolError."""
        cdef Decoder dec = decoder or Decoder()
        load(dec, data)
        return self.decode_result(dec)


cdef Codec TEXTS_BY_TEXT = compile_node(TypeNode(Kind.DICT, (TypeNode(Kind.STR), TypeNode(Kind.STR))))
# A tag and a length stand in front of a dict, and of each text in it.
cdef enum:
    METADATA_HEAD = 5

Header = namedtuple("Header", "size kind flags call interface method blocks remaining_ns")

cdef int put_metadata(Encoder enc, bytes packed) except -1:
    memcpy(enc.take(PyBytes_GET_SIZE(packed)), PyBytes_AS_STRING(packed), PyBytes_GET_SIZE(packed))
    return 0


cdef dict get_metadata(Decoder dec):
    """Of a request. It is refused before much of it is built, whoever sent it."""
    cdef uint32_t count = 0
    cdef Py_ssize_t start = dec.pos
    if dec.size - start >= METADATA_HEAD:
        memcpy(&count, dec.data + start + 1, sizeof(count))
    if count > METADATA_ENTRIES_MAX:
        raise RemoteProtocolError(f"the host sent metadata of {count} entries; at most {METADATA_ENTRIES_MAX} are allowed")
    found = TEXTS_BY_TEXT.decode(dec)
    if dec.pos - start - METADATA_HEAD - 2 * METADATA_HEAD * <Py_ssize_t>count > METADATA_BYTES_MAX:
        raise RemoteProtocolError(f"the host sent metadata of more than {METADATA_BYTES_MAX} bytes")
    return found


cdef int count_packed(const FrameHeader* header, Decoder dec) except -1:
    cdef uint16_t count
    memcpy(&count, dec.need(sizeof(count)), sizeof(count))
    if not 0 < count <= PACKED_MAX or header.flags or header.blocks:
        raise broken(dec, f"{count} packed calls with flags {header.flags} and {header.blocks} blocks; 1 to {PACKED_MAX} may be, and neither of these")
    return count


cdef int bad_header(const FrameHeader* header) except -1:
    if not FRAME_REQUEST <= header.kind <= FRAME_REPLIES:
        raise RemoteProtocolError(f"the peer sent a frame of the unknown kind {header.kind}")
    if header.size > MESSAGE_MAX:
        raise RemoteProtocolError(f"the peer sent a frame of {header.size} bytes, {MESSAGE_MAX} are allowed")
    if unknown_flags(header):
        raise RemoteProtocolError(f"the peer sent a frame with unknown flags {header.flags:#06x}")
    raise RemoteProtocolError(f"the peer sent a frame with {header.remaining_ns} ns remaining")


def pack_header(uint32_t size, uint16_t kind, uint16_t flags=0, uint64_t call=0, uint16_t interface=0, uint16_t method=0,
                uint32_t blocks=0, int64_t remaining_ns=0):
    """The 32 bytes before a payload (wire.md, "Frames")."""
    cdef FrameHeader header
    header.size, header.kind, header.flags, header.call = size, kind, flags, call
    header.interface, header.method, header.blocks, header.remaining_ns = interface, method, blocks, remaining_ns
    return PyBytes_FromStringAndSize(<char*>&header, HEADER_BYTES)


def unpack_header(data):
    """The checked Header in the first 32 bytes of ``data``. Raises RemoteProtocolError."""
    cdef FrameHeader header
    read_header(bytes(data), &header)
    return Header(header.size, header.kind, header.flags, header.call, header.interface, header.method, header.blocks, header.remaining_ns)


cdef int read_header(bytes frame, FrameHeader* header) except -1:
    if PyBytes_GET_SIZE(frame) < HEADER_BYTES:
        raise RemoteProtocolError(f"the peer sent a frame of {PyBytes_GET_SIZE(frame)} bytes, its header alone takes {HEADER_BYTES}")
    memcpy(header, PyBytes_AS_STRING(frame), HEADER_BYTES)
    return check_header(header)


cdef class Link:
    cdef int send(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1:
        raise LocalProtocolError(f"{type(self).__name__} does not send")

    cdef int send_encoded(self, FrameHeader* header, Encoder enc, int64_t until_ns) except -1:
        return self.send(header, enc.data, until_ns)

    cdef int flush(self) except -1:
        return 0

    cdef bint has_frame(self) except -1:
        return False

    cdef int receive(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1:
        raise LocalProtocolError(f"{type(self).__name__} does not receive")

    cdef bint ended(self) except -1:
        return False

    cdef int consumed(self) except -1:
        return 0

    cdef bint arm(self) noexcept:
        return False

    cdef void disarm(self) noexcept:
        pass

    def descriptor(self):
        """What an event loop can watch for frames; whoever asks closes it. -1: a thread has to wait for them. Raises OSError."""
        return -1

    def heard(self):
        """The descriptor was readable. False: it has been so for nothing too often, and is not to be watched any more."""
        return True

    def await_stirs(self):
        """Whoever receives: before it does, if somebody will stir it. Idempotent."""

    def stir(self):
        """Any thread: whoever waits for a frame stops waiting once, as if the time were up. True: it may sleep all the same; ask again."""
        return False

    def wake(self):
        """Any thread: wakes a waiter once; True while one is, or may be, asleep."""
        return False


cdef class HandoverLink(Link):
    cdef int send_encoded(self, FrameHeader* header, Encoder enc, int64_t until_ns) except -1:
        # By its next message the encoder sees that its memory has another owner, and takes a new one.
        packed = PyBytes_FromStringAndSize(<char*>header, HEADER_BYTES)
        return self.send_frame((packed, enc.memory, enc.data - enc.memory.data), until_ns / 1e9 if until_ns else None) is not False

    cdef int send(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1:
        cdef Encoder enc = Encoder()
        if header.size:                 # without a payload there is no address to copy from
            memcpy(enc.take(header.size), payload, header.size)
        return self.send_encoded(header, enc, until_ns)

    cdef bint has_frame(self) except -1:
        return self.ready()

    cdef int receive(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1:
        cdef Memory memory
        cdef Py_ssize_t start
        received = self.receive_frame(until_ns / 1e9 if until_ns else None)
        if received is None:
            return 0
        packed, memory, start = received
        read_header(packed, header)
        if start < 0 or header.size > memory.bytes - start:
            raise LocalProtocolError(f"a frame of {header.size} bytes was handed over in memory of {memory.bytes - start}")
        dec.adopt(memory, memory.data + start, header.size)
        return 1

    def ready(self):
        """Whether a frame can be received without waiting."""
        return False

    def send_frame(self, frame, until_s):
        """Hands one frame over; False: nothing was sent, what has come must be received first (only while ``asks`` is set). Raises DeadlineExceeded (nothing was sent), PluginDied, Closed."""
        raise LocalProtocolError(f"{type(self).__name__} does not send")

    def receive_frame(self, until_s):
        """The next frame, or None when the clock (CLOCK_MONOTONIC) reached ``until_s``."""
        raise LocalProtocolError(f"{type(self).__name__} does not receive")


cdef class PyLink(Link):
    cdef int send(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1:
        cdef bytes frame = PyBytes_FromStringAndSize(NULL, HEADER_BYTES + <Py_ssize_t>header.size)
        memcpy(PyBytes_AS_STRING(frame), header, HEADER_BYTES)
        memcpy(PyBytes_AS_STRING(frame) + HEADER_BYTES, payload, header.size)
        self.send_frame(frame, until_ns / 1e9 if until_ns else None)
        return 1

    cdef int receive(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1:
        cdef bytes frame
        received = self.receive_frame(until_ns / 1e9 if until_ns else None)
        if received is None:
            return 0
        frame = bytes(received)
        read_header(frame, header)
        if PyBytes_GET_SIZE(frame) - HEADER_BYTES != header.size:
            raise RemoteProtocolError(f"the peer sent a frame of {len(frame)} bytes whose header announces {header.size} of payload")
        memcpy(dec.fill(header.size), PyBytes_AS_STRING(frame) + HEADER_BYTES, header.size)
        return 1

    def send_frame(self, frame, until_s):
        """Sends one whole frame. Raises DeadlineExceeded (nothing was sent), PluginDied, Closed."""
        raise LocalProtocolError(f"{type(self).__name__} does not send")

    def receive_frame(self, until_s):
        """The next whole frame, or None when the clock (CLOCK_MONOTONIC) reached ``until_s``."""
        raise LocalProtocolError(f"{type(self).__name__} does not receive")
