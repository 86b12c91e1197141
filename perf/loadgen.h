/* What the parts of the load generator know of each other.
 *
 *   loadgen.c            one epoll loop: when calls start and end, the measured window
 *   loadgen_connection.c sockets
 *   loadgen_http2.c      gRPC over HTTP/2 in clear text: frames, flow control, (loadgen_hpack.c) header blocks
 *   loadgen_http1.c      REST over HTTP/1.1: one call at a time on a connection
 *   loadgen_check.c      is this answer the expected one?
 *   loadgen_setup.c      the command line and the message files
 *   loadgen_report.c     the figures as JSON; loadgen_stats.h: what is counted, the latency histogram
 *
 * One thread. Times are CLOCK_MONOTONIC nanoseconds.
 */
#ifndef LOADGEN_H
#define LOADGEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Staging stops above this, so that a burst of large messages stays in the cache and memory stays bounded. */
#define OUT_BYTES_MAX ((size_t)1 << 20)
#define IN_BYTES ((size_t)1 << 18)
#define TEXT_BYTES 400
#define ALTERNATIVES_MAX 256
#define SLICES_MAX 100000

enum outcome {
    OUTCOME_GOOD,
    OUTCOME_CONNECT,     /* no connection could be made, or it was lost while none of its calls was running */
    OUTCOME_CLOSED,      /* the connection ended under the call */
    OUTCOME_GOAWAY,      /* refused by GOAWAY */
    OUTCOME_PROTOCOL,    /* the server broke HTTP; its connection is given up */
    OUTCOME_RESET,       /* RST_STREAM */
    OUTCOME_HTTP_STATUS, /* not 200 */
    OUTCOME_GRPC_STATUS, /* not 0, or missing */
    OUTCOME_LENGTH,      /* the gRPC message and its length prefix disagree, or there is none */
    OUTCOME_VALUE,       /* not the expected answer */
    OUTCOME_LATE,        /* not answered before --deadline_ms: given up, or answered too late */
    OUTCOME_UNANSWERED,  /* still running when the drain limit passed */
    OUTCOMES_COUNT
};

enum comparison { COMPARE_NONE, COMPARE_EXACT, COMPARE_PREDICT, COMPARE_JSON, COMPARE_FLOATS };

struct tolerance {
    double relative; /* of the expected value */
    double absolute; /* added to it, for values near zero */
};

/* ------------------------------------------------------------------------------------------ loadgen_check.c */

struct expectation;

/* Reads an expected answer; `bytes` bytes at `data` must stay valid. Returns NULL, with `why` filled, if it is not
 * what `comparison` reads (a serialized PredictResponse, JSON text). */
struct expectation *expectation_new(enum comparison comparison, struct tolerance tolerance, const uint8_t *data,
                                    size_t bytes, char why[TEXT_BYTES]);
/* `other` is as good an answer as `first`; belongs to `first` from now on. */
void expectation_or(struct expectation *first, struct expectation *other);
/* With its alternatives. */
void expectation_free(struct expectation *expectation);
/* Compares an answer. Returns which of the alternatives it meets (0: the first), or -1 with `why` filled: the first
 * difference from the alternative that names the same model, version and signature, if there is one. */
int expectation_met(const struct expectation *expectation, const uint8_t *data, size_t bytes, char why[TEXT_BYTES]);

/* --------------------------------------------------------------------------------------------- loadgen_setup.c */

struct message {
    uint8_t *wire; /* as sent: with the gRPC prefix, or with the HTTP/1.1 head */
    size_t wire_bytes;
    struct expectation *expectation; /* NULL: not compared */
};

struct setup {
    const char *host, *port, *path, *authority, *content_type;
    char headers[2048]; /* REST: lines beside those that are always sent, each with its end */
    bool rest;
    uint32_t connections_count, in_flight_max;
    double warmup_s, duration_s, drain_s, connect_s;
    uint64_t count; /* end after so many measured calls; 0: by duration */
    double rate;    /* calls a second, Poisson; 0: closed loop */
    double later_rate, later_s; /* the rate from this second of the measured window on; 0: no change */
    uint64_t deadline_ns; /* of each call, from when it should have started; 0: none */
    uint64_t tick_ns;  /* open loop: the clock wakes the program at most so often for arrivals; 0: for each */
    uint64_t slice_ns; /* 0: no slices */
    uint64_t seed, check_every;
    bool order_random, reconnect, errors_allowed;
    const char *grpc_timeout; /* NULL: none */
    struct message *messages;
    uint32_t messages_count;
};

