/* The command line of the load generator, and the message files it names. */
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen.h"

struct setup setup = {
    .host = "127.0.0.1",
    .path = "/tensorflow.serving.PredictionService/Predict",
    .content_type = "application/json",
    .connections_count = 1,
    .in_flight_max = 1,
    .warmup_s = 0,
    .duration_s = 5,
    .drain_s = 10,
    .connect_s = 10,
    .seed = 1,
    .check_every = 1,
};

void *allocate(void *old, size_t bytes) {
    void *memory = realloc(old, bytes);
    if (memory) return memory;
    fputs("loadgen: out of memory\n", stderr);
    exit(2);
}

static const char usage[] =
    "loadgen: calls one gRPC method (or REST URL) as fast as asked, checks the answers, prints the figures as JSON\n"
    "  --host=127.0.0.1 --port=N\n"
    "  --path=PATH                  default: Predict of TensorFlow Serving's PredictionService\n"
    "  --authority=TEXT             default: host:port\n"
    "  --rest                       HTTP/1.1 POST to --path, one connection per call in flight\n"
    "  --request=FILE               body of a request (protobuf, or JSON with --rest); repeat for several\n"
    "  --expect=FILE                expected answer of the request before it; repeat for answers that are as good\n"
    "  --content_type=application/json --header='NAME: VALUE'   with --rest; --header may be repeated\n"
    "  --compare=exact|predict|json|floats how to compare; default: predict, with --rest json; floats: the answer ends\n"
    "                               with the little-endian float32 of --expect, whatever comes before them\n"
    "  --float_tolerance=1e-4       relative; --float_floor=1e-6 is added to it (absolute)\n"
    "  --check_every=1              compare every so many answers (their status is checked always)\n"
    "  --order=turn|random          order of the request bodies\n"
    "  --connections=1 --in_flight=1   in flight over all connections; with --rate an upper bound\n"
    "  --rate=N                     open loop: Poisson arrivals, latency from when a call should have started\n"
    "  --tick_us=0                  open loop: wake for arrivals at most so often; cheaper, and counts as latency\n"
    "  --slice_ms=0                 latency and failures of each such slice of the measured duration, too\n"
    "  --warmup_s=0 --duration_s=5 --count=N   measure for a duration, or for so many calls\n"
    "  --drain_s=10 --connect_s=10  how long to wait for the last answers, for connections\n"
    "  --deadline_ms=0              of every call, from when it should have started: sent as grpc-timeout, given up and\n"
    "                               counted as late when it has passed\n"
    "  --later_s=S --later_rate=N   open loop: this rate from the second S of the measured window on\n"
    "  --grpc_timeout=100m          deadline sent with every call, in gRPC's notation\n"
    "  --seed=1 --reconnect --allow_errors\n"
    "Exit status: 0, 1 if any call failed (0 with --allow_errors), 2 if nothing could be measured.\n";

static void __attribute__((noreturn, format(printf, 1, 2))) refuse(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\nTry --help.\n", stderr);
    va_end(arguments);
    exit(2);
}

static uint8_t *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file) refuse("cannot open %s", path);
    fseek(file, 0, SEEK_END);
    long end = ftell(file);
    rewind(file);
    if (end < 0) refuse("cannot read %s", path);
    uint8_t *data = allocate(NULL, (size_t)end + 1);
    if (fread(data, 1, (size_t)end, file) != (size_t)end) refuse("cannot read %s", path);
    data[end] = 0;
    fclose(file);
    *bytes = (size_t)end;
    return data;
}

static double number(const char *option, const char *text, double smallest) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= smallest) || value > 1e15)
        refuse("--%s=%s is not a number of at least %g", option, text, smallest);
    return value;
}

static void add_head(struct message *m, const uint8_t *body, size_t body_bytes) {
    char head[4096];
    int head_bytes = 5;
    if (setup.rest) {
        head_bytes = snprintf(head, sizeof head,
                              "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\n%sContent-Length: %zu\r\n\r\n",
                              setup.path, setup.authority, setup.content_type, setup.headers, body_bytes);
        if ((size_t)head_bytes >= sizeof head) refuse("the head of a request holds %zu bytes at most", sizeof head);
    } else {
        if (body_bytes > UINT32_MAX) refuse("a gRPC message holds 4 GiB at most");
        head[0] = 0;
        for (int i = 0; i < 4; i++) head[1 + i] = (char)(body_bytes >> (24 - 8 * i));
    }
    m->wire_bytes = (size_t)head_bytes + body_bytes;
    m->wire = allocate(NULL, m->wire_bytes + 1);
    memcpy(m->wire, head, (size_t)head_bytes);
    if (body_bytes) memcpy(m->wire + head_bytes, body, body_bytes);
}

