"""Frames over a connected stream socket: what is used where shared memory is missing or not wanted.

The socket blocks, with the kernel's own time-outs as slices: one system call a message in each direction is all that a call costs then. Only
a deadline that is nearer than a slice, and a send while replies are owed, are polled for.
"""

import collections
import os
import socket

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memmove, memset

from fastplug._wire cimport HEADER_BYTES, Decoder, Encoder, FrameHeader, Link, check_header
from fastplug._wire_buffer cimport PIECES_MAX, Piece

from fastplug.errors import DeadlineExceeded

__all__ = ["SLICE_NS", "SocketLink"]

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    int c_shutdown "shutdown"(int fd, int how)
    int setsockopt(int fd, int level, int name, const void* value, unsigned int size)
    enum: MSG_NOSIGNAL, MSG_DONTWAIT, SHUT_RD, SHUT_RDWR, SOL_SOCKET, SO_RCVTIMEO, SO_SNDTIMEO

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <sys/eventfd.h>
    #include <sys/socket.h>
    /* They give -errno: in a traced build Python runs between two lines, a signal handler, too, and changes it. */
    static ssize_t fp_sendmsg(int fd, const struct msghdr *message, int flags) {
        ssize_t sent = sendmsg(fd, message, flags);
        return sent < 0 ? -errno : sent;
    }
    static ssize_t fp_recv(int fd, void *buffer, size_t n, int flags) {
        ssize_t got = recv(fd, buffer, n, flags);
        return got < 0 ? -errno : got;
    }
    static int fp_eventfd(void) {
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        return fd < 0 ? -errno : fd;
    }
    """
    ssize_t fp_sendmsg(int fd, const msghdr* message, int flags)
    ssize_t fp_recv(int fd, void* buffer, size_t n, int flags)
    int fp_eventfd()

# Both are called with the GIL, unlike those of `os`: another thread may close the link at any other moment.
cdef extern from "<sys/eventfd.h>" nogil:
    int c_eventfd_write "eventfd_write"(int fd, unsigned long long value)

cdef extern from "<sys/time.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll"(pollfd* fds, unsigned long count, int timeout_ms)
    int ppoll(pollfd* fds, unsigned long count, const timespec* timeout, const void* signals)
    enum: POLLIN, POLLOUT

# Longest single sleep. A signal ends one early on the main thread, where Python handles it, so this is for signals that came just before.
SLICE_NS = 500_000_000
cdef int64_t _SLICE_NS = SLICE_NS
# Larger buffers mean fewer switches between the two processes on large arrays, and more of it has left the cache when it is read. The kernel
# caps them at its own limit.
BUFFER_BYTES = 1 << 20
# Frames that are sent together at most, as in a lane.
cdef int LAZY_FRAMES = 16
# Late replies, read while waiting to send: as many as calls were given up since the last one that was answered.
cdef Py_ssize_t BACKLOG_FRAMES = 4096
cdef Py_ssize_t BACKLOG_BYTES = 256 << 20
# Header, and the payload before, between and behind the pieces.
cdef enum: PARTS_MAX = 2 + 2 * PIECES_MAX


cdef int part(iovec* to, const void* data, Py_ssize_t n) noexcept:
    to.iov_base = <void*>data
    to.iov_len = n
    return 1 if n else 0            # an empty one is overwritten by the next


cdef bytes joined(const iovec* parts, int count):
    cdef Py_ssize_t n = 0
    cdef int i
    for i in range(count):
        n += parts[i].iov_len
    cdef bytes made = PyBytes_FromStringAndSize(NULL, n)
    cdef char* at = PyBytes_AS_STRING(made)
    for i in range(count):
        if parts[i].iov_len:            # without a payload there may be no address
            memcpy(at, parts[i].iov_base, parts[i].iov_len)
        at += parts[i].iov_len
    return made


cdef object ended(int code):
    return EOFError("the socket is closed") if not code else EOFError(f"the socket is closed: {os.strerror(code)}")


cdef class SocketLink(Link):
    """A Link over a connected stream socket, which it owns. One user at a time; ``peer_gone``, ``finish`` and ``wake`` from any thread.

    Sending raises DeadlineExceeded and EOFError, receiving RemoteProtocolError and EOFError. Neither loses its place in the stream by an
    exception: a frame that is half sent or half received is finished by the next call.
    """

    def __init__(self, sock):
        cdef timeval slice
        self.sock = sock
        self.fd = sock.fileno()
        self.bell = -1
        self.gathers = True
        self.backlog = collections.deque()
        sock.setblocking(True)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        slice.tv_sec = <long>(_SLICE_NS // 1_000_000_000)
        slice.tv_usec = <long>(_SLICE_NS % 1_000_000_000 // 1000)
        setsockopt(self.fd, SOL_SOCKET, SO_RCVTIMEO, &slice, sizeof(timeval))
        setsockopt(self.fd, SOL_SOCKET, SO_SNDTIMEO, &slice, sizeof(timeval))

    # -- sending

    cdef int send(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1:
        cdef iovec parts[2]
        if (self.lazy or self.batched) and self.batched + HEADER_BYTES + <Py_ssize_t>header.size <= BATCH_BYTES:
            return self._put_in_batch(header, payload, until_ns)
        part(&parts[0], header, HEADER_BYTES)
        return self._send_parts(parts, 1 + part(&parts[1], payload, header.size), until_ns)

    cdef int send_encoded(self, FrameHeader* header, Encoder enc, int64_t until_ns) except -1:
        cdef iovec parts[PARTS_MAX]
        cdef Piece* piece
        cdef Py_ssize_t done = 0
        cdef int i, count
        if not enc.piece_count:
            return self.send(header, enc.data, until_ns)
        count = part(&parts[0], header, HEADER_BYTES)
        for i in range(enc.piece_count):
            piece = &enc.pieces[i]
            count += part(&parts[count], enc.data + done, piece.before - done)
            count += part(&parts[count], piece.data, piece.bytes)
            done = piece.before
        count += part(&parts[count], enc.data + done, enc.size - done)
        try:
            return self._send_parts(parts, count, until_ns)
        finally:
            enc.let_go()

    cdef int _send_parts(self, iovec* parts, int count, int64_t until_ns) except -1:
        cdef size_t sent
        cdef bint begun = False
        if self.rest is not None or self.batched:
            self._send_rest(until_ns, False)
        try:
            while count:
                sent = self._send_some(parts, count, until_ns, begun)
                begun = True
                while count and sent >= parts.iov_len:
                    sent -= parts.iov_len
                    parts += 1
                    count -= 1
                if count:
                    parts.iov_base = <unsigned char*>parts.iov_base + sent
                    parts.iov_len -= sent
        except EOFError:
            raise
        except BaseException:           # Ctrl-C, too
            if begun:
                self.rest = joined(parts, count)
                self.sent += 1          # the peer will answer it
            raise
        self.sent += 1
        return 1

    cdef int _put_in_batch(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1:
        """One more small frame: it goes out with the others when there are enough, or when one comes that does not wait."""
        memcpy(self.batch + self.batched, header, HEADER_BYTES)
        if header.size:
            memcpy(self.batch + self.batched + HEADER_BYTES, payload, header.size)
        self.batched += HEADER_BYTES + header.size
        self.batch_frames += 1
        self.sent += 1
        if not self.lazy or self.batch_frames >= LAZY_FRAMES:
            self._send_rest(until_ns, True)
        return 1

    cdef int flush(self) except -1:
        if self.batched:
            self._send_rest(0, True)
        return 0

    cdef int _send_rest(self, int64_t until_ns, bint begun) except -1:
        """What goes before anything else: the rest of a frame that was given up half-way, and the batch."""
        cdef iovec rest
        if self.batched:
            self.rest = (self.rest or b"") + PyBytes_FromStringAndSize(<char*>self.batch, self.batched)
            self.batched = self.batch_frames = 0
        while self.rest is not None:
            part(&rest, PyBytes_AS_STRING(self.rest), PyBytes_GET_SIZE(self.rest))
            sent = self._send_some(&rest, 1, until_ns, begun)
            self.rest = self.rest[sent:] or None
        return 0

    cdef Py_ssize_t _send_some(self, const iovec* parts, int count, int64_t until_ns, bint begun) except -1:
        """Sends once, as much as goes: without waiting in the kernel when there is a deadline, or a reply to read meanwhile."""
        cdef ssize_t sent
        cdef int fd
        cdef bint careful = until_ns != 0 or self.duplex or self.sent > self.received
        cdef int flags = MSG_NOSIGNAL | MSG_DONTWAIT if careful else MSG_NOSIGNAL
        cdef msghdr message
        memset(&message, 0, sizeof(msghdr))
        message.msg_iov = <iovec*>parts
        message.msg_iovlen = count
        while True:
            fd = self.fd
            with nogil:
                sent = fp_sendmsg(fd, &message, flags)
            if sent >= 0:
                return sent
            if sent != -EAGAIN and sent != -EINTR:
                raise ended(<int>-sent)
            PyErr_CheckSignals()
            if careful and sent == -EAGAIN:
                self._wait_writable(until_ns, begun)

    cdef int _wait_writable(self, int64_t until_ns, bint begun) except -1:
        """Waits a slice at most. Two sides that only send would wait for each other for ever, so late replies are read meanwhile."""
        cdef int64_t left = _SLICE_NS if not until_ns else min(_SLICE_NS, until_ns - fp_now_ns())
        cdef bint reads = (self.duplex or self.sent > self.received) and len(self.backlog) < BACKLOG_FRAMES and self.backlog_bytes < BACKLOG_BYTES
        if left <= 0:
            if begun:
                raise DeadlineExceeded("the plugin did not take the whole call before the deadline; its late answer will be dropped")
            raise DeadlineExceeded("the plugin did not take the call before the deadline: its socket is full; nothing was sent")
        if self._poll(POLLOUT | POLLIN if reads else POLLOUT, left) & POLLIN:
            self._drain()
        return 0

    cdef int _drain(self) except -1:
        cdef FrameHeader header
        cdef Decoder dec = Decoder()
        if self._take(&header, dec, 1):         # a time in the past: what is there
            self.backlog.append(((<unsigned char*>&header)[:HEADER_BYTES], dec))
            self.backlog_bytes += dec.size
        return 0

    # -- receiving

    cdef int receive(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1:
        cdef Decoder drained
        cdef const unsigned char* raw
        if self.batched and not self.backlog and not self._whole():
            try:
                self._send_rest(until_ns, True)     # nobody waits while somebody else waits for what lies here
            except DeadlineExceeded:
                pass                                # it goes with the next frame; what has come is still taken
        if not self.backlog:
            return self._take(header, dec, until_ns)
        packed, drained = self.backlog.popleft()
        self.backlog_bytes -= drained.size
        raw = packed
        memcpy(header, raw, HEADER_BYTES)
        dec.adopt(drained.memory, drained.data, drained.size)
        return 1

    cdef int _take(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1:
        """The next frame: 1, or 0 when the time is up. What has come of it is kept."""
        cdef Py_ssize_t more
        if self.memory is None:
            if not self._begin(dec, until_ns):
                return 0
        elif dec.memory is not self.memory:
            dec.adopt(self.memory, self.payload, self.header.size)
        while self.got < self.header.size:
            more = self._receive_some(self.payload + self.got, self.header.size - self.got, until_ns)
            if not more:
                return 0
            self.got += more
        self.memory = None
        header[0] = self.header
        self.received += 1
        return 1

    cdef int _begin(self, Decoder dec, int64_t until_ns) except -1:
        """Takes the header, and what was read ahead of the payload."""
        cdef Py_ssize_t more
        while self.end - self.start < HEADER_BYTES:
            if self.start:
                memmove(self.ahead, self.ahead + self.start, self.end - self.start)
                self.end -= self.start
                self.start = 0
            more = self._receive_some(self.ahead + self.end, AHEAD_BYTES - self.end, until_ns)
            if not more:
                return 0
            self.end += more
        memcpy(&self.header, self.ahead + self.start, HEADER_BYTES)
        check_header(&self.header)
        self.payload = dec.fill(self.header.size)
        self.start += HEADER_BYTES
        self.got = min(<Py_ssize_t>self.header.size, self.end - self.start)
        memcpy(self.payload, self.ahead + self.start, self.got)
        self.start += self.got
        # From now on the decoder cannot use its memory for anything else, whatever happens to this receive.
        self.memory = dec.memory
        return 1

    cdef Py_ssize_t _receive_some(self, void* target, size_t n, int64_t until_ns) except -1:
        """Receives once: how many bytes came, 0 when the time is up."""
        cdef ssize_t got
        cdef int fd, flags = 0
        cdef int64_t left = _SLICE_NS
        while True:
            fd = self.fd
            if until_ns:
                left = until_ns - fp_now_ns()
                if left < _SLICE_NS:
                    flags |= MSG_DONTWAIT
            if self.bell >= 0:
                flags |= MSG_DONTWAIT
            with nogil:
                got = fp_recv(fd, target, n, flags)
            if got > 0:
                return got
            if not got:
                raise EOFError("the peer closed the socket")
            if got != -EAGAIN and got != -EINTR:
                raise ended(<int>-got)
            PyErr_CheckSignals()
            if got == -EAGAIN and flags & MSG_DONTWAIT:
                if left <= 0 or self._was_stirred(left):
                    return 0

    cdef bint _was_stirred(self, int64_t wait_ns) except -1:
        """Waits until something can be received, or somebody stirs: whether it was that."""
        cdef pollfd both[2]
        cdef timespec wait = [0, min(wait_ns, _SLICE_NS)]       # not in ms: an awaited call is waited for some us, with its loop standing
        both[0].fd, both[0].events = self.fd, POLLIN
        both[1].fd, both[1].events, both[1].revents = self.bell, POLLIN, 0      # poll passes over a negative one
        with nogil:
            ppoll(both, 2, &wait, NULL)
        if not both[1].revents:
            return False
        os.eventfd_read(self.bell)
        return True

    cdef bint has_frame(self) except -1:
        return bool(self.backlog) or self.end > self.start or self._ready()

    cdef bint _whole(self) noexcept:
        """A frame has come, with all of its payload."""
        cdef FrameHeader header
        if self.memory is not None or self.end - self.start < HEADER_BYTES:
            return False
        memcpy(&header, self.ahead + self.start, HEADER_BYTES)
        return <Py_ssize_t>header.size <= self.end - self.start - HEADER_BYTES

    cdef bint _ready(self) noexcept:
        cdef pollfd one = [self.fd, POLLIN, 0]
        return c_poll(&one, 1, 0) > 0

    cdef int _poll(self, short events, int64_t wait_ns) except -1:
        """What is ready of ``events``; 0 after the time or a signal. A hang-up counts as all of them."""
        cdef pollfd one = [self.fd, events, 0]
        cdef int wait_ms = <int>(wait_ns // 1_000_000 + 1)
        with nogil:
            c_poll(&one, 1, wait_ms)
        return events if one.revents & ~events else one.revents

    # -- event loops that wait

    def descriptor(self) -> int:
        return os.dup(self.fd) if self.fd >= 0 else -1

    cdef bint arm(self) noexcept:
        return bool(self.backlog) or self._whole()      # of what lies in the kernel the loop hears

    # -- the end

    def peer_gone(self) -> None:
        """Any thread: whoever waits ends with EOFError."""
        if self.fd >= 0:
            c_shutdown(self.fd, SHUT_RDWR)      # fails when it is not connected any more: whoever waits is awake then

    def finish(self) -> None:
        """Any thread: what has come is received, then EOFError; sending goes on."""
        if self.fd >= 0:
            c_shutdown(self.fd, SHUT_RD)

    def wake(self) -> bool:
        """A shutdown wakes for good."""
        return False

    def await_stirs(self) -> None:
        """Whoever receives: before it does, if somebody will stir it. Idempotent. Raises OSError."""
        cdef int found
        if self.bell >= 0 or self.fd < 0:
            return
        found = fp_eventfd()
        if found < 0:
            raise OSError(-found, os.strerror(-found))
        self.bell = found

    def stir(self) -> bool:
        """Any thread: whoever waits for a frame stops waiting once, as if the time were up: there is something else to look at."""
        if self.fd >= 0:
            self.await_stirs()          # whoever waits without it hears of it with its next slice
            c_eventfd_write(self.bell, 1)
        return False

    def close(self) -> None:
        """Closes the socket; nobody may be waiting. It is not shut down: a forked copy of it may be somebody else's."""
        self.fd = -1
        self.sock.close()
        bell, self.bell = self.bell, -1
        if bell >= 0:
            os.close(bell)

    # -- faces for tests

    def send_frame(self, frame: bytes, until_ns: int = 0) -> None:
        """Sends a packed header and payload as they are."""
        cdef iovec one
        part(&one, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
        self._send_parts(&one, 1, until_ns)

    def receive_frame(self, until_ns: int = 0) -> object:
        """The next frame as packed header and payload, or None when the time is up."""
        cdef FrameHeader header
        cdef Decoder dec = Decoder()
        if not self.receive(&header, dec, until_ns):
            return None
        return (<unsigned char*>&header)[:HEADER_BYTES] + dec.data[:dec.size]
