/* One reader of several lanes, whose writers are a thread each, over one mapping. The reader sleeps on the one doorbell, as a plugin with one
 * worker does; each writer waits for its answer, as a caller does, so that somebody sleeps most of the time. A ring that is lost shows as
 * a sleep that lasts to its own time-out although a tail had moved. Usage: doorbell ROUNDS. Built as ring.c is. */
#include "_atomics.h"

#include <pthread.h>
#include <stdio.h>

#define LANES 4
#define TIMEOUT_NS 20000000000ll

static struct {
    fp_lane host[LANES], plugin[LANES]; /* the segments of the two sides, first lane first */
} memory;
static uint64_t requests[LANES], answers[LANES]; /* what the tails publish */
static int32_t gone;
static uint64_t rounds;
static int lost, broken;

static void *call(void *which) {
    int me = *(int *)which;
    fp_lane *mine = &memory.host[me];
    const fp_lane *theirs = &memory.plugin[me];
    for (uint64_t number = 1; number <= rounds; number++) {
        requests[me] = number * 7 + (uint64_t)me;
        fp_publish_tail(mine, theirs, number * 64, -1);
        fp_ring_doorbell(&memory.host[0], &memory.plugin[0]);
        while (fp_load_position(&theirs->tail) != number * 64)
            if (!fp_spin(&theirs->tail, (number - 1) * 64, number % 3 ? 1000 : 0))
                fp_sleep(&mine->waiting_data, &theirs->tail, (number - 1) * 64, TIMEOUT_NS, &gone);
        if (answers[me] != requests[me] + 1)
            __atomic_store_n(&broken, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void *serve(void *unused) {
    const uint64_t *words[LANES];
    uint64_t seen[LANES] = {0};
    for (int i = 0; i < LANES; i++)
        words[i] = &memory.host[i].tail;
    for (uint64_t left = rounds * LANES; left;) {
        int found = 0;
        for (int i = 0; i < LANES; i++)
            if (fp_load_position(words[i]) != seen[i]) {
                answers[i] = requests[i] + 1;
                seen[i] += 64;
                fp_publish_tail(&memory.plugin[i], &memory.host[i], seen[i], -1);
                left--;
                found = 1;
            }
        if (!found && left && fp_spin_any(words, seen, LANES, (int)(left % LANES), left % 3 ? 1000 : 0) < 0) {
            int64_t before = fp_now_ns();
            fp_sleep_any(&memory.plugin[0], &memory.host[0], words, seen, LANES, TIMEOUT_NS, &gone);
            if (fp_now_ns() - before >= TIMEOUT_NS && fp_any_moved(words, seen, LANES, __ATOMIC_ACQUIRE))
                lost = 1;
        }
    }
    return unused;
}

int main(int argc, char **argv) {
    pthread_t server, callers[LANES];
    int which[LANES];
    rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
    pthread_create(&server, NULL, serve, NULL);
    for (int i = 0; i < LANES; i++) {
        which[i] = i;
        pthread_create(&callers[i], NULL, call, &which[i]);
    }
    for (int i = 0; i < LANES; i++)
        pthread_join(callers[i], NULL);
    pthread_join(server, NULL);
    printf("%llu rounds, %s, %s\n", (unsigned long long)rounds, broken ? "BROKEN" : "whole", lost ? "A RING WAS LOST" : "no ring lost");
    return lost || broken;
}
