"""The caller's half of calls over a Link: request, reply, error, deadline.

A caller sends one REQUEST and waits for the reply with its call id. Replies to calls that were given up (deadline, Ctrl-C) come later;
they are dropped, and the blocks they name are given back. docs/wire.md, "Frames".
"""

import os
import random

from cpython.contextvars cimport get_value
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastplug._wire cimport (
    FLAG_METADATA, FLAG_SPILLED, FRAME_ERROR, FRAME_REPLY, FRAME_REQUEST, ArrayPort, Decoder, Encoder, FrameHeader, Link, MethodCodec,
    decode_error, put_metadata, skip_rest, skip_value,
)
from fastplug.shm._port cimport ArenaPort

from fastplug._wire_words import Unbuilt
from fastplug.contexts import METADATA as _metadata
from fastplug.deadlines import UNTIL_NS as _until_ns
from fastplug.errors import Closed, DeadlineExceeded, LocalProtocolError, PluginError, RemoteError, RemoteProtocolError, seen_by_handler

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()
    int fp_fork_init()
    uint32_t fp_mark()
    int fp_is_home(uint32_t)

cdef extern from "pythread.h":
    ctypedef enum PyLockStatus: PY_LOCK_FAILURE, PY_LOCK_ACQUIRED, PY_LOCK_INTR
    void* PyThread_allocate_lock()
    void PyThread_free_lock(void*)
    int PyThread_acquire_lock(void*, int) nogil
    PyLockStatus PyThread_acquire_lock_timed(void*, long long microseconds, int intr_flag) nogil
    void PyThread_release_lock(void*)
    unsigned long PyThread_get_thread_ident()

if fp_fork_init():
    raise ImportError("MADV_WIPEONFORK is missing: fastplug needs Linux 4.14 or later")

cdef object UNTIL_NS = _until_ns
cdef object METADATA = _metadata

# A thread that queues for a handle looks up this often: a lock wait on a thread that is not the main one is not interrupted by signals.
cdef long long QUEUE_SLICE_US = 100_000
# Callers have been woken by the end of their link; this long for a machine that is busy with something else.
cdef long long RELEASE_US = 1_000_000


cdef inline int64_t _until() except? -1:
    """The caller's deadline, CLOCK_MONOTONIC in nanoseconds; 0 without one."""
    until = get_value(UNTIL_NS)
    return 0 if until is None else until


cdef class Remote:
    """One method of a dispensed interface, callable from any thread.

    Raises what the declared handler raises (as RemoteError), ArgumentError, ResultError, DeadlineExceeded, PluginDied, Closed,
    ArenaExhausted, CopyRequired, RemoteProtocolError.
    """

    def __init__(self, Caller caller not None, MethodCodec codec not None, interface: int, index: int, doc, signature):
        self.caller = caller
        self.codec = codec
        self.interface = interface
        self.index = index
        self.__name__ = codec.name
        self.__qualname__ = codec.qualified
        self.__doc__ = doc
        self.__signature__ = signature

    def __call__(self, *args, **kwargs):
        return self.caller.call(self, args, kwargs)

    def __repr__(self):
        return f"<fastplug method {self.codec.qualified}>"

    def __reduce__(self):
        raise TypeError("a live method cannot be pickled; pickle a fastplug.Spec and open it where it is needed")