extern struct setup setup;
void setup_read(int argc, char **argv); /* exits with status 2 and a text on a mistake */

/* ------------------------------------------------------------------------------------------------- loadgen.c */

struct call {
    uint64_t intended_ns;
    struct connection *connection;
    struct call *older, *newer; /* with a deadline: the running calls in the order of their start */
    const struct message *message;
    uint32_t stream_id; /* 0: not running */
    bool head_seen, judged, compare;
    enum outcome verdict; /* of the message, once judged */
    int http_status;
    int64_t window_bytes;
    size_t sent_bytes;
    uint8_t *answer; /* kept from call to call */
    size_t answer_bytes, answer_capacity;
    struct call *blocked_before, *blocked_after; /* list of calls that wait for room to send their body */
    bool blocked;
    struct call *free_next;
};

struct connection {
    int fd; /* -1: down */
    bool connecting, ready, accepting, writable_wanted;
    uint64_t retry_ns; /* when to connect again; 0: not planned */
    uint32_t active_count, active_max;
    uint32_t waiting_count; /* closed loop: calls that want to start */
    uint8_t *in;
    size_t in_bytes;
    uint8_t *out;
    size_t out_start, out_end, out_capacity;
    struct call *free_calls;
    void *state; /* the protocol's */
};

struct protocol {
    void (*opened)(struct connection *);
    void (*start)(struct connection *, struct call *);
    /* Consumes what is whole of `bytes` bytes at `data` and returns how much that was. */
    size_t (*receive)(struct connection *, const uint8_t *data, size_t bytes);
    void (*room)(struct connection *); /* everything staged has been sent */
    /* Tells the server that nobody waits for this call, and ends it with OUTCOME_LATE. NULL: cannot be told. */
    void (*give_up)(struct connection *, struct call *);
    /* Before the descriptor closes: ends every running call. `outcome` is never GOOD. */
    void (*closing)(struct connection *, enum outcome outcome, const char *text);
};

enum phase { CONNECTING, WARMING, MEASURING, DRAINING, OVER };

extern const struct protocol protocol_http2, protocol_http1;
extern const struct protocol *protocol; /* the one in use */
extern enum phase phase;
extern uint64_t now_ns; /* read once per receive: an answer has arrived when the read that brought it returned */

/* The call is over; it must have left the protocol's tables. */
void call_end(struct connection *connection, struct call *call, enum outcome outcome, int grpc_status,
              const char *text);
void answer_append(struct call *call, const uint8_t *data, size_t bytes);
/* Compares when this call is one of those to be compared; the verdict stays with the call. */
void answer_judge(struct call *call, const uint8_t *data, size_t bytes);
const char *verdict_text(void);
uint64_t clock_ns(void);
void *allocate(void *old, size_t bytes); /* realloc that ends the program instead of failing */

/* ------------------------------------------------------------------------------------------- loadgen_connection.c */

struct addrinfo;
extern struct addrinfo *address;
extern int epoll_fd;
extern uint32_t ready_count, down_count; /* connections that take calls; that are given up for good */

void connection_open(struct connection *connection);
void connection_connected(struct connection *connection); /* connect has succeeded or failed */
void connection_ready(struct connection *connection);     /* by the protocol: calls may start */
void connection_read(struct connection *connection);
void connection_flush(struct connection *connection);
/* Gives the connection up: its calls end with `outcome`. Safe inside `receive`, which must then return at once. */
void connection_break(struct connection *connection, enum outcome outcome, const char *text);
uint8_t *out_reserve(struct connection *connection, size_t bytes); /* write, then add to out_end */
static inline size_t out_staged(const struct connection *c) { return c->out_end - c->out_start; }

#endif
