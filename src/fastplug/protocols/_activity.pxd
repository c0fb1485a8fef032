# What is under way in a plugin besides plain calls.

from libc.stdint cimport int64_t, uint16_t, uint64_t

from fastplug._wire cimport FrameHeader, MethodCodec, References
from fastplug.protocols._callbacks cimport Asking, CallbackLine
from fastplug.protocols._streams cimport Incoming, Outgoing


cdef enum:
    # Handlers of a lane on top of handlers that wait: a chain of callbacks this deep is an endless one, and Python's own stack ends soon after.
    NESTED_MAX = 32
    CROWDED = 16            # from here on none that nobody waits for: the callbacks that it passed may need the rest


cdef class Activation:
    # One call in the plugin, from its request to its answer.
    cdef Activity server
    cdef MethodCodec codec
    cdef object function
    cdef tuple values                   # until it runs
    cdef object error                   # what a constructor raised when they were decoded
    cdef uint64_t number
    cdef uint16_t interface
    cdef uint16_t method
    cdef int flags
    cdef bint running                   # its handler or generator is on the stack
    cdef bint within                    # it came while the lane's caller waited for another one: from a callback of that, or its iterable
    cdef bint given_up                  # the caller said CANCEL or CLOSE
    cdef unsigned long thread
    cdef Incoming feed                  # the stream that it takes, or None
    cdef bint feed_closed               # it wants no more of it
    cdef bint close_told                # and the caller has been told so
    cdef Outgoing out                   # the stream that it returns, once there is one
    cdef bint asynchronous              # its handler runs on the event loop
    cdef object task                    # its _tasks.Running, once it does
    cdef int64_t until_ns               # the caller's deadline, 0 without one
    cdef dict metadata
    cdef object context                 # made when somebody asks for it
    cdef int give_up(self) except -1
    cdef bint answerable(self, int depth) except -1     # on top of so many handlers: it runs, or ends with an error


cdef class Asked:
    # A callback that was asked for on the lane: its answer.
    cdef MethodCodec codec
    cdef bint done
    cdef object value
    cdef object error


cdef class Input:
    # The stream that a method takes, as its handler has it.
    cdef Activation call
    cdef bint over(self) except -1


cdef class PluginReferences(References):
    # What the arguments of one request bring.
    cdef Activity server
    cdef Activation call


cdef class Activity(Asking):
    cdef readonly CallbackLine line
    # Activations with a stream that may send: the first of them while no other is in front, and the others, a deque to which any thread adds.
    cdef Activation front
    cdef object streams
    cdef dict active                    # number -> Activation that frames may be about
    cdef dict asked                     # number -> Asked
    cdef uint64_t next_callback
    cdef uint64_t last                  # the highest call number that came
    # Calls that came in one frame with the one that runs, and have not begun: from this number on, and before that one.
    cdef uint64_t hand_next
    cdef uint64_t hand_end
    cdef bint in_hand(self, uint64_t call) noexcept
    cdef int depth                      # handlers on the stack
    cdef int waits                      # of these, how many wait in nested()
    cdef int running_handlers(self) noexcept
    cdef public object group            # of lanes that this thread serves, None while there is one
    cdef public bint stopping           # finish what is in hand, then end
    # What a Server does: one frame, handler or item; the last frame of a call, whose payload is in enc; and so on.
    cdef int step(self) except -1
    cdef int finish(self, Activation call, int kind) except -1
    cdef int pack_error(self, object error) except -1
    cdef int check_home(self) except -1
    cdef tuple enter(self, Activation call)
    cdef int leave(self, Activation call, tuple outer) except -1

    cdef bint ended                     # the link has, while a handler waited
    cdef object broken                  # the RemoteProtocolError that did, or None
    cdef int check_going(self) except -1
    cdef int check_wanted(self, bint given_up) except -1
    cdef int let_go(self, Activation call) except -1
    cdef int open_stream(self, Activation call, object result) except -1
    cdef int attend(self, Activation call) except -1
    cdef int reply(self, Activation call) except -1
    cdef int advance(self, Activation call) except -1
    cdef int end_stream(self, Activation call, object error) except -1
    cdef int queue(self, Activation call) except -1
    cdef Activation next_stream(self)
    cdef bint goes_on(self, Activation call) except -1
    cdef int about(self, FrameHeader* header) except -1
    cdef int fed(self, FrameHeader* header, Activation call) except -1
    cdef int passed_over(self, FrameHeader* header) except -1
    cdef int returned(self, FrameHeader* header) except -1
    cdef int tell_released(self) except -1
