/* The load generator's sockets: opening, reading, writing in one go, giving up and trying again. */
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loadgen_stats.h"

#define RETRY_NS 20000000ull

static void watch(struct connection *c, int operation, bool writable) {
    struct epoll_event event = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = c};
    c->writable_wanted = writable;
    if (epoll_ctl(epoll_fd, operation, c->fd, &event)) {
        perror("loadgen: epoll_ctl");
        exit(2);
    }
}

void connection_open(struct connection *c) {
    int on = 1;
    c->retry_ns = 0;
    c->fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        perror("loadgen: socket");
        exit(2);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->connecting = true;
    c->in_bytes = c->out_start = c->out_end = 0;
    if (connect(c->fd, address->ai_addr, address->ai_addrlen) && errno != EINPROGRESS) {
        close(c->fd);
        c->fd = -1;
        c->retry_ns = now_ns + RETRY_NS;
        return;
    }
    watch(c, EPOLL_CTL_ADD, true);
}

void connection_ready(struct connection *c) {
    c->ready = c->accepting = true;
    ready_count++;
}

void connection_break(struct connection *c, enum outcome outcome, const char *text) {
    if (c->fd < 0) return;
    bool lost_quietly = c->active_count == 0 && !c->connecting && c->accepting && phase < DRAINING;
    int fd = c->fd;
    c->fd = -1;
    if (c->ready) ready_count--;
    if (c->state) protocol->closing(c, outcome, text);
    close(fd);
    bool never_ready = outcome == OUTCOME_PROTOCOL && c->active_count == 0 && !c->ready;
    if (lost_quietly || never_ready) count_failure(OUTCOME_CONNECT, text);
    c->ready = c->accepting = false;
    if (setup.reconnect || c->connecting || phase == CONNECTING) c->retry_ns = now_ns + RETRY_NS;
    else down_count++;
    c->connecting = false;
}

uint8_t *out_reserve(struct connection *c, size_t bytes) {
    if (c->out_capacity - c->out_end < bytes) {
        if (c->out_start) {
            memmove(c->out, c->out + c->out_start, out_staged(c));
            c->out_end -= c->out_start;
            c->out_start = 0;
        }
        if (c->out_capacity - c->out_end < bytes) {
            c->out_capacity = 2 * c->out_capacity + bytes;
            c->out = allocate(c->out, c->out_capacity);
        }
    }
    return c->out + c->out_end;
}

void connection_flush(struct connection *c) {
    while (c->fd >= 0 && !c->connecting && out_staged(c)) {
        ssize_t sent = send(c->fd, c->out + c->out_start, out_staged(c), MSG_NOSIGNAL);
        figures.sends_count++;
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) {
            if (!c->writable_wanted) watch(c, EPOLL_CTL_MOD, true);
            return;
        }
        if (sent < 0) {
            connection_break(c, OUTCOME_CLOSED, strerror(errno));
            return;
        }
        figures.sent_bytes += (uint64_t)sent;
        c->out_start += (size_t)sent;
        if (out_staged(c)) continue;
        c->out_start = c->out_end = 0;
        protocol->room(c);
    }
    if (c->fd >= 0 && !c->connecting && c->writable_wanted) watch(c, EPOLL_CTL_MOD, false);
}

void connection_connected(struct connection *c) {
    int error = 0;
    socklen_t bytes = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
    if (error) {
        connection_break(c, OUTCOME_CONNECT, strerror(error));
        return;
    }
    c->connecting = false;
    protocol->opened(c);
}

void connection_read(struct connection *c) {
    ssize_t got = recv(c->fd, c->in + c->in_bytes, IN_BYTES - c->in_bytes, 0);
    now_ns = clock_ns();
    figures.receives_count++;
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        connection_break(c, OUTCOME_CLOSED, got ? strerror(errno) : "the server closed the connection");
        return;
    }
    figures.received_bytes += (uint64_t)got;
    c->in_bytes += (size_t)got;
    size_t used = protocol->receive(c, c->in, c->in_bytes);
    if (c->fd < 0) return;
    c->in_bytes -= used;
    if (c->in_bytes && used) memmove(c->in, c->in + used, c->in_bytes);
    if (!c->accepting && c->ready && !c->active_count)
        connection_break(c, OUTCOME_GOAWAY, "the server asked to leave");
}
