/* The load generator: one thread, one epoll loop, as little work per call as can be.
 *
 * It shares two cores with the server it measures, so everything that arrived in one read is answered by one write,
 * and a call costs a few memory copies and no system call of its own.
 *
 * Closed loop: so many calls are always in flight; the next one starts when one ends. Open loop (--rate): calls start
 * at times drawn beforehand, and a call's latency counts from the time at which it *should* have started, so that a
 * server which stalls is charged for everyone who would have called meanwhile.
 *
 * A run connects, warms up, measures and drains. Latencies are those of the good calls that should have started
 * inside the measured window, whenever they ended; the rate counts those that ended inside it. Failures count always.
 * Three lines of JSON go to standard output: measuring, measured, result; a supervisor samples other processes at the
 * first two.
 */
#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "loadgen.h"
#include "loadgen_stats.h"

#define NEVER UINT64_MAX
#define DEADLINE_TICK_NS 1000000u /* deadlines are looked at so often; an answer is judged by its very time */

uint64_t now_ns;
enum phase phase = CONNECTING;
int epoll_fd;
struct addrinfo *address;
const struct protocol *protocol;
uint32_t ready_count, down_count;
static uint64_t phase_until = NEVER;
static struct connection *connections;
static uint32_t active_count;
static int timer_fd;
static uint64_t timer_ns = NEVER;
static volatile sig_atomic_t interrupted;

struct figures figures = {.window_from = NEVER, .window_until = NEVER};
static char verdict_buffer[TEXT_BYTES];
static uint64_t random_state, message_next, answers_seen;

static struct call *oldest, *newest; /* running calls, when they have a deadline */
static struct { uint64_t *times; uint64_t first, count, capacity; } arrivals; /* open loop: due and not yet started */
static uint64_t arrival_next = NEVER;
static bool answered; /* a call ended well since the window opened: perhaps only when it had closed */

uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t random_bits(void) { /* xorshift64* */
    random_state ^= random_state >> 12, random_state ^= random_state << 25, random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1Dull;
}

/* ---------------------------------------------------------------------------------------------- calls and answers */

const char *verdict_text(void) { return verdict_buffer; }

void answer_append(struct call *call, const uint8_t *data, size_t bytes) {
    if (call->answer_bytes + bytes > call->answer_capacity) {
        call->answer_capacity = 2 * (call->answer_bytes + bytes);
        call->answer = allocate(call->answer, call->answer_capacity);
    }
    if (bytes) memcpy(call->answer + call->answer_bytes, data, bytes);
    call->answer_bytes += bytes;
}

void answer_judge(struct call *call, const uint8_t *data, size_t bytes) {
    call->judged = true;
    call->verdict = OUTCOME_GOOD;
    if (!call->message->expectation || answers_seen++ % setup.check_every) return;
    figures.compared_count++;
    int met = expectation_met(call->message->expectation, data, bytes, verdict_buffer);
    if (met < 0) call->verdict = OUTCOME_VALUE;
    else figures.met_counts[met]++;
}

/* The slice in which a call should have started; NULL when none is kept. */
static struct slice *slice_of(uint64_t intended_ns) {
    if (!figures.slices || intended_ns < figures.window_from) return NULL;
    uint64_t index = (intended_ns - figures.window_from) / setup.slice_ns;
    return index < figures.slices_count ? &figures.slices[index] : NULL;
}

static bool in_window(uint64_t intended_ns) {
    return intended_ns >= figures.window_from && intended_ns < figures.window_until;
}

/* A call of the window failed. */
static void count_window(const struct call *call, enum outcome outcome, int grpc_status) {
    bool refused = grpc_status == 8 || grpc_status == 14; /* RESOURCE_EXHAUSTED, UNAVAILABLE */
    if (outcome == OUTCOME_HTTP_STATUS) refused = call->http_status == 429 || call->http_status == 503;
    if (refused) histogram_record(&figures.refused, now_ns - call->intended_ns);
    if (refused && grpc_status) figures.refused_counts[grpc_status]++;
    if (outcome == OUTCOME_LATE || grpc_status == 4) figures.late_count++; /* DEADLINE_EXCEEDED */
}

