// A blocking Unix stream socket in C: the least that any design with a system call per message costs.
//
//   unix_socket [bytes] [calls] [warm-up calls] [caller's cpu, -1: any] [callee's cpu]
#include "floor.h"
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void fill(int fd, char *buffer, size_t n) {
    for (size_t got = 0; got < n;) {
        ssize_t r = read(fd, buffer + got, n - got);
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) { perror("read"); exit(1); }
        got += (size_t)r;
    }
}

static void send_all(int fd, const char *buffer, size_t n) {
    for (size_t put = 0; put < n;) {
        ssize_t w = write(fd, buffer + put, n - put);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) { perror("write"); exit(1); }
        put += (size_t)w;
    }
}

int main(int argc, char **argv) {
    size_t bytes = argc > 1 ? (size_t)atol(argv[1]) : 64;
    long calls = argc > 2 ? atol(argv[2]) : 20000, warmup = argc > 3 ? atol(argv[3]) : calls / 10;
    int host_cpu = argc > 4 ? atoi(argv[4]) : -1, plugin_cpu = argc > 5 ? atoi(argv[5]) : -1, pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) { perror("socketpair"); return 1; }
    char *buffer = calloc(1, bytes);
    pid_t child = fork();
    if (child < 0) { perror("fork"); return 1; }
    pin(child ? host_cpu : plugin_cpu);
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (long i = 0; i < warmup + calls; i++) { fill(pair[1], buffer, bytes); send_all(pair[1], buffer, bytes); }
        _exit(0);
    }
    uint64_t *ns = malloc(sizeof *ns * (size_t)calls);
    for (long i = 0; i < warmup + calls; i++) {
        uint64_t start = now_ns();
        send_all(pair[0], buffer, bytes);
        fill(pair[0], buffer, bytes);
        if (i >= warmup) ns[i - warmup] = now_ns() - start;
    }
    int status = 0;
    waitpid(child, &status, 0);
    report("c_unix_socket", bytes, ns, calls);
    return status != 0;
}
