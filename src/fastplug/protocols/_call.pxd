# The caller's half of calls over a Link. Which link (shared memory, socket, queue) is not known here.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from fastplug._wire cimport ArrayPort, Decoder, Encoder, FrameHeader, Link, MethodCodec
from fastplug.shm._port cimport ArenaPort


cdef class Caller:
    # One connection's calling side. One call at a time; other threads queue for `lock`.
    cdef readonly Link link
    cdef readonly ArrayPort port
    cdef ArenaPort arena_port           # the port, when it is one
    cdef Encoder enc
    cdef Decoder dec
    cdef void* lock
    cdef unsigned long owner            # thread that holds the lock, 0 when nobody does
    cdef uint64_t next_call
    cdef uint64_t answered              # the call that was answered last: replies come in the order of their calls
    cdef public object gave_up          # callable(lane, call, stack wanted) -> (stack, why there is none), for a call nobody waits for any more; or None
    cdef public int lane                # which of the connection's lanes this is
    cdef object lost                    # callable(method or None) -> the error for a connection that ended
    cdef object refusal                 # an error class and text once the caller cannot be used any more
    cdef int owner_pid
    cdef uint32_t mark                  # of the process that made it: a fork of that one must not call
    cdef readonly uint64_t calls
    cdef readonly uint64_t late         # replies dropped because nobody waited for them any more
    cdef object call(self, Remote method, tuple args, dict kwargs)
    cdef object _answer(self, Remote method, int64_t until)
    cdef object _call(self, Remote method, tuple args, dict kwargs, int64_t until, uint64_t* under_way)
    cdef object _give_up(self, uint64_t call, object error)
    cdef int _send(self, Remote method, tuple args, dict kwargs, int64_t until) except -1
    cdef int _lock(self, int64_t until, str what) except -1
    cdef void _unlock(self) noexcept
    cdef int _drop(self, FrameHeader* header) except -1


cdef class Remote:
    # One method of a dispensed interface: what `dsp.total` is.
    cdef Caller caller
    cdef MethodCodec codec
    cdef uint16_t interface
    cdef uint16_t index
    cdef dict __dict__                  # __name__, __doc__, __signature__: for help()