/* expects[i], of expects_count: a file with an answer for the message expects_of[i]; in the messages' order. */
static void read_messages(char **requests, char **expects, const uint32_t *expects_of, uint32_t expects_count,
                          enum comparison comparison, struct tolerance tolerance) {
    uint32_t next = 0;
    setup.messages = allocate(NULL, setup.messages_count * sizeof *setup.messages);
    for (uint32_t i = 0; i < setup.messages_count; i++) {
        struct message *m = &setup.messages[i];
        size_t bytes;
        uint8_t *body = read_file(requests[i], &bytes);
        add_head(m, body, bytes);
        free(body);
        m->expectation = NULL;
        for (uint32_t of_this = 0; next < expects_count && expects_of[next] == i; next++, of_this++) {
            char why[TEXT_BYTES];
            uint8_t *expected = read_file(expects[next], &bytes);
            struct expectation *one = expectation_new(comparison, tolerance, expected, bytes, why);
            if (!one) refuse("%s: %s", expects[next], why);
            if (of_this == ALTERNATIVES_MAX) refuse("more than %d times --expect for a request", ALTERNATIVES_MAX);
            if (m->expectation) expectation_or(m->expectation, one);
            else m->expectation = one;
        }
    }
}

static enum comparison comparison_named(const char *name) {
    if (!strcmp(name, "exact")) return COMPARE_EXACT;
    if (!strcmp(name, "predict")) return COMPARE_PREDICT;
    if (!strcmp(name, "json")) return COMPARE_JSON;
    if (!strcmp(name, "floats")) return COMPARE_FLOATS;
    refuse("--compare=%s: exact, predict, json or floats", name);
}

static void add_header(const char *line) {
    size_t used = strlen(setup.headers);
    int bytes = snprintf(setup.headers + used, sizeof setup.headers - used, "%s\r\n", line);
    if ((size_t)bytes >= sizeof setup.headers - used) refuse("--header: %zu bytes at most", sizeof setup.headers);
}

