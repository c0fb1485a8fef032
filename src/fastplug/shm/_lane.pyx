"""The shared-memory lane: frames through two single-writer rings, and the waiting policy.

Positions are 64-bit and only grow; they are masked when a ring is indexed. A frame starts on a multiple of 64 bytes; a PAD frame
fills the end of a ring when the next one would wrap. A commit is one store of ``tail``. docs/wire.md, "Lane segment", is the layout.
"""

import collections
import os

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastplug._wire cimport FRAME_PAD, HEADER_BYTES, Decoder, Encoder, FrameHeader, Link, check_header
from fastplug.shm._placement cimport Placement
from fastplug.shm._rings cimport bad_pad, cut_off, lost_tail, ring_of
from fastplug.shm._segment cimport Segment

from fastplug.errors import DeadlineExceeded, LocalProtocolError, RemoteProtocolError
from fastplug.shm._placement import HOST_PATIENCE as _HOST_PATIENCE
from fastplug.shm._rings import RING_OFFSET as _RING_OFFSET
from fastplug.shm.eventfd import Eventfd

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()
    int fp_online_cpus()
    void fp_futex_wake(const uint64_t*)
    uint64_t fp_load_position(const uint64_t*)
    void fp_publish_tail(fp_lane*, const fp_lane*, uint64_t, int eventfd)
    void fp_ring_doorbell(fp_lane*, const fp_lane*)
    void fp_wake_doorbell(const fp_lane*)
    void fp_publish_head(fp_lane*, const fp_lane*, uint64_t)
    int fp_shares_cpu(const fp_lane*)
    int fp_spin(const uint64_t*, uint64_t, int64_t)
    void fp_sleep(uint32_t*, const uint64_t*, uint64_t, int64_t, const int32_t*)
    int fp_arm(uint32_t*, const uint64_t*, uint64_t)
    void fp_disarm(uint32_t*)
    uint32_t fp_load_flag(const uint32_t*)
    void fp_set_gone(int32_t*)
    int fp_is_gone(const int32_t*)
    void fp_stir(int32_t*)
    int fp_was_stirred(int32_t*)
    void fp_prefetch(const void*)
    void fp_prefetch_for_writing(const void*)
    void fp_point(const char*)
    enum: FP_ASLEEP, FP_DEBUG

# A payload over 1/16 of the ring goes to the arena: no frame can block the ring for long.
INLINE_FRACTION = 16
cdef enum:
    HEAD_FRACTION = 4       # of the ring: the most that is consumed and not told
    READ_AHEAD_BYTES = 1024 # lines on their way at a time: a CPU has 10 to 16 places for them

# 5 us with the GIL: while another thread computes in Python, giving the GIL away costs its 5 ms switch interval.
SPIN_HOLDING_GIL_NS = 5_000
# 50 us without: about what one wake-up of an idle CPU costs, so that spinning at most doubles it.
SPIN_NS = 50_000
# Waiters look again this often by themselves: for signals (Ctrl-C within 100 ms) and for what the peer did not wake them for.
HOST_SLICE_NS = 100_000_000
PLUGIN_SLICE_NS = 500_000_000
# Frames that are drained while waiting for space. A peer that sends more without reading breaks the rule of one call at a time.
BACKLOG_FRAMES = 4096
BACKLOG_BYTES = 64 * 1024 * 1024

# Frames that are published together at most: the gain of the next one is small, and the peer idles meanwhile (fast-transport, 2).
cdef int LAZY_FRAMES = 16
# A shorter sleep takes as long: the kernel's timers have 50 us of slack. Who has less time than that to wait comes back too early instead.
cdef int64_t SLEEP_MIN_NS = 50_000
# Whoever waits for space and cannot read what came (only its user can) looks this often whether that has changed.
cdef int64_t STUCK_SLICE_NS = 5_000_000

cdef int64_t _SPIN_HOLDING_GIL_NS = SPIN_HOLDING_GIL_NS
cdef int64_t _SPIN_NS = SPIN_NS


def set_spin(*, holding_gil_ns: int, released_ns: int) -> None:
    """Sets both spin budgets of this process (benchmarks compare policies with it)."""
    global _SPIN_HOLDING_GIL_NS, _SPIN_NS
    _SPIN_HOLDING_GIL_NS, _SPIN_NS = holding_gil_ns, released_ns


