"""Calls that somebody wants to be told of: done-callbacks, event loops. Who reads for them, and when."""

import logging
import threading
import time

from libc.stdint cimport int64_t

from fastplug._wire cimport FrameHeader
from fastplug.protocols._reading cimport Reading
from fastplug.protocols._turn cimport Pending
from fastplug.protocols._waiting cimport (
    PY_LOCK_ACQUIRED, PyLockStatus, PyThread_acquire_lock, PyThread_acquire_lock_timed, PyThread_get_thread_ident,
)

from fastplug.errors import RemoteProtocolError
from fastplug.protocols._reading import YIELD_S as _YIELD_S

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

# The reader's turn: a call of another thread waits for the link this long at most while somebody awaits an answer on it.
cdef int64_t READ_SLICE_NS = 1_000_000
# A call that another thread makes at the very end of a link meets that end itself.
cdef long long FAREWELL_US = 1_000_000
cdef int READ_FRAMES = 64       # that a loop takes before it has a look at its other affairs
# To start a thread takes 50 us: it stays for the next awaited call.
READER_IDLE_S = 0.5

_log = logging.getLogger("fastplug.calls")


cdef class Told(Reading):
    """The part of a Caller that reads while no call waits."""

    cdef int watch(self, Pending call, object function) except -1:
        """``function(call)`` on the reader's thread when the call, which is under way, is done."""
        if call.callbacks is None:
            call.callbacks = []
            self.watched += 1
        call.callbacks.append(function)
        if self.reader is None:
            self.wanted = threading.Event()
            self.reader = threading.Thread(target=self.read, name="fastplug reader", daemon=True)
            self.reader.start()
        self.wanted.set()
        return 0

    def read(self) -> None:
        """The body of the reader's thread: reads for watched calls, a slice at a time. It ends when there have been none for a while."""
        while True:
            self.run_finished()
            if self.watched:
                self.read_slice()
                if self.queued or self.waiting or self.asked_for:
                    time.sleep(_YIELD_S)
                continue
            self.wanted.clear()
            if not self.wanted.wait(READER_IDLE_S) and not self.watched and not self.finished:
                self.reader = None
                return

    def read_slice(self) -> None:
        cdef PyLockStatus status
        with nogil:
            status = PyThread_acquire_lock_timed(self.lock, READ_SLICE_NS // 1000, 0)
        if status != PY_LOCK_ACQUIRED:
            return
        self.took(PyThread_get_thread_ident())
        try:
            self.read_some(fp_now_ns() + READ_SLICE_NS, 1, False)
        finally:
            self._unlock()

    cdef int read_some(self, int64_t until, int frames, bint on_loop) except -1:
        """Reads so many frames at most, for whichever calls they are. What goes wrong is their outcome; on a loop's thread in a moment."""
        cdef FrameHeader header
        try:
            if self.refusal is not None:
                return self.fail_all(self._refused())
            while frames and self.link.receive(&header, self.dec, until):
                frames -= 1
                self.dispatch(&header)
                if self.asked:
                    self.run_asked()
            if self.link is not None and self.link.ended():     # else loops that wait would look for ever, and nobody else come to run
                raise EOFError
        except Exception as error:
            if on_loop and isinstance(error, EOFError):
                return self.fail_soon(error)
            self.fail_all(self.failure(error, None))
        return 0

    cdef int fail_soon(self, object error) except -1:
        """Why a link has ended takes up to a second to learn, when the plugin's process lives on; a loop has other affairs meanwhile."""
        if self.farewell is None and self.under_way():
            self.farewell = threading.Thread(target=self.say_farewell, args=(error,), name="fastplug end", daemon=True)
            try:
                self.farewell.start()
            except RuntimeError:            # there is no further thread to be had
                self.farewell = None
                self.fail_all(self.failure(error, None))
        return 0

    def say_farewell(self, error) -> None:
        """The body of that thread. A thread that keeps the link for so long meets its end by itself; then the loops' next look tries again."""
        cdef PyLockStatus status
        try:
            failed = self.failure(error, None)
        except Exception as other:
            failed = other
        with nogil:
            status = PyThread_acquire_lock_timed(self.lock, FAREWELL_US, 0)
        self.farewell = None
        if status != PY_LOCK_ACQUIRED:
            return
        self.took(PyThread_get_thread_ident())
        try:
            self.fail_all(failed)
        finally:
            self._unlock()

    @property
    def parting(self) -> bool:
        """The link has ended, and its calls are about to be told."""
        return self.farewell is not None

    def read_ready(self) -> bool:
        """Takes what has come, without waiting. False: another thread has the link; it nudges those who were barred when it lets go."""
        cdef unsigned long me = PyThread_get_thread_ident()
        if not self.at_home():
            return False
        if self.farewell is not None:
            return True
        if self.owner == me:
            if not self.inside:
                return False                    # a loop that runs in the constructor of what is read just now
            self.inside -= 1
            try:
                self.read_some(1, READ_FRAMES, True)    # 1: a time in the past
            finally:
                self.inside += 1
            self.nudge(self.stand_guard())
        elif PyThread_acquire_lock(self.lock, 0):
            self.took(me)
            try:
                self.read_some(1, READ_FRAMES, True)
            finally:
                self._unlock()
        else:
            return False
        return True

    def run_finished(self) -> None:
        """Calls back for every watched call that is done."""
        while self.finished:
            call = <Pending>self.finished.pop(0)
            functions, (<Pending>call).callbacks = (<Pending>call).callbacks, None
            self.watched -= 1
            for function in functions:
                try:
                    function(call)
                except Exception:
                    _log.exception("a done-callback of %s() raised", (<Pending>call).codec.qualified)

    def drain(self) -> None:
        """Drops late replies that have come meanwhile, unless a call is under way."""
        cdef FrameHeader header
        if not self.at_home() or self.refusal is not None or not PyThread_acquire_lock(self.lock, 0):
            return
        self.took(PyThread_get_thread_ident())
        try:
            if self.refusal is not None:
                return              # closed while this waited: there is no link any more
            while self.link.receive(&header, self.dec, 1):          # a time in the past: what is there, without waiting
                self.dispatch(&header)
        except EOFError:
            return              # the next call will say so
        except RemoteProtocolError as error:
            self.refusal = error
        finally:
            self._unlock()
