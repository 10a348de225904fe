/*
 * load: sessions that send mail as fast as they are answered, one thread each,
 * and how long each message took from its final dot to its 250.
 *
 *   load -p PORT -s SESSIONS -t SECONDS | -m MESSAGES -l OCTETS [-k] [-r RECIPIENTS] [-L]
 *
 *   -k  keep the connection for the next message     -L  LMTP
 *
 * Kept connections are all made before the clock starts. One line of JSON:
 * messages done, errors, messages a second, milliseconds from dot to 250.
 *
 * build: cc -O2 -Wall -pthread -o load load.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DOMAIN "relay.test"

struct connection {
    int fd;
    char buffer[8192];
    size_t filled;
};

struct session {
    struct connection connection;
    float *milliseconds;
    size_t count, room;
    char error[64];
};

static int port = 2525, sessions = 1, kept = 0, recipients = 1, lmtp = 0;
static long messages = 0, octets = 4096;
static double seconds = 0, end_of_run;
static char *body;
static size_t body_octets;
static atomic_long begun, errors;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int send_all(struct connection *c, const char *text, size_t length) {
    while (length) {
        ssize_t sent = send(c->fd, text, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return -1;
        text += sent;
        length -= sent;
    }
    return 0;
}

/* The code of the next reply, however many lines it has; -1 when the connection is gone. */
static int reply(struct connection *c) {
    for (;;) {
        char *end;
        while ((end = memchr(c->buffer, '\n', c->filled))) {
            int last = end - c->buffer >= 4 && c->buffer[3] != '-';
            int code = atoi(c->buffer);
            size_t used = end - c->buffer + 1;
            memmove(c->buffer, end + 1, c->filled - used);
            c->filled -= used;
            if (last)
                return code;
        }
        if (c->filled == sizeof c->buffer)
            return -1;
        ssize_t got = recv(c->fd, c->buffer + c->filled, sizeof c->buffer - c->filled, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        c->filled += got;
    }
}

static int say(struct connection *c, const char *text, int wanted) {
    return send_all(c, text, strlen(text)) || reply(c) / 100 != wanted;
}

static void hang_up(struct connection *c) {
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

static const char *open_session(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct timeval patience = {30, 0};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->filled = 0;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        return "socket";
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address))
        return "connect";
    if (reply(c) != 220)
        return "greeting";
    if (say(c, lmtp ? "LHLO load.bench.test\r\n" : "EHLO load.bench.test\r\n", 2))
        return "hello";
    return NULL;
}

static void note(struct session *s, double took) {
    if (s->count == s->room) {
        s->room = s->room ? s->room * 2 : 1024;
        s->milliseconds = realloc(s->milliseconds, s->room * sizeof(float));
    }
    s->milliseconds[s->count++] = took * 1e3;
}

static const char *send_message(struct session *s) {
    struct connection *c = &s->connection;
    char line[128];
    if (say(c, "MAIL FROM:<bench@load.bench.test>\r\n", 2))
        return "MAIL";
    for (int i = 0; i < recipients; i++) {
        snprintf(line, sizeof line, "RCPT TO:<u%d@" DOMAIN ">\r\n", i);
        if (say(c, line, 2))
            return "RCPT";
    }
    if (say(c, "DATA\r\n", 3))
        return "DATA";
    if (send_all(c, body, body_octets))
        return "content";
    double dot = now();
    for (int i = 0; i < (lmtp ? recipients : 1); i++)
        if (reply(c) / 100 != 2)
            return "after the dot";
    note(s, now() - dot);
    return NULL;
}

static int go_on(void) {
    return messages ? atomic_fetch_add(&begun, 1) < messages : now() < end_of_run;
}

static void *run(void *argument) {
    struct session *s = argument;
    int failures = 0;
    while (go_on()) {
        const char *error = s->connection.fd < 0 ? open_session(&s->connection) : NULL;
        if (!error)
            error = send_message(s);
        if (error) {
            snprintf(s->error, sizeof s->error, "%s", error);
            atomic_fetch_add(&errors, 1);
            hang_up(&s->connection);
            if (++failures > 20)
                break;
            usleep(20000);
            continue;
        }
        failures = 0;
        if (!kept) {
            /* The 221 is not waited for: some servers hold it back on purpose. */
            send_all(&s->connection, "QUIT\r\n", 6);
            hang_up(&s->connection);
        }
    }
    return NULL;
}

static int in_order(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void make_body(void) {
    const char *header = "From: bench@load.bench.test\r\nTo: u0@" DOMAIN "\r\nSubject: load\r\n"
                         "Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-Id: <1@load.bench.test>\r\n\r\n";
    size_t n = strlen(header);
    body = malloc(octets + 1024);
    memcpy(body, header, n);
    while (n < (size_t)octets) {
        for (int i = 0; i < 76 && n < (size_t)octets - 2; i++, n++)
            body[n] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[(i * 7 + n) % 26];
        memcpy(body + n, "\r\n", 2);
        n += 2;
    }
    memcpy(body + n, ".\r\n", 3);
    body_octets = n + 3;
}

int main(int argc, char **argv) {
    int option;
    while ((option = getopt(argc, argv, "p:s:t:m:l:r:kL")) != -1)
        switch (option) {
        case 'p': port = atoi(optarg); break;
        case 's': sessions = atoi(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'm': messages = atol(optarg); break;
        case 'l': octets = atol(optarg); break;
        case 'r': recipients = atoi(optarg); break;
        case 'k': kept = 1; break;
        case 'L': lmtp = 1; break;
        default: return 64;
        }
    signal(SIGPIPE, SIG_IGN);
    make_body();
    struct session *all = calloc(sessions, sizeof *all);
    pthread_t *threads = calloc(sessions, sizeof *threads);
    for (int i = 0; i < sessions; i++) {
        all[i].connection.fd = -1;
        const char *error = kept ? open_session(&all[i].connection) : NULL;
        if (error) {
            snprintf(all[i].error, sizeof all[i].error, "%s", error);
            atomic_fetch_add(&errors, 1);
            hang_up(&all[i].connection);
        }
    }
    double start = now();
    end_of_run = start + seconds;
    for (int i = 0; i < sessions; i++)
        pthread_create(&threads[i], NULL, run, &all[i]);
    for (int i = 0; i < sessions; i++)
        pthread_join(threads[i], NULL);
    double took = now() - start;

    size_t done = 0;
    const char *error = "";
    for (int i = 0; i < sessions; i++) {
        done += all[i].count;
        if (all[i].error[0])
            error = all[i].error;
    }
    float *times = malloc((done + 1) * sizeof(float));
    size_t n = 0;
    for (int i = 0; i < sessions; i++) {
        memcpy(times + n, all[i].milliseconds, all[i].count * sizeof(float));
        n += all[i].count;
        if (all[i].connection.fd >= 0)
            send_all(&all[i].connection, "QUIT\r\n", 6);
    }
    qsort(times, done, sizeof(float), in_order);
    struct rusage cpu;
    getrusage(RUSAGE_SELF, &cpu);
    printf("{\"done\": %zu, \"errors\": %ld, \"seconds\": %.4f, \"rate\": %.2f, \"p50\": %.3f, \"p99\": %.3f, "
           "\"error\": \"%s\"}\n",
           done, (long)errors, took, done / took, done ? times[(size_t)((done - 1) * .5)] : -1.0,
           done ? times[(size_t)((done - 1) * .99)] : -1.0, error);
    return 0;
}
