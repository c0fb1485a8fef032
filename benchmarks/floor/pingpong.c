// The floor of one call: 64 B there and back between two processes, with the memory layout and the wait policy of the shared-memory
// transport and nothing else: no Python, no header, no codec.
//
//   pingpong [calls] [warm-up calls] [caller's cpu, -1: any] [callee's cpu]
//
// Layout: each side writes one sealed memfd and maps the other's read-only. Policy: publish the CPU beside the position; a waiter spins
// for SPIN_NS unless the other side last ran on its own CPU (then the spinning would only keep the other one from running), and sleeps on
// a futex after that.
#include "floor.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

enum { PAYLOAD_BYTES = 64, SPIN_NS = 5000 + 50000 /* the library's two stages; C has no GIL to tell them apart */ };

typedef struct {
    _Alignas(128) _Atomic uint32_t position;    // written by the owner of the segment; the other side sleeps on it
    _Atomic uint32_t cpu;
    _Alignas(128) _Atomic uint32_t waiting;     // the owner sleeps, or is about to
    _Alignas(128) char payload[PAYLOAD_BYTES];
} Segment;

static Segment *create(int *fd) {
    *fd = memfd_create("floor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (*fd < 0 || ftruncate(*fd, sizeof(Segment))) { perror("memfd"); exit(1); }
    Segment *own = mmap(NULL, sizeof(Segment), PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (own == MAP_FAILED || fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)) { perror("seal"); exit(1); }
    return own;
}

static void publish(Segment *own, const Segment *peer, uint32_t position) {
    atomic_store_explicit(&own->cpu, (uint32_t)sched_getcpu(), memory_order_relaxed);
    atomic_store(&own->position, position);                 // seq_cst, and the load below too: otherwise a wake-up can be lost
    if (atomic_load(&peer->waiting)) syscall(SYS_futex, &own->position, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static int spin(const Segment *peer, uint32_t position) {
    uint64_t end = 0;
    for (;;) {
        for (int i = 0; i < 64; i++) {                      // the clock costs as much as several looks
            if (atomic_load_explicit(&peer->position, memory_order_acquire) == position) return 1;
            RELAX();
        }
        uint64_t now = now_ns();
        if (!end) end = now + SPIN_NS;
        if (now > end) return 0;
    }
}

static void await(Segment *own, const Segment *peer, uint32_t position) {
    if (atomic_load_explicit(&peer->position, memory_order_acquire) == position) return;
    if (atomic_load_explicit(&peer->cpu, memory_order_relaxed) != (uint32_t)sched_getcpu() && spin(peer, position)) return;
    atomic_store(&own->waiting, 1);
    for (uint32_t seen; (seen = atomic_load(&peer->position)) != position;)
        if (syscall(SYS_futex, &peer->position, FUTEX_WAIT, seen, NULL, NULL, 0) && errno != EAGAIN && errno != EINTR) { perror("futex"); exit(1); }
    atomic_store_explicit(&own->waiting, 0, memory_order_relaxed);
}

int main(int argc, char **argv) {
    long calls = argc > 1 ? atol(argv[1]) : 100000, warmup = argc > 2 ? atol(argv[2]) : calls / 10;
    int host_cpu = argc > 3 ? atoi(argv[3]) : -1, plugin_cpu = argc > 4 ? atoi(argv[4]) : -1;
    int host_fd, plugin_fd;
    Segment *host = create(&host_fd), *plugin = create(&plugin_fd);
    pid_t child = fork();
    if (child < 0) { perror("fork"); return 1; }
    Segment *own = child ? host : plugin;
    const Segment *peer = mmap(NULL, sizeof(Segment), PROT_READ, MAP_SHARED, child ? plugin_fd : host_fd, 0);
    if (peer == MAP_FAILED) { perror("mmap"); return 1; }
    munmap(child ? plugin : host, sizeof(Segment));         // from here on each side can write only its own
    pin(child ? host_cpu : plugin_cpu);
    char buffer[PAYLOAD_BYTES] = {0};
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (long i = 1; i <= warmup + calls; i++) {
            await(own, peer, (uint32_t)i);
            memcpy(buffer, peer->payload, sizeof buffer);
            memcpy(own->payload, buffer, sizeof buffer);
            publish(own, peer, (uint32_t)i);
        }
        _exit(0);
    }
    uint64_t *ns = malloc(sizeof *ns * (size_t)calls);
    for (long i = 1; i <= warmup + calls; i++) {
        uint64_t start = now_ns();
        memset(buffer, (int)i, sizeof buffer);
        memcpy(own->payload, buffer, sizeof buffer);
        publish(own, peer, (uint32_t)i);
        await(own, peer, (uint32_t)i);
        memcpy(buffer, peer->payload, sizeof buffer);
        if (i > warmup) ns[i - warmup - 1] = now_ns() - start;
        if (buffer[0] != (char)i) { fprintf(stderr, "pingpong: call %ld came back wrong\n", i); return 1; }
    }
    int status = 0;
    waitpid(child, &status, 0);
    report("c_pingpong", PAYLOAD_BYTES, ns, calls);
    return status != 0;
}
