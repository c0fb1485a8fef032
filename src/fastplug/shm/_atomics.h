/* The only place with atomics, futexes and spinning. Cython never reads or writes a shared field itself.
 *
 * Theory. A lane is two segments, each written by one process and mapped read-only by the other. A writer publishes by one
 * store of `tail`. Two waits exist, and both follow Dekker's pattern, which needs sequential consistency on both sides:
 *
 *     publisher:  store word (seq_cst);  load peer's flag (seq_cst);  if set: futex wake on word
 *     waiter:     store own flag (seq_cst);  load peer's word (seq_cst);  if unchanged: futex wait on word
 *
 * One thread cannot sleep on several words, so whoever reads several lanes sleeps on one `doorbell`, in the peer's first lane segment. It is
 * rung after a store of any of the peer's tails, but only while the sleeper's `waiting_doorbell` is up: same pattern, the flag is just common to
 * all lanes. Several of the peer's threads may ring at once, so ringing is an addition.
 *
 * An event loop cannot sleep on a futex: it watches an eventfd, and arms the lane while nobody reads it. That is another bit of `waiting_data`,
 * since the publisher has that word anyway. Threads of the waiter's side set and clear the two bits at the same time, so these are additions too.
 *
 * With release/acquire alone both loads may see the old values, and the wake-up is lost. The futex word is the low half of
 * a 64-bit position (little-endian): a wait is lost only if exactly 2^32 bytes are published between check and wait.
 *
 * Sync points, named where they pair:
 *   DATA   fp_publish_tail (release of the frame's bytes)  ->  fp_load_position on tail (acquire)
 *   SPACE  fp_publish_head (the frame has been copied)     ->  fp_load_position on head (acquire), then overwriting
 *   BELL   fp_publish_tail (the tail, then the bell)       ->  fp_sleep_any (the bell, then all tails, seq_cst)
 *   LEASE  fp_give_back (the last read of the block)       ->  fp_load_returned (acquire), then reusing the block
 */
#ifndef FASTPLUG_ATOMICS_H
#define FASTPLUG_ATOMICS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

/* A test plants a relaxed store here, which ThreadSanitizer must report. */
#ifndef FP_PUBLISH_ORDER
#define FP_PUBLISH_ORDER __ATOMIC_SEQ_CST
#endif

/* docs/wire.md, "Lane segment". Each field that another CPU polls has a 128-byte line of its own: adjacent-line prefetch pairs 64-byte lines. */
typedef struct {
    char magic[8];
    uint32_t version;
    uint32_t ring_bytes;
    char pad0[112];
    uint64_t tail;            /* written bytes of the ring, ever */
    uint32_t cpu;             /* where the writer last published */
    char pad1[116];
    uint64_t head;            /* bytes of the *other* ring that this side has copied out */
    char pad2[120];
    uint32_t waiting_data;
    char pad3[124];
    uint32_t waiting_space;
    char pad4[124];
    uint32_t doorbell;        /* of the first lane: rung after a store of any lane's tail, for a peer that sleeps on all of them */
    char pad5[124];
    uint32_t waiting_doorbell; /* of the first lane: this side sleeps on the peer's doorbell */
    char pad6[124];
} fp_lane;

/* The bits of waiting_data. */
#define FP_ASLEEP 1u /* a thread sleeps on the peer's tail */
#define FP_ARMED 2u  /* an event loop sleeps on the eventfd that the peer writes */

static inline int64_t fp_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The same clock as of the last tick, 1 to 10 ms ago. It costs 5 ns, and the other one 30 to 300: that one waits for all loads under way. */
static inline int64_t fp_tick_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline uint32_t fp_cpu(void) { return (uint32_t)sched_getcpu(); }

/* Of the machine, not of our mask: two processes that are pinned to one CPU each do run at the same time. */
static inline int fp_online_cpus(void) { return (int)sysconf(_SC_NPROCESSORS_ONLN); }

static inline void fp_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Fetch a line that is about to be read; and one that is about to be written, so that the store that publishes need not wait for it. */
static inline void fp_prefetch(const void *address) { __builtin_prefetch(address, 0, 3); }

static inline void fp_prefetch_for_writing(const void *address) {
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)address)); /* a no-op where the CPU lacks it */
#else
    __builtin_prefetch(address, 1, 3);
#endif
}

/* Waits at most timeout_ns while the low half of *word is `seen`. Any return means: look again. */
static inline int fp_futex_wait(const uint64_t *word, uint64_t seen, int64_t timeout_ns) {
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    return syscall(SYS_futex, (const uint32_t *)word, FUTEX_WAIT, (uint32_t)seen, &t, NULL, 0) ? errno : 0;
}