cdef class Caller:
    """The calling side of one connection.

    Args:
        link: where frames go.
        port: how arrays go.
        lost: called with the method in flight or None when the link ends; returns the error to raise.
        message_bytes_max: a larger payload is refused; None is the codec's own limit.
    """

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def __init__(self, Link link not None, ArrayPort port not None, lost):
        self.link = link
        self.port = port
        self.arena_port = port if isinstance(port, ArenaPort) else None
        self.enc = Encoder(port)
        self.enc.gathers = link.gathers
        self.dec = Decoder(port)
        self.lost = lost
        self.owner_pid = os.getpid()
        self.mark = fp_mark()
        self.next_call = self.answered = random.getrandbits(48)         # wire.md: a reply of an earlier connection can hardly match

    def close(self, error) -> None:
        """From now on calls raise ``error``, or what it returns if it is a callable. Who waits is woken by the link's own end."""
        if self.refusal is None:
            self.refusal = error

    def release(self) -> None:
        """After close() and the end of the link: gives the memory back, though handles live on.

        A call that does not come back in time, or that this very thread is in (kill() in a signal handler), keeps it until it has ended.
        """
        cdef PyLockStatus status
        with nogil:
            status = PyThread_acquire_lock_timed(self.lock, RELEASE_US, 0)
        if status == PY_LOCK_ACQUIRED:
            self.link = None
            self.port = None
            self.arena_port = None
            self.enc = None
            self.dec = None
            PyThread_release_lock(self.lock)

    cdef int _lock(self, int64_t until, str what) except -1:
        cdef PyLockStatus status
        cdef long long wait_us
        cdef unsigned long me = PyThread_get_thread_ident()
        if PyThread_acquire_lock(self.lock, 0):
            self.owner = me
            return 0
        if self.owner == me:
            raise LocalProtocolError(
                f"{what}() was called while this thread already waits in a call on the same handle (from a signal handler, a finalizer or "
                "an argument's __index__); make the call after that one, or open a second handle"
            )
        while True:
            wait_us = QUEUE_SLICE_US
            if until:
                wait_us = min(wait_us, (until - fp_now_ns()) // 1000)
                if wait_us <= 0:
                    raise DeadlineExceeded(f"{what}() was still waiting for other calls on this handle when its deadline ran out; nothing was sent")
            with nogil:
                status = PyThread_acquire_lock_timed(self.lock, wait_us, 1)
            if status == PY_LOCK_ACQUIRED:
                self.owner = me
                return 0
            PyErr_CheckSignals()

    cdef void _unlock(self) noexcept:
        self.owner = 0
        PyThread_release_lock(self.lock)

    cdef object call(self, Remote method, tuple args, dict kwargs):
        cdef int64_t until = _until()
        cdef uint64_t under_way = 0
        if not fp_is_home(self.mark) or self.refusal is not None:
            raise self._refused()
        try:
            return self._call(method, args, kwargs, until, &under_way)
        except BaseException as error:          # a deadline, Ctrl-C, whatever a signal handler raises
            if under_way and self.gave_up is not None and self.answered < under_way:
                self._give_up(under_way, error)
            raise

    cdef object _give_up(self, uint64_t call, object error):
        """Nobody waits for this call any more: the plugin is told, and says where it is. Without the lane's lock, since that may take 100 ms."""
        if isinstance(error, PluginError) and not isinstance(error, DeadlineExceeded):
            return                  # the connection is of no use any more
        try:
            stack, reason = self.gave_up(self.lane, call, isinstance(error, DeadlineExceeded))
        except Exception as failed:
            stack, reason = "", f"{type(failed).__name__}: {failed}"
        if isinstance(error, DeadlineExceeded):
            error.plugin_stack, error.no_stack = stack, reason

    cdef object _call(self, Remote method, tuple args, dict kwargs, int64_t until, uint64_t* under_way):
        self._lock(until, method.codec.qualified)
        try:
            if self.refusal is not None:
                raise self._refused()
            self._send(method, args, kwargs, until)
            under_way[0] = self.next_call
            result = self._answer(method, until)
            under_way[0] = 0
            return result
        except EOFError as error:
            if isinstance(error, RemoteError):
                raise           # the handler's own
            under_way[0] = 0
            raise self.lost(method.codec.qualified) from (error if error.args else None)
        except RemoteProtocolError as error:
            if not isinstance(error, Unbuilt):
                self.refusal = error
            raise
        finally:
            self._unlock()

    cdef int _send(self, Remote method, tuple args, dict kwargs, int64_t until) except -1:
        cdef FrameHeader header
        self.enc.reset()
        try:
            memset(&header, 0, sizeof(FrameHeader))
            metadata = get_value(METADATA)
            if metadata is not None:
                put_metadata(self.enc, metadata[1])
                header.flags = FLAG_METADATA
            method.codec.encode_arguments(self.enc, args, kwargs)
            if self.link.inline_limit and self.enc.size > self.link.inline_limit:
                self.arena_port.spill(self.enc)
                header.flags |= FLAG_SPILLED
            if until:
                header.remaining_ns = until - fp_now_ns()
                if header.remaining_ns <= 0:
                    raise DeadlineExceeded(f"{method.codec.qualified}(): the deadline was over before the call; nothing was sent")
            self.next_call += 1
            header.size = <unsigned int>(self.enc.size + self.enc.outside)
            header.kind = FRAME_REQUEST
            header.call = self.next_call
            header.interface = method.interface
            header.method = method.index
            header.blocks = self.port.named
            # sent counts before the peer can see the frame: it may return the blocks at once
            self.port.commit()
        except BaseException:
            self.port.rollback()
            self.enc.let_go()
            raise
        try:
            self.link.send_encoded(&header, self.enc, until)
        except BaseException:           # Ctrl-C, too, while the ring is full
            if self.arena_port is not None:
                self.arena_port.retract()
            raise
        self.calls += 1
        return 0

    cdef object _answer(self, Remote method, int64_t until):
        cdef FrameHeader header
        while True:
            if not self.link.receive(&header, self.dec, until):
                raise DeadlineExceeded(f"{method.codec.qualified}() had no answer before the deadline; a late one will be dropped")
            if header.call == self.next_call and self.answered != self.next_call:
                break
            self._drop(&header)
        self.answered = header.call
        if header.flags & FLAG_SPILLED:
            self._unspill()
        if header.kind == FRAME_REPLY:
            try:
                return method.codec.decode_result(self.dec)
            except Unbuilt:
                skip_rest(self.dec)     # what it did not come to is given back
                raise
            finally:
                self.link.consumed()
        if header.kind == FRAME_ERROR:
            error = decode_error(self.dec, method.codec.qualified)
            raise seen_by_handler(error) if until else error
        raise RemoteProtocolError(f"{method.codec.qualified}() was answered by a frame of kind {header.kind}")

    cdef int _drop(self, FrameHeader* header) except -1:
        """A reply that nobody waits for any more: the blocks it names go back."""
        if header.kind != FRAME_REPLY and header.kind != FRAME_ERROR:
            raise RemoteProtocolError(f"a frame of kind {header.kind} came where only replies may come")
        if not self.answered < header.call <= self.next_call:
            # so late replies are no more than the calls that were given up, and nobody waits for ever for the end of them
            raise RemoteProtocolError(f"a reply to call {header.call} came, which was never made or has been answered")
        self.answered = header.call
        if header.flags & FLAG_SPILLED:
            self._unspill()
        if header.kind == FRAME_REPLY:
            skip_value(self.dec)
        self.link.consumed()
        self.late += 1
        return 0

    def _unspill(self):
        if self.arena_port is None:
            raise RemoteProtocolError("a spilled payload came where there is no shared memory")
        self.arena_port.unspill(self.dec)

    def drain(self) -> None:
        """Drops late replies that have come meanwhile, unless a call is under way."""
        cdef FrameHeader header
        if not fp_is_home(self.mark) or self.refusal is not None or not PyThread_acquire_lock(self.lock, 0):
            return
        self.owner = PyThread_get_thread_ident()
        try:
            if self.refusal is not None:
                return              # closed while this waited: there is no link any more
            while self.link.receive(&header, self.dec, 1):          # a time in the past: what is there, without waiting
                self._drop(&header)
        except EOFError:
            return              # the next call will say so
        except RemoteProtocolError as error:
            self.refusal = error
        finally:
            self._unlock()

    def _refused(self):
        """A new error each time: one that is raised twice collects tracebacks."""
        if not fp_is_home(self.mark):
            return Closed(
                f"this handle belongs to process {self.owner_pid}; this is process {os.getpid()}, forked from it. "
                "Open the plugin again here (fastplug.Spec can be passed on)."
            )
        if isinstance(self.refusal, RemoteProtocolError):
            again = RemoteProtocolError(f"the connection is not used any more after an earlier error: {self.refusal}")
            again.__cause__ = self.refusal
            return again
        if callable(self.refusal) and not isinstance(self.refusal, Exception):
            return self.refusal()
        return Closed(str(self.refusal))

    def check_usable(self) -> None:
        """Raises what a call would raise before it sends anything."""
        if not fp_is_home(self.mark) or self.refusal is not None:
            raise self._refused()