cdef class Lane(Link):
    """One lane between two processes.

    Args:
        mine: a segment of this process, from ``create_segment``.
        theirs: the peer's, attached.
        slice_ns: longest single sleep.
        first: the connection's first lane, when this is a further one.
        patience: of the connection's Placement, which its first lane makes.

    Raises:
        RemoteProtocolError: the peer's segment is no lane of this version.
    """

    def __init__(self, mine: Segment, theirs: Segment, slice_ns: int = HOST_SLICE_NS, Lane first=None, patience: int = _HOST_PATIENCE):
        if not mine.writable:
            raise LocalProtocolError("a lane writes to a segment of its own process; this one is a peer's")
        self.my_segment = mine
        self.their_segment = theirs
        self.in_bytes = ring_of(theirs)
        self.mine, self.theirs = <fp_lane*>mine.base, <const fp_lane*>theirs.base
        self.first = first
        self.mine_first = self.mine if first is None else first.mine
        self.theirs_first = self.theirs if first is None else first.theirs
        self.out_ring = mine.base + <Py_ssize_t>_RING_OFFSET
        self.in_ring = theirs.base + <Py_ssize_t>_RING_OFFSET
        self.out_bytes = self.mine.ring_bytes
        self.inline_limit = self.out_bytes // INLINE_FRACTION
        self.slice_ns = slice_ns
        self.placement = Placement(patience) if first is None else first.placement
        self.may_spin = fp_online_cpus() > 1
        self.peer_fd = -1
        self.backlog, self.holds = collections.deque(), collections.deque()

    # -- sending

    cdef int send(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1:
        cdef uint64_t need = (HEADER_BYTES + <uint64_t>header.size + 63) & ~<uint64_t>63
        cdef uint64_t index = self.tail & (self.out_bytes - 1)
        cdef uint64_t to_end = self.out_bytes - index
        cdef uint64_t pad = to_end if to_end < need else 0
        cdef unsigned char* place
        if <Py_ssize_t>header.size > self.inline_limit:
            raise LocalProtocolError(f"a payload of {header.size} bytes must be spilled: the lane takes {self.inline_limit}")
        # Their head is looked at only when the ring seems full: its line belongs to the peer, and a look costs a transfer.
        if self.tail + pad + need - self.their_head > self.out_bytes and not self._wait_space(pad + need, until_ns):
            return 0
        place = self._place(need, index, pad)
        memcpy(place, header, HEADER_BYTES)
        if header.size:                 # without a payload there may be no address
            memcpy(place + HEADER_BYTES, payload, header.size)
        if FP_DEBUG:
            fp_point("frame written, not published")
        self.tail += need
        self.unpublished += 1
        if not self.lazy:
            self._publish()
            self._fetch_to_write(need)
        elif self.unpublished >= LAZY_FRAMES:
            self._publish()
        if self.held_leases or self.unsent_holds is not None:
            self._settle_holds()
        return 1

    cdef unsigned char* _place(self, uint64_t need, uint64_t index, uint64_t pad) noexcept:
        """Where the next frame is written: in the stage, or in the ring itself."""
        cdef bint stages = self.lazy and not pad and need <= STAGE_BYTES
        if self.staged and (not stages or not index or need > STAGE_BYTES - self.staged):
            self._unstage()             # at index 0, too: what is staged lies in one piece in the ring
        if stages:
            self.staged += need
            return self.stage + self.staged - need
        return self.out_ring + (self._fill_end(pad) if pad else index)

    cdef uint64_t _fill_end(self, uint64_t pad) noexcept:
        """A PAD frame up to the end of the ring: where the next frame starts."""
        cdef FrameHeader filler
        memset(&filler, 0, HEADER_BYTES)
        filler.kind = FRAME_PAD
        filler.size = <uint32_t>(pad - HEADER_BYTES)
        memcpy(self.out_ring + (self.tail & (self.out_bytes - 1)), &filler, HEADER_BYTES)
        self.tail += pad
        return 0

    cdef void _unstage(self) noexcept:
        """What is staged goes to its place in the ring: the last bytes before the tail, never over the ring's end."""
        memcpy(self.out_ring + (self.tail - self.staged & (self.out_bytes - 1)), self.stage, self.staged)
        if self.unpublished >= LAZY_FRAMES:
            self._fetch_to_write(self.staged)
        self.staged = 0

    cdef inline void _fetch_to_write(self, uint64_t size) noexcept:
        """The lines of the next frames, which may be as large, come meanwhile: the peer had them last, and stores that wait for them take 15 %
        of a call longer. (Stores past the caches, which do not, take 3 to 10 %, since the peer then reads from memory.)"""
        cdef uint64_t at
        for at in range(self.tail, self.tail + min(size, STAGE_BYTES), 64):
            fp_prefetch_for_writing(self.out_ring + (at & (self.out_bytes - 1)))

    cdef int send_encoded(self, FrameHeader* header, Encoder enc, int64_t until_ns) except -1:
        return Lane.send(self, header, enc.data, until_ns)

    cdef void _publish(self) noexcept:
        if self.staged:
            self._unstage()
        self.unpublished = 0
        fp_publish_tail(self.mine, self.theirs, self.tail, self.peer_fd)
        fp_ring_doorbell(self.mine_first, self.theirs_first)
        if FP_DEBUG:
            fp_point("frame published")

    cdef int flush(self) except -1:
        if self.unpublished:
            self._publish()
        return 0

    cdef bint has_frame(self) except -1:
        return fp_load_position(&self.theirs.tail) != self.head or self.backlog_bytes > 0

    cdef int _wait_space(self, uint64_t need, int64_t until_ns) except -1:
        """Waits until the peer has consumed enough. Drains the inbound ring meanwhile: otherwise two full rings deadlock.

        Frames that name blocks stay in the ring, see ``_drain``: when one is in the way, a user who ``asks`` gets 0, decodes what has come, and
        sends again. 1: there is room.
        """
        cdef uint64_t seen
        cdef int64_t left
        self.flush()
        while True:
            seen = self._consumed()
            if self.tail + need - seen <= self.out_bytes:
                return 1
            self._drain()
            if self.asks and not self.decoding and self.has_frame():
                return 0
            if self.told_head != self.head and not self.decoding:
                self._tell_head()
            if fp_is_gone(&self.gone):
                raise EOFError
            left = self.slice_ns
            if until_ns:
                left = min(left, until_ns - fp_now_ns())
                if left <= 0:
                    raise DeadlineExceeded("the plugin did not take the call before the deadline: its ring is full; nothing was sent")
            if self.may_spin and not fp_shares_cpu(self.theirs):
                with nogil:
                    if fp_spin(&self.theirs.head, seen, _SPIN_NS):
                        left = 0
            if left:
                if self.asks:
                    left = min(left, STUCK_SLICE_NS)
                with nogil:
                    fp_sleep(&self.mine.waiting_space, &self.theirs.head, seen, left, &self.gone)
                PyErr_CheckSignals()

    cdef uint64_t _consumed(self) except? 0xFFFFFFFFFFFFFFFF:
        """The peer's head. It only grows, and never past what was written."""
        cdef uint64_t head = fp_load_position(&self.theirs.head)
        if head - self.their_head > self.tail - self.their_head:        # unsigned: also when it went back
            raise RemoteProtocolError(f"the peer's head went from {self.their_head} to {head}; {self.tail} bytes were written")
        self.their_head = head
        return head

    cdef int _drain(self) except -1:
        cdef FrameHeader header
        cdef Decoder dec
        while self._inbound() and len(self.backlog) < BACKLOG_FRAMES and self.backlog_bytes < BACKLOG_BYTES:
            memcpy(&header, self.in_ring + (self.head & (self.in_bytes - 1)), HEADER_BYTES)
            if header.kind != FRAME_PAD and header.blocks:
                return 0                # head must not pass it before it is decoded, which has to wait
            dec = Decoder()
            if self._take(&header, dec):
                self.backlog.append(((<unsigned char*>&header)[:HEADER_BYTES], dec))
                self.backlog_bytes += HEADER_BYTES + dec.size
        return 0

    # -- receiving

    cdef uint64_t _inbound(self) except? 0xFFFFFFFFFFFFFFFF:
        """Bytes that the peer has published and this side has not consumed."""
        cdef uint64_t published = fp_load_position(&self.theirs.tail) - self.head
        if published > self.in_bytes or published & 63:
            lost_tail(published, self.in_bytes)
        return published

    cdef int _take(self, FrameHeader* header, Decoder dec) except -1:
        """Copies the next frame out of the ring: 1, or 0 when it was only padding. There must be one."""
        cdef uint64_t published = self._inbound()
        cdef uint64_t index = self.head & (self.in_bytes - 1)
        cdef uint64_t need
        self._read_ahead(published)
        memcpy(header, self.in_ring + index, HEADER_BYTES)      # the private copy that is checked and used
        need = (HEADER_BYTES + <uint64_t>header.size + 63) & ~<uint64_t>63
        if need > published or need > self.in_bytes - index:
            cut_off(header.size, published)
        if header.kind != FRAME_PAD:
            check_header(header)
            memcpy(dec.fill(header.size), self.in_ring + index + HEADER_BYTES, header.size)
        elif not index or need != self.in_bytes - index:
            bad_pad(need, index, self.in_bytes)     # so a frame follows each padding, and nobody is kept busy with padding alone
        if FP_DEBUG:
            fp_point("frame copied, not consumed")
        self.head += need
        # A frame that names blocks holds the sender's leases until head is past it, so head waits for ours (consumed). For others it is
        # only told now and then, and before every sleep: each store costs a barrier, and takes the line from a peer that looks at it.
        if header.kind == FRAME_PAD:
            return 0
        if header.blocks:
            self.decoding = True
        elif self.head - self.told_head >= self.in_bytes // HEAD_FRACTION:
            self._tell_head()
        if self.held_leases:
            self.drop_holds()           # a reply has come: the peer has read what was sent before
        return 1

    cdef inline void _read_ahead(self, uint64_t published) noexcept:
        """The lines of this frame and, of a batch, of the next ones, which come while it is decoded. No line that the peer may still write is asked
        for. Beside fetching only the second line of a frame and the first two of the next: a single call takes 0.87 of the time, a map the same."""
        cdef uint64_t end = self.head + (published if published < READ_AHEAD_BYTES else READ_AHEAD_BYTES)
        if self.fetched < self.head:
            self.fetched = self.head
        while self.fetched < end:
            fp_prefetch(self.in_ring + (self.fetched & (self.in_bytes - 1)))
            self.fetched += 64

    cdef int consumed(self) except -1:
        if self.decoding:
            self.decoding = False
            self._tell_head()
        return 0

    cdef void _tell_head(self) noexcept:
        self.told_head = self.head
        fp_publish_head(self.mine, self.theirs, self.head)

    cdef void before_sleep(self) noexcept:
        if self.told_head != self.head and not self.decoding:
            self._tell_head()

    cdef int receive(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1:
        cdef Decoder drained
        if self.decoding:
            self.consumed()             # whoever got the last frame failed with it
        if self.backlog_bytes:
            packed, drained = self.backlog.popleft()
            self.backlog_bytes -= HEADER_BYTES + drained.size
            memcpy(header, <const unsigned char*><bytes>packed, HEADER_BYTES)
            memcpy(dec.fill(drained.size), drained.data, drained.size)
            return 1
        while True:
            if fp_load_position(&self.theirs.tail) != self.head:
                if self._take(header, dec):
                    return 1
            elif not self._wait_data(until_ns):
                return 0

    cdef bint ended(self) except -1:
        return fp_is_gone(&self.gone) and not self.has_frame()

    cdef int _wait_data(self, int64_t until_ns) except -1:
        """Waits for the peer's tail to move: 1 (look again), 0 when the time is up. EOFError when the peer is gone."""
        cdef int64_t left = _SPIN_HOLDING_GIL_NS + _SPIN_NS
        cdef int64_t holding
        cdef const uint64_t* word = &self.theirs.tail
        cdef bint spin
        self.flush()
        if until_ns:
            left = min(left, until_ns - fp_now_ns())
            if left <= 0:
                return 0
        spin = self.may_spin and (not fp_shares_cpu(self.theirs) or self.placement.leaves())
        holding = min(left, _SPIN_HOLDING_GIL_NS)
        left -= holding
        if spin and fp_spin(word, self.head, holding):
            self.placement.spun()
            return 1
        if spin and left:
            with nogil:
                spin = fp_spin(word, self.head, left)
            if spin:
                self.placement.spun()
                return 1
        self.placement.sleeps += 1
        if self.told_head != self.head:
            self._tell_head()
        while fp_load_position(word) == self.head:
            if self.holds:
                self.drop_holds()
            if fp_is_gone(&self.gone) and fp_load_position(word) == self.head:
                raise EOFError
            if fp_was_stirred(&self.gone):
                return 0
            left = self.slice_ns
            if until_ns:
                left = min(left, until_ns - fp_now_ns())
                if left < SLEEP_MIN_NS:
                    return 0
            with nogil:
                fp_sleep(&self.mine.waiting_data, word, self.head, left, &self.gone)
            PyErr_CheckSignals()
        return 1

    # -- event loops that wait

    def watch_by(self, mine: Eventfd | None, theirs: Eventfd | None) -> None:
        """The peer writes ``mine`` for the event loops of this side, and this side ``theirs``."""
        self.eventfd, self.peer_eventfd = mine, theirs
        self.peer_fd = -1 if theirs is None else theirs.fd

    def descriptor(self) -> int:
        return -1 if self.eventfd is None else os.dup(self.eventfd.fd)

    def heard(self) -> bool:
        if self.eventfd is not None and not self.eventfd.heard(self.head, more=self.has_frame()):
            self.eventfd = None
        return self.eventfd is not None

    def close(self) -> None:
        """Gives up the eventfds; the memory belongs to the connection."""
        self.watch_by(None, None)

    cdef bint arm(self) noexcept:
        if self.unpublished:
            self._publish()
        self.before_sleep()
        return fp_arm(&self.mine.waiting_data, &self.theirs.tail, self.head) or self.backlog_bytes > 0 or fp_is_gone(&self.gone)

    cdef void disarm(self) noexcept:
        fp_disarm(&self.mine.waiting_data)

    # -- leases of frames under way

    cdef int hold(self, object lease) except -1:
        if self.unsent_holds is None:
            self.unsent_holds = []
        self.unsent_holds.append(lease)
        return 0

    cdef int forget_unsent(self) except -1:
        self.unsent_holds = None
        return 0

    cdef int _settle_holds(self) except -1:
        """A frame has been published: its leases are held until the peer's head is past it."""
        self.drop_holds()
        for lease in self.unsent_holds or ():
            self.holds.append((self.tail, lease))
            self.held_leases += 1
        self.unsent_holds = None
        return 0

    cdef int drop_holds(self) except -1:
        cdef uint64_t consumed = self._consumed()
        while self.holds and <uint64_t>self.holds[0][0] <= consumed:
            self.holds.popleft()
            self.held_leases -= 1
        return 0

    # -- the end

    def peer_gone(self) -> None:
        """Any thread: no more frames will come. Waiting ends with EOFError after what is already in the ring."""
        fp_set_gone(&self.gone)
        self.wake()

    def finish(self) -> None:
        """Any thread: as ``peer_gone``. A peer that lives still gets what is sent, as far as its ring has room."""
        self.peer_gone()

    def stir(self) -> bool:
        """Any thread: whoever waits for a frame stops waiting once, as if the time were up: there is something else to look at."""
        fp_stir(&self.gone)
        return self.wake()

    def wake(self) -> bool:
        """Wakes a waiter once; True while one is (or may be) asleep. Flag and futex wait are not atomic, so it is called until False."""
        cdef bint asleep = fp_load_flag(&self.mine.waiting_data) & FP_ASLEEP or fp_load_flag(&self.mine.waiting_space) or fp_load_flag(&self.mine.waiting_doorbell)
        if asleep:
            fp_wake_doorbell(self.theirs)
            fp_futex_wake(&self.theirs.tail)
            fp_futex_wake(&self.theirs.head)
        return asleep

    # -- faces for tests and stats

    def send_frame(self, frame: bytes, until_ns: int = 0) -> None:
        """Sends a packed header and payload as they are."""
        cdef FrameHeader header
        cdef const unsigned char* raw = frame
        if len(frame) < HEADER_BYTES:
            raise ValueError("a frame has a header of 32 bytes")
        memcpy(&header, raw, HEADER_BYTES)
        self.send(&header, raw + HEADER_BYTES, until_ns)

    def receive_frame(self, until_ns: int = 0) -> object:
        """The next frame as packed header and payload, or None when the time is up."""
        cdef FrameHeader header
        cdef Decoder dec = Decoder()
        if not self.receive(&header, dec, until_ns):
            return None
        self.consumed()
        return (<unsigned char*>&header)[:HEADER_BYTES] + dec.data[:dec.size]

    @property
    def positions(self) -> tuple:
        """(tail, head): bytes written, bytes consumed."""
        return self.tail, self.head

    @property
    def held(self) -> int:
        """Leases held for frames that the peer has not consumed yet."""
        self.drop_holds()
        return len(self.holds)
