"""Callbacks: numbers for what stays in the host, and the link on which the plugin calls it when no call of its own waits.

docs/wire.md, "Callbacks". During an ordinary call they come back on the call's lane instead: ``_call.pyx`` and ``_serve.pyx``.
"""

import logging
import os
import random
import threading

from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

from fastplug._wire cimport (
    FRAME_CALLBACK, FRAME_RAISE, FRAME_RELEASE, FRAME_RETURN, Codec, Decoder, Encoder, FrameHeader, Link, MethodCodec, decode_error,
    encode_error, skip_rest,
)
from fastplug.protocols._session cimport Session

from fastplug._wire import Unfit
from fastplug._wire_words import Unbuilt
from fastplug.annotation import MISSING
from fastplug.deadlines import UNTIL_NS
from fastplug.errors import Closed, DeadlineExceeded, LocalProtocolError, RemoteProtocolError
from fastplug.interfaces import Method, Parameter, check_implementation
from fastplug.protocols.handle import make_handle
from fastplug.shm.watcher import wake_until_awake

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

# What one connection may have passed and not got back: a plugin that keeps more has a leak.
CALLBACKS_MAX = 65536
cdef Py_ssize_t _CALLBACKS_MAX = CALLBACKS_MAX
# Of one RELEASE frame: 16 KiB, what a small ring takes inline is less.
cdef Py_ssize_t RELEASED_MAX = 256
# The host sends its end before the first call that passes a callback; a plugin waits this long for its own control thread.
ATTACH_TIMEOUT_S = 10.0
# A callback that takes no longer is simply waited for: two switches between processes, and what a short one does.
cdef int64_t PATIENCE_NS = 200_000

# The server whose handlers run on this thread.
SERVING = threading.local()
cdef object NO_ANSWER = object()

_log = logging.getLogger("fastplug.callbacks")


def methods_of(codec: Codec) -> dict:
    """name -> MethodCodec of what a callback can be asked: of a plain callable one without a name."""
    node = codec.extra[0]
    if node.interface is not None:
        return {method.name: MethodCodec(node.interface.name, method, callback=True) for method in node.interface.methods}
    *takes, returns = node.args
    parameters = tuple([Parameter(f"argument{n}", one, MISSING, False) for n, one in enumerate(takes)])
    return {"": MethodCodec(codec.canonical, Method("", 0, parameters, returns, False, None, None), callback=True)}


cdef dict methods_for(Codec codec):
    # One table per declared parameter, made when the first value passes.
    if codec.extra[1] is None:
        codec.extra[1] = methods_of(codec)
    return codec.extra[1]


cdef class Registry:
    """What the host has passed on one connection. The GIL guards it."""

    def __init__(self):
        self.passed = {}
        self.next_number = random.getrandbits(48) + 1

    def __len__(self):
        return len(self.passed)

    cdef uint64_t register(self, object value, Codec codec, object owner) except 0:
        cdef dict methods = methods_for(codec)
        interface = codec.extra[0].interface
        if interface is None:
            if not callable(value):
                raise Unfit(f"{type(value).__qualname__}, which cannot be called")
            functions = {"": (methods[""], value)}
        else:
            functions = {
                method.name: (methods[method.name], getattr(value, method.name)) for method in check_implementation(value, interface)
            }
        if len(self.passed) >= _CALLBACKS_MAX:
            raise LocalProtocolError(f"the plugin keeps {_CALLBACKS_MAX} callbacks; let it drop those that it does not need any more")
        self.next_number += 1
        self.passed[self.next_number] = (functions, owner)
        return self.next_number

    cdef int forget(self, uint64_t number) except -1:
        self.passed.pop(number, None)
        return 0

    def close(self) -> None:
        """The connection has ended: nobody calls them any more."""
        self.closed = True
        self.passed.clear()

    cdef int release(self, Decoder dec) except -1:
        cdef uint64_t number
        if dec.size & 7 or not dec.size:
            raise RemoteProtocolError(f"the plugin released callbacks in a payload of {dec.size} bytes")
        while dec.pos < dec.size:
            memcpy(&number, dec.need(8), 8)
            if self.passed.pop(number, None) is None and not self.closed:
                raise RemoteProtocolError(f"the plugin released callback {number}, which was never passed or has been released")
        return 0

    cdef tuple request(self, Decoder dec):
        cdef uint64_t number
        cdef uint16_t n
        cdef MethodCodec codec
        cdef const unsigned char* text
        memcpy(&number, dec.need(8), 8)
        memcpy(&n, dec.need(2), 2)
        text = dec.need(n)
        known = self.passed.get(number)
        if self.closed:
            raise EOFError
        if known is None:
            raise RemoteProtocolError(f"the plugin called callback {number}, which was never passed or has been released")
        functions, owner = known
        name = text[:n].decode("utf-8", "replace")
        if name not in functions:
            raise RemoteProtocolError(f"the plugin called method {name[:100]!r} of a callback that has {', '.join(functions) or 'none'}")
        codec, function = functions[name]
        try:
            return codec, function, codec.decode_arguments(dec), None, owner
        except Unbuilt as error:
            skip_rest(dec)
            return codec, function, None, error.__cause__, owner