void setup_read(int argc, char **argv) {
    enum { HOST = 1, PORT, PATH, AUTHORITY, REST, REQUEST, EXPECT, COMPARE, TOLERANCE, FLOOR, CHECK_EVERY, ORDER,
           CONNECTIONS, IN_FLIGHT, RATE, WARMUP, DURATION, COUNT, DRAIN, CONNECT, TIMEOUT, SEED, RECONNECT, ALLOW,
           TICK, SLICE, DEADLINE, LATER_S, LATER_RATE, CONTENT_TYPE, HEADER, HELP };
    static const struct option options[] = {
        {"host", 1, NULL, HOST}, {"port", 1, NULL, PORT}, {"path", 1, NULL, PATH}, {"authority", 1, NULL, AUTHORITY},
        {"rest", 0, NULL, REST}, {"request", 1, NULL, REQUEST}, {"expect", 1, NULL, EXPECT},
        {"compare", 1, NULL, COMPARE}, {"float_tolerance", 1, NULL, TOLERANCE}, {"float_floor", 1, NULL, FLOOR},
        {"check_every", 1, NULL, CHECK_EVERY}, {"order", 1, NULL, ORDER}, {"connections", 1, NULL, CONNECTIONS},
        {"in_flight", 1, NULL, IN_FLIGHT}, {"rate", 1, NULL, RATE}, {"warmup_s", 1, NULL, WARMUP},
        {"duration_s", 1, NULL, DURATION}, {"count", 1, NULL, COUNT}, {"drain_s", 1, NULL, DRAIN},
        {"connect_s", 1, NULL, CONNECT}, {"grpc_timeout", 1, NULL, TIMEOUT}, {"seed", 1, NULL, SEED},
        {"reconnect", 0, NULL, RECONNECT}, {"allow_errors", 0, NULL, ALLOW}, {"tick_us", 1, NULL, TICK},
        {"slice_ms", 1, NULL, SLICE},
        {"deadline_ms", 1, NULL, DEADLINE}, {"later_s", 1, NULL, LATER_S}, {"later_rate", 1, NULL, LATER_RATE},
        {"content_type", 1, NULL, CONTENT_TYPE}, {"header", 1, NULL, HEADER}, {"help", 0, NULL, HELP}, {0}};
    char **requests = allocate(NULL, (size_t)argc * sizeof *requests);
    char **expects = allocate(NULL, (size_t)argc * sizeof *expects);
    uint32_t *expects_of = allocate(NULL, (size_t)argc * sizeof *expects_of), expects_count = 0;
    enum comparison comparison = COMPARE_NONE;
    struct tolerance tolerance = {1e-4, 1e-6};
    int got, index;
    while ((got = getopt_long(argc, argv, "", options, &index)) != -1) {
        if (got == '?') refuse("see above");
        const char *name = options[index].name;
        switch (got) {
        case HOST: setup.host = optarg; break;
        case PORT: setup.port = optarg; break;
        case PATH: setup.path = optarg; break;
        case AUTHORITY: setup.authority = optarg; break;
        case REST: setup.rest = true; break;
        case REQUEST: requests[setup.messages_count++] = optarg; break;
        case EXPECT:
            if (!setup.messages_count) refuse("--expect comes behind its --request");
            expects_of[expects_count] = setup.messages_count - 1;
            expects[expects_count++] = optarg;
            break;
        case COMPARE: comparison = comparison_named(optarg); break;
        case TOLERANCE: tolerance.relative = number(name, optarg, 0); break;
        case FLOOR: tolerance.absolute = number(name, optarg, 0); break;
        case CHECK_EVERY: setup.check_every = (uint64_t)number(name, optarg, 1); break;
        case ORDER:
            if (strcmp(optarg, "turn") && strcmp(optarg, "random")) refuse("--order=%s: turn or random", optarg);
            setup.order_random = *optarg == 'r';
            break;
        case CONNECTIONS: setup.connections_count = (uint32_t)number(name, optarg, 1); break;
        case IN_FLIGHT: setup.in_flight_max = (uint32_t)number(name, optarg, 1); break;
        case RATE: setup.rate = number(name, optarg, 1e-3); break;
        case WARMUP: setup.warmup_s = number(name, optarg, 0); break;
        case DURATION: setup.duration_s = number(name, optarg, 1e-3); break;
        case COUNT: setup.count = (uint64_t)number(name, optarg, 1); break;
        case DRAIN: setup.drain_s = number(name, optarg, 0); break;
        case CONNECT: setup.connect_s = number(name, optarg, 0); break;
        case TIMEOUT: setup.grpc_timeout = optarg; break;
        case SEED: setup.seed = (uint64_t)number(name, optarg, 0); break;
        case RECONNECT: setup.reconnect = true; break;
        case ALLOW: setup.errors_allowed = true; break;
        case TICK: setup.tick_ns = (uint64_t)(number(name, optarg, 0) * 1e3); break;
        case SLICE: setup.slice_ns = (uint64_t)(number(name, optarg, 0) * 1e6); break;
        case DEADLINE: setup.deadline_ns = (uint64_t)(number(name, optarg, 0) * 1e6); break;
        case LATER_S: setup.later_s = number(name, optarg, 0); break;
        case LATER_RATE: setup.later_rate = number(name, optarg, 1e-3); break;
        case CONTENT_TYPE: setup.content_type = optarg; break;
        case HEADER: add_header(optarg); break;
        case HELP: fputs(usage, stdout); exit(0);
        default: refuse("unknown option");
        }
    }
    if (optind < argc) refuse("what is %s?", argv[optind]);
    if (!setup.port) refuse("--port is missing");
    if (!setup.messages_count) refuse("--request is missing");
    if (setup.slice_ns && setup.count) refuse("--slice_ms goes with --duration_s, not with --count");
    if (setup.slice_ns && setup.duration_s * 1e9 / (double)setup.slice_ns > SLICES_MAX)
        refuse("more than %d slices", SLICES_MAX);
    if (setup.later_rate > 0 && setup.rate <= 0) refuse("--later_rate goes with --rate");
    if (setup.deadline_ns && !setup.rest && !setup.grpc_timeout) {
        static char timeout[16];
        bool fits = setup.deadline_ns < 100000000000ull; /* eight digits of microseconds */
        uint64_t number = setup.deadline_ns / (fits ? 1000 : 1000000);
        snprintf(timeout, sizeof timeout, "%llu%c", (unsigned long long)(number ? number : 1), fits ? 'u' : 'm');
        setup.grpc_timeout = timeout;
    }
    if (setup.rest) setup.connections_count = setup.in_flight_max;
    if (setup.connections_count > setup.in_flight_max) refuse("more connections than calls in flight");
    if (!setup.authority) {
        char *authority = allocate(NULL, strlen(setup.host) + strlen(setup.port) + 4);
        bool bare_ipv6 = strchr(setup.host, ':') != NULL;
        sprintf(authority, bare_ipv6 ? "[%s]:%s" : "%s:%s", setup.host, setup.port);
        setup.authority = authority;
    }
    if (strlen(setup.path) + strlen(setup.authority) + strlen(setup.grpc_timeout ? setup.grpc_timeout : "") > 3000)
        refuse("path, authority and timeout are too long");
    if (comparison == COMPARE_NONE) comparison = setup.rest ? COMPARE_JSON : COMPARE_PREDICT;
    read_messages(requests, expects, expects_of, expects_count, comparison, tolerance);
    free(requests);
    free(expects);
    free(expects_of);
}
