"""The plugin's half of calls over a Link: takes requests, runs handlers, answers."""

import os
import threading

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastplug._wire cimport (
    FLAG_METADATA, FLAG_SPILLED, FRAME_ERROR, FRAME_REPLY, FRAME_REQUEST, ArrayPort, Decoder, Encoder, FrameHeader, Link, MethodCodec, encode_error,
    get_metadata, skip_rest,
)
from fastplug.shm._port cimport ArenaPort

from fastplug._wire_words import Unbuilt
from fastplug.contexts import CALLS, Context
from fastplug.errors import Cancelled, Closed, RemoteProtocolError

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()
    int fp_fork_init()
    uint32_t fp_mark()
    int fp_is_home(uint32_t)
    void fp_point(const char*)
    enum: FP_DEBUG

if fp_fork_init():
    raise ImportError("MADV_WIPEONFORK is missing: fastplug needs Linux 4.14 or later")

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

# Cancellations of calls that have not begun, or that ended meanwhile: the oldest of more than these is one of the latter.
cdef Py_ssize_t CANCELLED_MAX = 4096

# The port of the connection whose handler runs on this thread: fastplug.empty() makes its arrays there.
_serving = threading.local()


cdef class Server:
    """The serving side of one connection.

    Args:
        link, port: as for Caller.
        interfaces: one list per interface, of (MethodCodec, handler or None), in the order that was announced.
    """

    def __init__(self, Link link not None, ArrayPort port not None, interfaces):
        self.link = link
        self.port = port
        self.arena_port = port if isinstance(port, ArenaPort) else None
        self.enc = Encoder(port)
        self.enc.gathers = link.gathers
        self.dec = Decoder(port)
        self.interfaces = [list(methods) for methods in interfaces]
        self.mark = fp_mark()
        self.cancelled = {}

    def run(self) -> None:
        """Handles calls until the link ends. Raises RemoteProtocolError when the host breaks the protocol."""
        cdef FrameHeader header
        _serving.port = self.arena_port
        CALLS.current = self.current_context
        self.thread = PyThread_get_thread_ident()
        if self.arena_port is not None:
            self.arena_port.begin_serving()
        try:
            while self.link.receive(&header, self.dec, 0):
                self._handle(&header)
        except EOFError:
            return
        finally:
            if self.arena_port is not None:
                self.arena_port.end_serving()
            _serving.port = None
            CALLS.current = None

    def current_context(self) -> object:
        """The context of the call whose handler runs here; None when none does."""
        if not self.running:
            return None
        if self.context is None:
            self.context = Context(self.until_ns or None, self.metadata)
        return self.context

    def cancel(self, call: int) -> bool:
        """Any thread: the caller does not wait for this call any more. Whether its handler runs now."""
        if self.running == call:
            self.current_context().cancel()
            return True
        self.cancelled[call] = None
        if len(self.cancelled) > CANCELLED_MAX:
            del self.cancelled[next(iter(self.cancelled))]
        return False

    cdef object _check_begun(self, uint64_t call):
        """Its cancellation may have come before it: then it does not begin."""
        if call in self.cancelled:
            del self.cancelled[call]
            raise Cancelled("the caller gave this call up before its handler began")

    cdef int _handle(self, FrameHeader* header) except -1:
        cdef MethodCodec codec
        cdef tuple values
        if header.kind != FRAME_REQUEST:
            raise RemoteProtocolError(f"the host sent a frame of kind {header.kind}")
        if header.interface >= len(self.interfaces) or header.method >= len(self.interfaces[header.interface]):
            raise RemoteProtocolError(f"the host called method {header.method} of interface {header.interface}; there is none")
        codec, function = self.interfaces[header.interface][header.method]
        if header.flags & FLAG_SPILLED:
            if self.arena_port is None:
                raise RemoteProtocolError("a spilled payload came where there is no shared memory")
            self.arena_port.unspill(self.dec)
        self.metadata = get_metadata(self.dec) if header.flags & FLAG_METADATA else None
        try:
            values = codec.decode_arguments(self.dec)
        except Unbuilt as error:        # as if the handler had raised it: the caller chose the values
            skip_rest(self.dec)
            self.link.consumed()
            return self._fail(header, error.__cause__)
        self.link.consumed()
        self.calls += 1
        self.enc.reset()
        self.until_ns = fp_now_ns() + header.remaining_ns if header.remaining_ns else 0
        self.running = header.call
        try:
            if self.cancelled:
                self._check_begun(header.call)
            if FP_DEBUG:
                fp_point("handler about to run")
            try:
                result = codec.call(function, values)
            finally:
                self.running = 0
                self.context = None
            values = None               # arguments go back before the reply does, so that the host can use their memory again at once
            self._check_home()
            codec.encode_result(self.enc, result)
            result = None
        except BaseException as error:  # SystemExit too: a handler must not end the plugin by raising
            values = None
            if not fp_is_home(self.mark):
                raise
            return self._fail(header, error)
        return self._reply(header, FRAME_REPLY)

    cdef int _check_home(self) except -1:
        if not fp_is_home(self.mark):
            raise Closed(
                f"a handler forked, and process {os.getpid()}, the child, came back from it: only the plugin itself answers. "
                "End the child in the handler (os._exit), or use subprocess."
            )
        return 0

    def _fail_packed(self, error):
        """Encodes an error that a handler raised; an error about encoding it becomes a plain one."""
        self.port.rollback()
        self.enc.reset()
        try:
            encode_error(self.enc, error)
        except Exception as broken:
            self.enc.reset()
            encode_error(self.enc, RuntimeError(f"{type(error).__name__}, which could not be encoded: {type(broken).__name__}"))

    cdef int _fail(self, FrameHeader* header, error) except -1:
        self._fail_packed(error)
        return self._reply(header, FRAME_ERROR)

    cdef int _reply(self, FrameHeader* request, int kind) except -1:
        cdef FrameHeader header
        memset(&header, 0, sizeof(FrameHeader))
        if self.link.inline_limit and self.enc.size > self.link.inline_limit:
            try:
                self.arena_port.spill(self.enc)
                header.flags = FLAG_SPILLED
            except Exception as error:
                self._fail_packed(error)
                kind = FRAME_ERROR
        header.size = <unsigned int>(self.enc.size + self.enc.outside)
        header.kind = <uint16_t>kind
        header.call = request.call
        header.interface = request.interface
        header.method = request.method
        header.blocks = self.port.named
        self.port.commit()
        self.link.send_encoded(&header, self.enc, 0)
        return 0


def serving_port():
    """The ArenaPort of the connection whose handler runs on this thread; None elsewhere."""
    return getattr(_serving, "port", None)
