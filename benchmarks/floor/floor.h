// What the three programs of the floor share: the clock, pinning, and the JSON that run.py reads.
#ifndef FASTPLUG_FLOOR_H
#define FASTPLUG_FLOOR_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

// cpu < 0 leaves the kernel its choice.
static inline void pin(int cpu) {
    if (cpu < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set)) { perror("sched_setaffinity"); exit(1); }
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// Sorts the samples and prints them as one JSON object on one line.
static inline void report(const char *name, uint64_t bytes, uint64_t *ns, long n) {
    double mean = 0;
    for (long i = 0; i < n; i++) mean += (double)ns[i] / (double)n;
    qsort(ns, (size_t)n, sizeof *ns, by_value);
    printf("{\"name\": \"%s\", \"bytes\": %llu, \"calls\": %ld, \"p50_ns\": %llu, \"p90_ns\": %llu, \"p99_ns\": %llu, \"p99.9_ns\": %llu, \"mean_ns\": %.1f}\n",
           name, (unsigned long long)bytes, n, (unsigned long long)ns[n / 2], (unsigned long long)ns[(long)(n * 0.9)],
           (unsigned long long)ns[(long)(n * 0.99)], (unsigned long long)ns[(long)(n * 0.999)], mean);
    fflush(stdout);
}
#endif
