// One copy into shared memory that was touched before: the floor of every call that copies its array once.
//
//   memcpy [cpu, -1: any] [bytes ...]
#include "floor.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SAMPLES_MAX = 2001, BUDGET_NS = 300 * 1000 * 1000 };     // per size; 64 MiB takes some 8 ms a copy

static void measure(size_t bytes) {
    int fd = memfd_create("floor", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes)) { perror("memfd"); exit(1); }
    char *to = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *from = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (to == MAP_FAILED || from == MAP_FAILED) { perror("mmap"); exit(1); }
    memset(from, 1, bytes);
    uint64_t start = now_ns();
    memcpy(to, from, bytes);
    uint64_t first[1] = {now_ns() - start};
    report("c_memcpy_first_touch", bytes, first, 1);
    static uint64_t ns[SAMPLES_MAX];
    long n = 0;
    for (uint64_t end = now_ns() + BUDGET_NS; n < SAMPLES_MAX && (n < 5 || now_ns() < end); n++) {
        from[(size_t)n * 64 % bytes]++;
        start = now_ns();
        memcpy(to, from, bytes);
        __asm__ volatile("" ::"r"(to) : "memory");
        ns[n] = now_ns() - start;
    }
    report("c_memcpy", bytes, ns, n);
    munmap(to, bytes);
    munmap(from, bytes);
    close(fd);
}

int main(int argc, char **argv) {
    pin(argc > 1 ? atoi(argv[1]) : -1);
    if (argc < 3) for (size_t bytes = 64; bytes <= (64u << 20); bytes *= 8) measure(bytes);
    for (int i = 2; i < argc; i++) measure((size_t)atol(argv[i]));
    return 0;
}