void call_end(struct connection *c, struct call *call, enum outcome outcome, int grpc_status, const char *text) {
    struct slice *slice = slice_of(call->intended_ns);
    if (setup.deadline_ns) {
        *(call->older ? &call->older->newer : &oldest) = call->newer;
        *(call->newer ? &call->newer->older : &newest) = call->older;
        if (outcome == OUTCOME_GOOD && now_ns > call->intended_ns + setup.deadline_ns) {
            outcome = OUTCOME_LATE;
            text = "answered after the deadline";
        }
    }
    if (outcome == OUTCOME_GOOD) {
        if (slice) slice_record(slice, now_ns - call->intended_ns);
        if (phase == MEASURING && now_ns < figures.window_until) figures.good_count++;
        if (phase >= MEASURING) answered = true;
        if (in_window(call->intended_ns)) histogram_record(&figures.latency, now_ns - call->intended_ns);
    } else {
        count_failure(outcome, text);
        if (slice) slice->failed_count++;
        if (in_window(call->intended_ns)) count_window(call, outcome, grpc_status);
        if (grpc_status) figures.grpc_status_counts[grpc_status > 0 && grpc_status < 17 ? grpc_status : 2]++;
    }
    call->stream_id = 0;
    call->free_next = c->free_calls;
    c->free_calls = call;
    c->active_count--;
    active_count--;
    if (setup.rate <= 0) c->waiting_count++;
}

static void call_start(struct connection *c, uint64_t intended_ns) {
    struct call *call = c->free_calls;
    if (call) {
        c->free_calls = call->free_next;
    } else {
        call = allocate(NULL, sizeof *call);
        *call = (struct call){0};
    }
    uint8_t *answer = call->answer;
    size_t answer_capacity = call->answer_capacity;
    uint64_t turn = setup.order_random ? random_bits() >> 16 : message_next++;
    *call = (struct call){.intended_ns = intended_ns, .connection = c, .message = &setup.messages[turn % setup.messages_count],
                          .answer = answer, .answer_capacity = answer_capacity};
    if (setup.deadline_ns) {
        call->older = newest;
        *(newest ? &newest->newer : &oldest) = call;
        newest = call;
    }
    c->active_count++;
    if (++active_count > figures.active_reached) figures.active_reached = active_count;
    protocol->start(c, call);
}

/* As gRPC's clients: what the socket does not take is not written for it, so that calls given up meanwhile never are. */
static inline bool has_room(const struct connection *c) {
    return c->ready && c->accepting && c->active_count < c->active_max && out_staged(c) < OUT_BYTES_MAX;
}

static void start_waiting(struct connection *c) {
    if (phase != WARMING && phase != MEASURING) return;
    for (; c->waiting_count && has_room(c); c->waiting_count--) call_start(c, now_ns);
}

static bool is_late(uint64_t intended_ns) { return intended_ns + setup.deadline_ns <= now_ns; }

/* Gives up the running calls whose deadline has passed. */
static void give_up_late(void) {
    for (struct call *call = oldest, *after; call && is_late(call->intended_ns); call = after) {
        after = call->newer;
        struct connection *c = call->connection;
        if (protocol->give_up) protocol->give_up(c, call);
    }
}

/* Open loop: draws what is due by now and starts it, on the connections in turn. The window's last calls as well, when
 * this program itself was kept from its turn until the window was over: nobody else would be charged with that. */