cdef int answered(Encoder enc, tuple request, list interrupt) except -1:
    """Runs what a CALLBACK asks for, and encodes the answer: its kind. ``interrupt`` gets what must not stay in the callback."""
    cdef MethodCodec codec = request[0]
    error = request[3]
    result = None
    if error is None:
        try:
            result = codec.call(request[1], request[2])
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception):
                interrupt.append(raised)
    enc.reset()
    if error is None:
        try:
            codec.encode_result(enc, result)
            return FRAME_RETURN
        except Exception as unfit:
            error = unfit
            enc.port.rollback()
    encode_error(enc, error)
    return FRAME_RAISE


cdef class Passed:
    def __dealloc__(self):
        # The collector may have cleared both, one of them first.
        if self.line is not None and self.line.released is not None:
            self.line.alive -= 1
            self.line.released.append(self.number)


cdef class Target:
    """What a handler gets for a callback: one method of what stays in the host. Callable from any thread of the plugin."""

    def __call__(self, *args, **kwargs):
        call = self.passed.call
        if call is not None:
            way = call.way_back()
            if way is not None:
                return (<Asking>way).ask(self, args, kwargs)
        return self.passed.line.ask(self, args, kwargs)

    def __repr__(self):
        return f"<fastplug callback {self.codec.qualified}>"

    def __reduce__(self):
        raise TypeError("a callback cannot be pickled: it lives in the host")

    cdef int encode(self, Encoder enc, tuple args, dict kwargs) except -1:
        cdef uint16_t n = <uint16_t>len(self.name)
        cdef const char* text = self.name
        enc.reset()
        memcpy(enc.take(8), &self.passed.number, 8)
        memcpy(enc.take(2), &n, 2)
        memcpy(enc.take(n), text, n)
        return self.codec.encode_arguments(enc, args, kwargs)


cdef object target_of(CallbackLine line, uint64_t number, Codec codec, object call):
    """What stands in the plugin for callback ``number``."""
    cdef Passed passed = Passed.__new__(Passed)
    cdef dict methods = methods_for(codec)
    passed.line = line
    passed.number = number
    passed.call = call
    line.alive += 1
    made = {}
    for name, method in methods.items():
        target = Target.__new__(Target)
        (<Target>target).passed = passed
        (<Target>target).codec = method
        (<Target>target).name = name.encode()
        made[name] = target
    interface = codec.extra[0].interface
    return made[""] if interface is None else make_handle(interface, made, "the host (a callback)")


cdef class Asking(Session):
    """The plugin's end of a link on which it can call back."""

    cdef object ask(self, Target target, tuple args, dict kwargs):
        raise LocalProtocolError(f"{type(self).__name__} does not call back")

    cdef int nested(self) except -1:
        raise LocalProtocolError(f"{type(self).__name__} does not serve")

    cdef bint in_handler(self) except -1:
        raise LocalProtocolError(f"{type(self).__name__} does not serve")

    cdef int let_out(self) except -1:
        return 0


