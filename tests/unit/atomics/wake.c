/* Dekker's pattern under stress: two threads in lockstep that always sleep. A lost wake-up shows as a sleep that lasts to its own
 * time-out although the word had changed. Usage: wake ROUNDS. Ends with 0 when none was lost. */
#include "_atomics.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>

#define TIMEOUT_NS 20000000000ll

static fp_lane sides[2];
static int32_t gone;
static uint64_t rounds;
static int lost;
static int eventfds[2]; /* that each side watches, and the other writes */

static void *talk(void *which) {
    int me = *(int *)which;
    fp_lane *mine = &sides[me];
    const fp_lane *theirs = &sides[!me];
    for (uint64_t number = 0; number < rounds; number++) {
        uint64_t seen = number * 64;
        if (me)
            fp_publish_tail(mine, theirs, seen + 64, -1);
        while (fp_load_position(&theirs->tail) == seen) {
            int64_t before = fp_now_ns();
            fp_sleep(&mine->waiting_data, &theirs->tail, seen, TIMEOUT_NS, &gone);
            if (fp_now_ns() - before >= TIMEOUT_NS && fp_load_position(&theirs->tail) != seen)
                __atomic_store_n(&lost, 1, __ATOMIC_RELAXED);
        }
        if (!me)
            fp_publish_tail(mine, theirs, seen + 64, -1);
    }
    return NULL;
}

/* The same with the other word and flag: space instead of data. */
static void *take(void *which) {
    int me = *(int *)which;
    fp_lane *mine = &sides[me];
    const fp_lane *theirs = &sides[!me];
    for (uint64_t number = 0; number < rounds; number++) {
        uint64_t seen = number * 64;
        if (me)
            fp_publish_head(mine, theirs, seen + 64);
        while (fp_load_position(&theirs->head) == seen) {
            int64_t before = fp_now_ns();
            fp_sleep(&mine->waiting_space, &theirs->head, seen, TIMEOUT_NS, &gone);
            if (fp_now_ns() - before >= TIMEOUT_NS && fp_load_position(&theirs->head) != seen)
                __atomic_store_n(&lost, 1, __ATOMIC_RELAXED);
        }
        if (!me)
            fp_publish_head(mine, theirs, seen + 64);
    }
    return NULL;
}

/* The first again, asleep on an eventfd as an event loop is. */
static void *hear(void *which) {
    int me = *(int *)which;
    fp_lane *mine = &sides[me];
    const fp_lane *theirs = &sides[!me];
    struct pollfd watched = {eventfds[me], POLLIN, 0};
    uint64_t count;
    for (uint64_t number = 0; number < rounds; number++) {
        uint64_t seen = number * 64;
        if (me)
            fp_publish_tail(mine, theirs, seen + 64, eventfds[!me]);
        while (fp_load_position(&theirs->tail) == seen) {
            if (!fp_arm(&mine->waiting_data, &theirs->tail, seen) && !poll(&watched, 1, TIMEOUT_NS / 1000000) &&
                fp_load_position(&theirs->tail) != seen)
                __atomic_store_n(&lost, 1, __ATOMIC_RELAXED);
            fp_disarm(&mine->waiting_data);
            if (read(eventfds[me], &count, sizeof count) < 0)
                continue; /* what was there already was not announced */
        }
        if (!me)
            fp_publish_tail(mine, theirs, seen + 64, eventfds[!me]);
    }
    return NULL;
}

static void both(void *(*body)(void *)) {
    pthread_t threads[2];
    int which[2] = {0, 1};
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, body, &which[i]);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

int main(int argc, char **argv) {
    rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 20000;
    both(talk);
    both(take);
    memset(sides, 0, sizeof sides);
    for (int i = 0; i < 2; i++)
        eventfds[i] = eventfd(0, EFD_NONBLOCK);
    both(hear);
    printf("%llu rounds, %s\n", (unsigned long long)rounds, lost ? "A WAKE-UP WAS LOST" : "no wake-up lost");
    return lost;
}