static void start_arrivals(void) {
    static uint32_t turn;
    static uint64_t held_back; /* the oldest arrivals that have been counted as such */
    while (arrival_next <= now_ns && arrival_next < figures.window_until) {
        if (arrivals.first + arrivals.count == arrivals.capacity) {
            uint64_t *moved = allocate(NULL, (2 * arrivals.count + 1024) * sizeof *moved);
            if (arrivals.count) memcpy(moved, arrivals.times + arrivals.first, arrivals.count * sizeof *moved);
            free(arrivals.times);
            arrivals.times = moved;
            arrivals.first = 0;
            arrivals.capacity = 2 * arrivals.count + 1024;
        }
        arrivals.times[arrivals.first + arrivals.count++] = arrival_next;
        if (in_window(arrival_next)) figures.due_count++;
        bool later = setup.later_rate > 0 && figures.window_from != NEVER &&
                     arrival_next >= figures.window_from + (uint64_t)(setup.later_s * 1e9);
        double uniform = ((double)(random_bits() >> 11) + 1.0) / 9007199254740993.0;
        arrival_next += (uint64_t)(-log(uniform) / (later ? setup.later_rate : setup.rate) * 1e9) + 1;
    }
    for (; setup.deadline_ns && arrivals.count && is_late(arrivals.times[arrivals.first]); arrivals.count--) {
        uint64_t intended_ns = arrivals.times[arrivals.first++];
        struct slice *slice = slice_of(intended_ns);
        if (slice) slice->failed_count++;
        if (in_window(intended_ns)) figures.late_count++, figures.unsent_count++;
        count_failure(OUTCOME_LATE, "not sent before the deadline");
        if (held_back) held_back--;
    }
    uint32_t full = 0;
    while (arrivals.count && active_count < setup.in_flight_max && full < setup.connections_count) {
        struct connection *c = &connections[turn++ % setup.connections_count];
        if (!has_room(c)) {
            full++;
            continue;
        }
        full = 0;
        uint64_t intended_ns = arrivals.times[arrivals.first++];
        arrivals.count--;
        if (held_back) held_back--;
        if (in_window(intended_ns)) histogram_record(&figures.start_delay, now_ns - intended_ns);
        call_start(c, intended_ns);
    }
    if (phase == MEASURING) figures.held_back_count += arrivals.count - held_back;
    held_back = arrivals.count;
}

/* ---------------------------------------------------------------------------------------------- the run's phases */

static void say(const char *event) {
    printf("{\"event\": \"%s\"}\n", event);
    fflush(stdout);
}

static void enter(enum phase next) {
    phase = next;
    phase_until = NEVER;
    if (next == WARMING) {
        phase_until = now_ns + (uint64_t)(setup.warmup_s * 1e9);
        if (setup.rate > 0) arrival_next = now_ns;
        for (uint32_t i = 0; i < setup.connections_count; i++) start_waiting(&connections[i]);
    } else if (next == MEASURING) {
        getrusage(RUSAGE_SELF, &figures.usage_from);
        figures.compared_count = figures.receives_count = figures.sends_count = 0;
        figures.received_bytes = figures.sent_bytes = 0;
        figures.window_from = now_ns = clock_ns();
        if (!setup.count) figures.window_until = phase_until = now_ns + (uint64_t)(setup.duration_s * 1e9);
        say("measuring"); /* who acts on it acts inside the window */
    } else if (next == DRAINING) {
        if (now_ns < figures.window_until) figures.window_until = now_ns; /* by number, or broken off */
        getrusage(RUSAGE_SELF, &figures.usage_until);
        say("measured");
        phase_until = now_ns + (uint64_t)(setup.drain_s * 1e9);
    }
}

static void advance(void) {
    if (phase == CONNECTING && ready_count == setup.connections_count) enter(WARMING);
    if (phase == WARMING && now_ns >= phase_until) enter(MEASURING);
    bool enough = setup.count && figures.good_count >= setup.count;
    if (phase == MEASURING && (now_ns >= phase_until || enough)) enter(DRAINING);
    bool broken_off = interrupted || (down_count == setup.connections_count && phase < DRAINING);
    if (phase == CONNECTING && (broken_off || now_ns >= phase_until)) {
        fprintf(stderr, "loadgen: %u of %u connections to %s:%s are ready %s\n", ready_count, setup.connections_count,
                setup.host, setup.port, figures.outcome_examples[OUTCOME_CONNECT]);
        exit(2);
    }
    if (broken_off && phase < DRAINING) {
        if (phase == WARMING) enter(MEASURING);
        enter(DRAINING);
    }
    bool startable = arrivals.count && down_count < setup.connections_count;
    if (phase == DRAINING && ((!active_count && !startable) || now_ns >= phase_until)) phase = OVER;
    if (interrupted > 1) phase = OVER;
}