cdef class CallbackLine(Asking):
    """The plugin's way to the host when no call waits there. One callback at a time; other threads queue."""

    def __init__(self):
        self.lock = threading.Lock()
        self.attached = threading.Event()
        self.released = []
        self.next_call = random.getrandbits(48)

    @property
    def kept(self) -> int:
        """Callbacks that the plugin has not dropped."""
        return self.alive

    def attach(self, Link link not None, port) -> None:
        """The host has sent its end."""
        if self.attached.is_set():
            raise RemoteProtocolError("the host sent a second callback link")
        Session.__init__(self, link, port)
        self.link.asks = False
        self.attached.set()

    def close(self) -> None:
        """Whoever waits for an answer is woken by the link's own end; nobody gets one any more."""
        self.attached.set()
        if self.link is not None:
            self.link.peer_gone()

    cdef int drop(self, uint64_t number) except -1:
        """It came and nobody will get it."""
        self.released.append(number)
        return 0

    cdef bytes take_released(self):
        cdef list numbers
        if not self.released:
            return None
        numbers, self.released[:RELEASED_MAX] = self.released[:RELEASED_MAX], []
        return b"".join([(<uint64_t>number).to_bytes(8, "little") for number in numbers])

    def tell_released(self) -> None:
        """Sends what was dropped, unless a callback is under way. Raises OSError, EOFError."""
        cdef bytes payload
        cdef const unsigned char* raw
        if not self.released or self.link is None or not self.lock.acquire(blocking=False):
            return
        try:
            while (payload := self.take_released()) is not None:
                raw = payload
                self.signal(FRAME_RELEASE, 0, raw, <unsigned int>len(payload), 0)
        finally:
            self.lock.release()

    cdef object ask(self, Target target, tuple args, dict kwargs):
        cdef int64_t until = UNTIL_NS.get() or 0
        cdef Asking here = getattr(SERVING, "server", None)
        if not self.attached.wait(ATTACH_TIMEOUT_S) or self.link is None:
            raise Closed("the host cannot be called back: it is gone, or has sent no callback link")
        if not self.at_home():
            raise Closed(f"this callback belongs to another process; this is process {os.getpid()}, forked from it")
        if here is not None and here.in_handler():
            here.let_out()
            return self.ask_and_serve(here, target, args, kwargs, until)
        if here is not None and not here.receiving:     # else a signal handler asks
            raise LocalProtocolError(
                f"{target!r} was called while a value was encoded or decoded (by a property, an iterator, a constructor): the plugin can serve "
                "nobody meanwhile, and the callback may need that. Call it in the handler, and make the value of what it gave"
            )
        with self.lock:
            self.request(target, args, kwargs, until)
            return self.answer(target, until)

    cdef int request(self, Target target, tuple args, dict kwargs, int64_t until) except -1:
        """Asks; the lock is the caller's."""
        cdef FrameHeader header
        target.encode(self.enc, args, kwargs)
        memset(&header, 0, sizeof(FrameHeader))
        header.kind = FRAME_CALLBACK
        self.next_call += 1
        header.call = self.next_call
        try:
            return self.transmit(&header, until)
        except EOFError as error:
            raise Closed("the host is gone; it cannot be called back") from error

    cdef object answer(self, Target target, int64_t until, bint patient=True):
        """The answer to what was asked last. ``patient``: the end of the time is an error, not NO_ANSWER."""
        cdef FrameHeader header
        try:
            while True:
                if not self.link.receive(&header, self.dec, until):
                    if not patient:
                        return NO_ANSWER
                    raise DeadlineExceeded(f"{target!r} had no answer before the deadline; a late one will be dropped")
                if header.call == self.next_call:
                    return answer_of(&header, self.dec, target.codec)
                if header.call > self.next_call:
                    raise RemoteProtocolError(f"the host answered callback {header.call}, which was never asked")
        except EOFError as error:
            raise Closed("the host is gone; it cannot be called back") from error

    cdef object ask_and_serve(self, Asking here, Target target, tuple args, dict kwargs, int64_t until):
        """On a thread that serves. The callback may itself call the plugin, where nobody else may be there to answer: so another thread waits
        for one that takes longer, and this one runs what comes on top."""
        cdef bint asked = self.lock.acquire(blocking=False)
        value = NO_ANSWER
        if asked:
            try:
                self.request(target, args, kwargs, until)
                value = self.answer(target, fp_now_ns() + PATIENCE_NS, patient=False)
            except BaseException:
                self.lock.release()
                raise
        if value is not NO_ANSWER:
            self.lock.release()
            return value
        outcome = []

        def wait() -> None:
            try:
                if not asked:
                    self.lock.acquire()
                try:
                    if not asked:
                        self.request(target, args, kwargs, until)
                    outcome.append((self.answer(target, until), None))
                finally:
                    self.lock.release()
            except BaseException as error:
                outcome.append((None, error))
            here.link.stir()
            wake_until_awake(here.link)

        here.link.await_stirs()
        threading.Thread(target=wait, name="fastplug callback", daemon=True).start()
        while not outcome:
            here.nested()
        value, error = outcome.pop()
        if error is not None:
            raise error
        return value


cdef object answer_of(FrameHeader* header, Decoder dec, MethodCodec codec):
    if header.kind == FRAME_RETURN:
        return codec.decode_result(dec)
    if header.kind == FRAME_RAISE:
        raise decode_error(dec, codec.qualified, "host")
    raise RemoteProtocolError(f"a callback was answered by a frame of kind {header.kind}")


cdef class CallbackServer(Session):
    """The host's end of the callback link: runs one callback after another on the thread that calls run()."""

    cdef Registry registry

    def __init__(self, Link link not None, port, Registry registry not None):
        Session.__init__(self, link, port)
        self.link.asks = False
        self.registry = registry

    def run(self) -> None:
        """Until the link ends. Raises RemoteProtocolError."""
        cdef FrameHeader header
        cdef tuple request
        self.registry.thread = PyThread_get_thread_ident()
        try:
            while self.link.receive(&header, self.dec, 0):
                if header.kind == FRAME_RELEASE:
                    self.registry.release(self.dec)
                    continue
                if header.kind != FRAME_CALLBACK:
                    raise RemoteProtocolError(f"a frame of kind {header.kind} came where only callbacks may come")
                request = self.registry.request(self.dec)
                interrupt = []
                header.kind = <uint16_t>answered(self.enc, request, interrupt)
                request = None
                header.flags = 0
                self.transmit(&header, 0)
        except EOFError:
            return


def serve_callbacks(Link link not None, port, Registry registry not None) -> None:
    """The body of the thread ``fastplug callbacks <plugin>``."""
    try:
        CallbackServer(link, port, registry).run()
    except RemoteProtocolError:
        _log.exception("the plugin broke the protocol; it cannot call back any more")
        link.peer_gone()
