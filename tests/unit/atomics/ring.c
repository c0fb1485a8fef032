/* Both ends of a lane as two threads over one mapping (over two mappings of one memfd ThreadSanitizer sees nothing): messages of
 * changing size go through the ring as shm/_lane.pyx sends them, in plain C. Ends with 0 when every byte arrived.
 * Built with -fsanitize=thread, and once more with -DFP_PUBLISH_ORDER=__ATOMIC_RELAXED, which must be reported. */
#include "_atomics.h"

#include <pthread.h>
#include <stdio.h>

#define RING_BYTES 4096
#define MESSAGES 20000
#define TABLE_SLOTS 8

static struct {
    fp_lane writer, reader;         /* the segments of the two sides */
    unsigned char ring[RING_BYTES]; /* behind the writer's */
    uint64_t returned[TABLE_SLOTS]; /* the reader's table */
} memory;

/* An arena of blocks, each lent to the reader and written anew only when it has come back. */
static unsigned char blocks[TABLE_SLOTS][256];
static int32_t gone;

typedef struct {
    uint32_t size, slot;
    uint64_t number;
} header;

static uint64_t rounded(uint32_t size) { return (sizeof(header) + size + 63) & ~(uint64_t)63; }
static unsigned char byte_of(uint64_t number, uint32_t at) { return (unsigned char)(number * 31 + at * 7); }
static uint32_t size_of(uint64_t number) { return (uint32_t)(number * 37 % 190); }

static void *write_all(void *unused) {
    uint64_t tail = 0, sent[TABLE_SLOTS] = {0};
    unsigned char payload[256];
    for (uint64_t number = 0; number < MESSAGES; number++) {
        header head = {size_of(number), (uint32_t)(number % TABLE_SLOTS), number};
        uint64_t need = rounded(head.size), to_end = RING_BYTES - (tail & (RING_BYTES - 1)), pad = to_end < need ? to_end : 0;
        while (fp_load_returned(&memory.returned[head.slot]) != sent[head.slot])
            sched_yield();
        memset(blocks[head.slot], (int)(number & 255), sizeof blocks[0]);
        sent[head.slot]++;
        for (;;) {
            uint64_t seen = fp_load_position(&memory.reader.head);
            if (tail + pad + need - seen <= RING_BYTES)
                break;
            if (!fp_spin(&memory.reader.head, seen, 1000))
                fp_sleep(&memory.writer.waiting_space, &memory.reader.head, seen, 1000000000, &gone);
        }
        if (pad) {
            header filler = {(uint32_t)(pad - sizeof(header)), UINT32_MAX, 0};
            memcpy(memory.ring + (tail & (RING_BYTES - 1)), &filler, sizeof filler);
            tail += pad;
        }
        for (uint32_t i = 0; i < head.size; i++)
            payload[i] = byte_of(number, i);
        memcpy(memory.ring + (tail & (RING_BYTES - 1)), &head, sizeof head);
        memcpy(memory.ring + (tail & (RING_BYTES - 1)) + sizeof head, payload, head.size);
        tail += need;
        fp_publish_tail(&memory.writer, &memory.reader, tail, -1);
    }
    return unused;
}

static void *read_all(void *broken) {
    uint64_t position = 0;
    unsigned char payload[256];
    for (uint64_t number = 0; number < MESSAGES;) {
        header head;
        uint64_t tail = fp_load_position(&memory.writer.tail);
        if (tail == position) {
            if (!fp_spin(&memory.writer.tail, position, 1000))
                fp_sleep(&memory.reader.waiting_data, &memory.writer.tail, position, 1000000000, &gone);
            continue;
        }
        memcpy(&head, memory.ring + (position & (RING_BYTES - 1)), sizeof head);
        if (head.slot != UINT32_MAX) {
            if (head.number != number || head.size != size_of(number))
                *(int *)broken = 1;
            memcpy(payload, memory.ring + (position & (RING_BYTES - 1)) + sizeof head, head.size & 255);
            for (uint32_t i = 0; i < (head.size & 255); i++)
                if (payload[i] != byte_of(number, i))
                    *(int *)broken = 1;
            for (uint32_t i = 0; i < sizeof blocks[0]; i++)
                if (blocks[head.slot % TABLE_SLOTS][i] != (number & 255))
                    *(int *)broken = 1;
            fp_give_back(&memory.returned[head.slot % TABLE_SLOTS]);
            number++;
        }
        position += rounded(head.size);
        fp_publish_head(&memory.reader, &memory.writer, position);
    }
    return NULL;
}

int main(void) {
    pthread_t writer, reader;
    int broken = 0;
    pthread_create(&writer, NULL, write_all, NULL);
    pthread_create(&reader, NULL, read_all, &broken);
    pthread_join(writer, NULL);
    pthread_join(reader, NULL);
    printf("%d messages, %s\n", MESSAGES, broken ? "BROKEN" : "whole");
    return broken;
}