static inline void fp_futex_wake(const uint64_t *word) {
    syscall(SYS_futex, (const uint32_t *)word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* SYNC POINT DATA and SPACE, reading side. */
static inline uint64_t fp_load_position(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

/* What the peer said in `waiting_data`; other bits mean nothing. A full eventfd is one that is not read: it has been written. */
static inline void fp_wake_reader(const uint64_t *tail, uint32_t waiting, int eventfd) {
    const uint64_t one = 1;
    if (waiting & FP_ASLEEP)
        fp_futex_wake(tail);
    if (waiting & FP_ARMED && eventfd >= 0 && write(eventfd, &one, sizeof one) < 0)
        return;
}

/* SYNC POINT DATA, writing side: everything written to the ring before is visible to whoever sees `tail`. */
static inline void fp_publish_tail(fp_lane *mine, const fp_lane *theirs, uint64_t tail, int eventfd) {
    __atomic_store_n(&mine->cpu, fp_cpu(), __ATOMIC_RELAXED);
    __atomic_store_n(&mine->tail, tail, FP_PUBLISH_ORDER);
    uint32_t waiting = __atomic_load_n(&theirs->waiting_data, __ATOMIC_SEQ_CST);
    if (waiting)
        fp_wake_reader(&mine->tail, waiting, eventfd);
}

/* SYNC POINT BELL, ringing side: after fp_publish_tail, on the first lane's two segments. */
static inline void fp_ring_doorbell(fp_lane *mine_first, const fp_lane *theirs_first) {
    if (__atomic_load_n(&theirs_first->waiting_doorbell, __ATOMIC_SEQ_CST)) {
        __atomic_fetch_add(&mine_first->doorbell, 1, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &mine_first->doorbell, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    }
}

static inline void fp_wake_doorbell(const fp_lane *theirs_first) {
    syscall(SYS_futex, &theirs_first->doorbell, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* SYNC POINT SPACE, writing side: everything read from the ring before was read before the writer may overwrite it. */
static inline void fp_publish_head(fp_lane *mine, const fp_lane *theirs, uint64_t head) {
    __atomic_store_n(&mine->head, head, FP_PUBLISH_ORDER);
    if (__atomic_load_n(&theirs->waiting_space, __ATOMIC_SEQ_CST))
        fp_futex_wake(&mine->head);
}

/* Does the peer run (as far as it last said) on the CPU that we are on? Then spinning only keeps it from running. */
static inline int fp_shares_cpu(const fp_lane *theirs) { return __atomic_load_n(&theirs->cpu, __ATOMIC_RELAXED) == fp_cpu(); }

/* Moves this thread to another of the CPUs that it may use, at once: 0 when there is none, or it may not say so. */
static inline int fp_leave_cpu(void) {
    cpu_set_t allowed, others;
    if (sched_getaffinity(0, sizeof allowed, &allowed))
        return 0;
    others = allowed;
    CPU_CLR(fp_cpu(), &others);
    if (!CPU_COUNT(&others) || sched_setaffinity(0, sizeof others, &others))
        return 0;
    sched_setaffinity(0, sizeof allowed, &allowed);
    return 1;
}

/* Spins until *word differs from `seen`, at most budget_ns: 1 when it does. Reads the clock once per 32 looks (about 1 us). */
static inline int fp_spin(const uint64_t *word, uint64_t seen, int64_t budget_ns) {
    int64_t start = 0;
    for (;;) {
        for (int i = 0; i < 32; i++) {
            if (fp_load_position(word) != seen)
                return 1;
            fp_pause();
        }
        int64_t now = fp_now_ns();
        if (!start)
            start = now;
        else if (now - start > budget_ns)
            return 0;
    }
}

/* One sleep of the waiter's half of Dekker's pattern. `flag` is in our own segment, `word` in the peer's. `gone` is host-private. */
static inline void fp_sleep(uint32_t *flag, const uint64_t *word, uint64_t seen, int64_t timeout_ns, const int32_t *gone) {
    __atomic_fetch_or(flag, FP_ASLEEP, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(word, __ATOMIC_SEQ_CST) == seen && !__atomic_load_n(gone, __ATOMIC_SEQ_CST))
        fp_futex_wait(word, seen, timeout_ns);
    __atomic_fetch_and(flag, ~FP_ASLEEP, __ATOMIC_RELAXED);
}

/* The same for who sleeps on the eventfd: true when there is nothing to sleep for, since *word differs from `seen` already. */
static inline int fp_arm(uint32_t *flag, const uint64_t *word, uint64_t seen) {
    __atomic_fetch_or(flag, FP_ARMED, __ATOMIC_SEQ_CST);
    return __atomic_load_n(word, __ATOMIC_SEQ_CST) != seen;
}
static inline void fp_disarm(uint32_t *flag) { __atomic_fetch_and(flag, ~FP_ARMED, __ATOMIC_RELAXED); }

/* Several lanes at once: `words` are the tails of the peer's lanes, `seen` what was taken out of each. */
static inline int fp_any_moved(const uint64_t *const *words, const uint64_t *seen, int count, int order) {
    for (int i = 0; i < count; i++)
        if ((order == __ATOMIC_SEQ_CST ? __atomic_load_n(words[i], __ATOMIC_SEQ_CST) : fp_load_position(words[i])) != seen[i])
            return 1;
    return 0;
}

/* As fp_spin. Looks at the `hot` one each time, where the next frame is most likely, and at the others in turns: which one moved, -1 none. */
static inline int fp_spin_any(const uint64_t *const *words, const uint64_t *seen, int count, int hot, int64_t budget_ns) {
    int64_t start = 0;
    int other = 0;
    for (;;) {
        for (int i = 0; i < 32; i++) {
            if (fp_load_position(words[hot]) != seen[hot])
                return hot;
            if (fp_load_position(words[other]) != seen[other])
                return other;
            if (++other == count)
                other = 0;
            fp_pause();
        }
        int64_t now = fp_now_ns();
        if (!start)
            start = now;
        else if (now - start > budget_ns)
            return -1;
    }
}

/* SYNC POINT BELL, sleeping side. Any return means: look again. */
static inline void fp_sleep_any(fp_lane *mine_first, const fp_lane *theirs_first, const uint64_t *const *words, const uint64_t *seen, int count,
                                int64_t timeout_ns, const int32_t *gone) {
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    uint32_t bell = __atomic_load_n(&theirs_first->doorbell, __ATOMIC_SEQ_CST);
    __atomic_store_n(&mine_first->waiting_doorbell, 1, __ATOMIC_SEQ_CST);
    if (!fp_any_moved(words, seen, count, __ATOMIC_SEQ_CST) && !__atomic_load_n(gone, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &theirs_first->doorbell, FUTEX_WAIT, bell, &t, NULL, 0);
    __atomic_store_n(&mine_first->waiting_doorbell, 0, __ATOMIC_RELAXED);
}

/* `gone` is host-private: bit 0 the peer is gone, bit 1 whoever sleeps is to look up once. */
static inline void fp_stir(int32_t *gone) { __atomic_fetch_or(gone, 2, __ATOMIC_SEQ_CST); }
static inline int fp_was_stirred(int32_t *gone) {
    return __atomic_load_n(gone, __ATOMIC_RELAXED) & 2 ? (int)(__atomic_fetch_and(gone, ~2, __ATOMIC_SEQ_CST) & 2) : 0;
}

static inline uint32_t fp_load_flag(const uint32_t *flag) { return __atomic_load_n(flag, __ATOMIC_SEQ_CST); }
static inline void fp_set_gone(int32_t *gone) { __atomic_fetch_or(gone, 1, __ATOMIC_SEQ_CST); }
static inline int fp_is_gone(const int32_t *gone) { return __atomic_load_n(gone, __ATOMIC_RELAXED) & 1; }

/* SYNC POINT LEASE. One counter per slot, in the reader's own table. Any thread; no system call. */
static inline void fp_give_back(uint64_t *returned) { __atomic_fetch_add(returned, 1, __ATOMIC_RELEASE); }
static inline uint64_t fp_load_returned(const uint64_t *returned) { return __atomic_load_n(returned, __ATOMIC_ACQUIRE); }

/* A private page that the kernel wipes in a forked child: tells a child from its parent without a system call, also when
 * the fork was made in C, where register_at_fork does not run. The page holds the mark of this process. What belongs to a
 * process remembers the mark at its birth; a child, whose page is empty, gives itself a new one as soon as it makes something
 * of its own (workers that are forked from a process with the library loaded). Marks live per extension module. */
static uint32_t *fp_fork_page;
static uint32_t fp_generation; /* ordinary memory: a child goes on from its parent's, so no two generations share a mark */

static inline int fp_fork_init(void) {
    if (fp_fork_page)
        return 0;
    uint32_t *page = (uint32_t *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return -1;
    if (madvise(page, 4096, MADV_WIPEONFORK)) {
        munmap(page, 4096);
        return -1;
    }
    fp_fork_page = page;
    return 0;
}

/* The mark of this process, for what it makes. The GIL guards the store. */
static inline uint32_t fp_mark(void) {
    if (!*fp_fork_page)
        *fp_fork_page = ++fp_generation;
    return *fp_fork_page;
}

/* Is this the process that the mark was given to, and not a fork of it? */
static inline int fp_is_home(uint32_t mark) { return *fp_fork_page == mark; }

/* Debug builds stop themselves at a named point, so that a test can signal exactly there: FASTPLUG_STOP_AT=name. */
#if defined(FASTPLUG_DEBUG) && FASTPLUG_DEBUG
static inline void fp_point(const char *name) {
    const char *wanted = getenv("FASTPLUG_STOP_AT");
    if (wanted && !strcmp(wanted, name))
        raise(SIGSTOP);
}
#define FP_DEBUG 1
#else
static inline void fp_point(const char *name) { (void)name; }
#define FP_DEBUG 0
#endif

#endif
