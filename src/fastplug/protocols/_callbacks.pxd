# Callbacks: what the host keeps for the plugin to call, and what the plugin has in place of it.

from libc.stdint cimport int64_t, uint64_t

from fastplug._wire cimport Codec, Decoder, Encoder, FrameHeader, MethodCodec
from fastplug.protocols._session cimport Session


cdef class Registry:
    # The host's: everything that was passed on one connection and was not released.
    cdef dict passed                    # number -> (target, {name: (MethodCodec, function)}, owner)
    cdef uint64_t next_number
    cdef bint closed
    cdef unsigned long thread           # on which callbacks run that no call waits for; 0 before there is one
    cdef uint64_t register(self, object value, Codec codec, object owner) except 0      # Unfit
    cdef int forget(self, uint64_t number) except -1
    cdef int release(self, Decoder dec) except -1               # the payload of RELEASE
    # The payload of CALLBACK: (MethodCodec, function, arguments or None, error or None, owner).
    cdef tuple request(self, Decoder dec)


cdef int answered(Encoder enc, tuple request, list interrupt) except -1
cdef object target_of(CallbackLine line, uint64_t number, Codec codec, object call)
cdef object answer_of(FrameHeader* header, Decoder dec, MethodCodec codec)


cdef class Passed:
    # The plugin's: one callback that was passed. Its end is the release.
    cdef CallbackLine line
    cdef uint64_t number
    cdef object call                    # the Activation of the call that brought it, as long as that runs


cdef class Target:
    # One method of it: what the plugin calls.
    cdef Passed passed
    cdef MethodCodec codec
    cdef bytes name
    cdef int encode(self, Encoder enc, tuple args, dict kwargs) except -1


cdef class Asking(Session):
    # Who can bring a callback to the host.
    cdef object ask(self, Target target, tuple args, dict kwargs)
    cdef int nested(self) except -1     # a handler waits: serves a bit of what comes meanwhile
    # On the thread that serves: whether a handler runs now. Else the code that asks runs while a value is encoded or decoded, which nothing
    # that is served may run on top of, since it would use the same encoder; or it is a signal handler's, while a frame is waited for.
    cdef bint in_handler(self) except -1
    cdef bint receiving
    cdef int let_out(self) except -1    # before it does: what waits to be published with the next answers goes out


cdef class CallbackLine(Asking):
    # The plugin's way to the host outside of a call: a link of its own, with the roles turned round.
    cdef object lock
    cdef object attached                # an Event
    cdef list released                  # numbers whose Passed is gone, for the next RELEASE
    cdef Py_ssize_t alive
    cdef uint64_t next_call
    cdef int request(self, Target target, tuple args, dict kwargs, int64_t until) except -1
    cdef object answer(self, Target target, int64_t until, bint patient=*)
    cdef object ask_and_serve(self, Asking here, Target target, tuple args, dict kwargs, int64_t until)
    cdef int drop(self, uint64_t number) except -1
    cdef bytes take_released(self)      # the payload of one RELEASE; None: nothing to tell
