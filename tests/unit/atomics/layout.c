/* Prints where the fields of fp_lane lie, one `name offset` a line: compared with docs/wire.md and the twin. And the fork mark. */
#include "_atomics.h"

#include <stddef.h>
#include <stdio.h>
#include <sys/wait.h>

#define SHOW(field) printf(#field " %zu\n", offsetof(fp_lane, field))

int main(void) {
    SHOW(magic);
    SHOW(version);
    SHOW(ring_bytes);
    SHOW(tail);
    SHOW(cpu);
    SHOW(head);
    SHOW(waiting_data);
    SHOW(waiting_space);
    SHOW(doorbell);
    SHOW(waiting_doorbell);
    printf("size %zu\n", sizeof(fp_lane));

    if (fp_fork_init() || fp_fork_init())
        return 2;
    uint32_t mine = fp_mark();
    if (!mine || fp_mark() != mine || !fp_is_home(mine))
        return 3;
    pid_t child = fork();
    if (!child) {
        if (fp_is_home(mine))
            _exit(4);
        uint32_t of_child = fp_mark();
        if (of_child == mine || !fp_is_home(of_child) || fp_is_home(mine))
            _exit(5);
        pid_t grandchild = fork();
        if (!grandchild)
            _exit(fp_is_home(of_child) || fp_is_home(mine) || fp_mark() == of_child || fp_mark() == mine ? 6 : 0);
        int status = 0;
        waitpid(grandchild, &status, 0);
        _exit(WEXITSTATUS(status));
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (!fp_is_home(mine))
        return 7;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 8;
}