static void arm_timer(void) {
    uint64_t arrival = arrival_next;
    if (setup.tick_ns && arrival != NEVER) arrival += setup.tick_ns - 1 - (arrival - 1) % setup.tick_ns;
    uint64_t wanted = phase_until < arrival || phase >= DRAINING ? phase_until : arrival;
    for (uint32_t i = 0; i < setup.connections_count && phase < DRAINING; i++)
        if (connections[i].retry_ns && connections[i].retry_ns < wanted) wanted = connections[i].retry_ns;
    if (setup.deadline_ns && (oldest || arrivals.count)) {
        uint64_t first = oldest ? oldest->intended_ns : NEVER;
        if (arrivals.count && arrivals.times[arrivals.first] < first) first = arrivals.times[arrivals.first];
        first += setup.deadline_ns;
        if (first <= now_ns) first = now_ns; /* one that cannot be given up */
        first += DEADLINE_TICK_NS - first % DEADLINE_TICK_NS;
        if (first < wanted) wanted = first;
    }
    if (wanted == timer_ns) return;
    timer_ns = wanted;
    struct itimerspec at = {0}; /* zero disarms it */
    if (wanted != NEVER)
        at.it_value = (struct timespec){(time_t)(wanted / 1000000000u), (long)(wanted % 1000000000u)};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static void turn(void) {
    struct epoll_event events[256];
    arm_timer();
    int count = epoll_wait(epoll_fd, events, 256, -1);
    now_ns = clock_ns();
    for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (!c) {
            timer_ns = NEVER; /* it fires once; setting it again also clears it */
            uint64_t expirations;
            if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN) perror("loadgen: timer");
            continue;
        }
        if (c->fd < 0) continue;
        if (c->connecting) connection_connected(c);
        else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) connection_read(c);
        start_waiting(c);
        connection_flush(c);
    }
    for (uint32_t i = 0; i < setup.connections_count && phase < DRAINING; i++)
        if (connections[i].retry_ns && connections[i].retry_ns <= now_ns) connection_open(&connections[i]);
    if (setup.deadline_ns) give_up_late();
    if (setup.rate > 0) start_arrivals();
    advance(); /* behind the arrivals: what is due by the window's end is drawn before it closes */
    for (uint32_t i = 0; i < setup.connections_count; i++)
        if (out_staged(&connections[i]) && !connections[i].writable_wanted) connection_flush(&connections[i]);
}

static void on_signal(int number) {
    (void)number;
    interrupted++;
}

int main(int argc, char **argv) {
    setup_read(argc, argv);
    protocol = setup.rest ? &protocol_http1 : &protocol_http2;
    random_state = setup.seed * 2654435769u + 88172645463325252ull;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    int error = getaddrinfo(setup.host, setup.port, &hints, &address);
    if (error) {
        fprintf(stderr, "loadgen: %s:%s: %s\n", setup.host, setup.port, gai_strerror(error));
        return 2;
    }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    now_ns = clock_ns();
    phase_until = now_ns + (uint64_t)(setup.connect_s * 1e9);
    if (setup.slice_ns) {
        figures.slices_count = (uint32_t)ceil(setup.duration_s * 1e9 / (double)setup.slice_ns);
        figures.slices = calloc(figures.slices_count, sizeof *figures.slices);
        if (!figures.slices) figures.slices_count = 0;
    }
    connections = allocate(NULL, setup.connections_count * sizeof *connections);
    for (uint32_t i = 0; i < setup.connections_count; i++) {
        struct connection *c = &connections[i];
        *c = (struct connection){.fd = -1, .in = allocate(NULL, IN_BYTES)};
        uint32_t share = setup.in_flight_max / setup.connections_count;
        if (setup.rate <= 0) c->waiting_count = share + (i < setup.in_flight_max % setup.connections_count);
        connection_open(c);
    }
    while (phase != OVER) turn();

    for (uint64_t i = 0; i < active_count + arrivals.count; i++)
        count_failure(OUTCOME_UNANSWERED, "no answer within the drain limit");
    uint64_t failures = figures_print();
    if (!answered) return 2;
    return failures && !setup.errors_allowed;
}
