"""How a plugin answers: each call by itself, the answers of quick handlers published together, or several results in one frame."""

from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

from fastplug._wire cimport FRAME_ERROR, FRAME_REPLIES, FRAME_REPLY, Decoder, Encoder, FrameHeader, MethodCodec
from fastplug.protocols._activity cimport Activation, Activity
from fastplug.protocols._served cimport Served

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

# A handler is quick when it takes less than this.
cdef int64_t QUICK_NS = 10_000


cdef class Answering(Activity):
    def __init__(self, link, port, line, interfaces):
        Activity.__init__(self, link, port, line)
        self.interfaces = tuple([tuple([Served(codec, handler) for codec, handler in methods]) for methods in interfaces])
        self.results, self.spare = Encoder(port), Decoder(port)

    # -- published together

    cdef bint open_batch(self, Served served, bint more) except -1:
        """Before a handler: whether its answer may wait for the next one's. Not in the middle of another handler, which may take long.

        more: others came in the same frame.
        """
        self.more = self.link.has_frame()
        if served.quick >= QUICK_RUNS:
            return self.more and not self.depth
        self.link.flush()               # this one may: what was answered before does not wait for it
        self.run_began = fp_now_ns() if self.more or more else 0
        return False

    cdef int judge(self, Served served) except -1:
        """After a handler that is not known to be quick. The clock is not looked at for who calls one at a time."""
        if self.run_began:
            served.quick = served.quick + 1 if fp_now_ns() - self.run_began < QUICK_NS else 0
        return 0

    cdef int doubt(self) except -1:
        """One that was quick may have turned slow: nothing waits any longer, and each shows again that it is."""
        for methods in self.interfaces:
            for served in <tuple>methods:
                (<Served>served).quick = min((<Served>served).quick, QUICK_RUNS - DOUBTED_RUNS)
        return self.let_out()

    cdef int let_out(self) except -1:
        """Of the lane whose handler runs: this one, or another one of those that this thread serves."""
        cdef Answering at = self if self.group is None else self.group.at or self
        at.send_results()
        return at.link.flush()

    # -- each by itself

    cdef int finish(self, Activation call, int kind) except -1:
        """Sends the last frame of a call; its payload is in enc."""
        cdef FrameHeader header
        self.let_go(call)
        memset(&header, 0, sizeof(FrameHeader))
        header.call, header.interface, header.method = call.number, call.interface, call.method
        return self.answer(&header, kind)

    cdef int answer(self, FrameHeader* header, int kind) except -1:
        cdef FrameHeader reply
        if self.line.released:
            self.tell_released()
        memset(&reply, 0, sizeof(FrameHeader))
        if self.link.inline_limit and self.enc.size > self.link.inline_limit:
            try:
                self.spill(&reply)
            except Exception as error:
                self.pack_error(error)
                kind = FRAME_ERROR
        reply.kind = <uint16_t>kind
        reply.call = header.call
        reply.interface = header.interface
        reply.method = header.method
        self.sending = True
        try:
            return self.transmit(&reply, 0)
        finally:
            self.sending = False

    def attend_to(self, call: Activation) -> bool:
        """Any thread: something has happened to an asynchronous handler. True: the thread that serves may be asleep all the same."""
        cdef Answering first = self if self.group is None else self.group.first
        self.streams.append(call)
        return first.link.stir()

    cdef int reply(self, Activation call) except -1:
        """An asynchronous handler has come back."""
        try:
            result = call.task.outcome()
            self.enc.reset()
            call.codec.encode_result(self.enc, result)
            result = None
        except BaseException as error:
            self.pack_error(error)
            return self.finish(call, FRAME_ERROR)
        return self.finish(call, FRAME_REPLY)

    # -- several in one frame

    cdef bint adds(self, FrameHeader* header, MethodCodec codec, object result) except -1:
        """The result of the next call of those that came together waits for the others; or it is large: then it is in enc, to be sent behind them."""
        cdef Encoder enc = self.results
        if not self.packed:
            enc.reset()
            enc.take(sizeof(uint16_t))
            self.first, self.packed_end = header.call, enc.size
        codec.result.encode(enc, result)        # it has no arrays to offer
        if enc.size <= self.packed_bytes:
            self.packed += 1
            self.packed_end = enc.size
            return True
        self.enc.reset()
        codec.put_result(self.enc, result)
        return False

    cdef int send_results(self) except -1:
        cdef FrameHeader header
        cdef uint16_t count = <uint16_t>self.packed
        cdef uint64_t sent
        if not count:
            return 0
        if self.line.released:
            self.tell_released()
        self.packed = 0
        memset(&header, 0, sizeof(FrameHeader))
        header.kind, header.call = FRAME_REPLIES, self.first
        self.results.size = self.packed_end         # what did not fit, or could not be encoded, is behind
        memcpy(self.results.data, &count, sizeof(count))
        sent = self.link.sent
        self.sending = True
        self.enc, self.results = self.results, self.enc
        try:
            return self.transmit(&header, 0)
        except BaseException:           # what a signal handler raises, while there was no room
            if self.link.sent == sent:
                self.packed = count
            raise
        finally:
            self.enc, self.results = self.results, self.enc
            self.sending = False
