/* What a run of the load generator found, printed as one line of JSON. */
#include <math.h>
#include <stdio.h>

#include "loadgen_stats.h"

typedef unsigned long long number;

static const char *const outcome_names[OUTCOMES_COUNT] = {
    "good", "connect", "closed", "goaway", "protocol", "reset", "http_status", "grpc_status", "length", "value",
    "late",
    "unanswered"};

void count_failure(enum outcome outcome, const char *text) {
    if (!figures.outcome_counts[outcome]++) snprintf(figures.outcome_examples[outcome], TEXT_BYTES, "%s", text);
}

static void print_text(const char *text) {
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') printf("\\%c", *text);
        else if ((unsigned char)*text < 32 || (unsigned char)*text > 126) printf("\\u%04x", (unsigned char)*text);
        else putchar(*text);
    }
    putchar('"');
}

static void print_quantile(const struct histogram *h, const char *name, double fraction) {
    printf("\"%s\": %.1f, ", name, (double)histogram_quantile(h, fraction) / 1e3);
}

static void print_histogram(const char *name, const struct histogram *h) {
    double mean_ns = h->count ? (double)h->sum / (double)h->count : 0.0;
    printf("\"%s\": {\"count\": %llu, \"min\": %.1f, ", name, (number)h->count, (double)h->min / 1e3);
    print_quantile(h, "p50", 0.5);
    print_quantile(h, "p90", 0.9);
    print_quantile(h, "p99", 0.99);
    print_quantile(h, "p99_9", 0.999);
    printf("\"mean\": %.1f, \"max\": %.1f}, ", mean_ns / 1e3, (double)h->max / 1e3);
}

/* Latency by share of calls, with ever finer steps towards the last call: 8 for each nine behind the point. */
static void print_curve(const struct histogram *h) {
    printf("\"latency_curve_us\": [");
    for (int step = 0; h->count; step++) {
        double above = pow(10.0, -step / 8.0);
        bool last = above * (double)h->count < 1.0;
        double share = last ? 1.0 : 1.0 - above;
        printf("%s[%.9g, %.1f]", step ? ", " : "", share, (double)histogram_quantile(h, share) / 1e3);
        if (last) break;
    }
    printf("], ");
}

static void print_met(void) {
    int count = ALTERNATIVES_MAX;
    while (count && !figures.met_counts[count - 1]) count--;
    printf("\"met\": [");
    for (int i = 0; i < count; i++) printf("%s%llu", i ? ", " : "", (number)figures.met_counts[i]);
    printf("], ");
}

static void print_slices(void) {
    if (!figures.slices) return;
    static const char *const names[] = {"good", "failed", "p50", "p99", "max"};
    printf("\"slices\": {\"ms\": %.3f", (double)setup.slice_ns / 1e6);
    for (int column = 0; column < 5; column++) {
        printf(", \"%s\": [", names[column]);
        for (uint32_t i = 0; i < figures.slices_count; i++) {
            const struct slice *s = &figures.slices[i];
            const char *comma = i ? ", " : "";
            if (column < 2) printf("%s%u", comma, column ? s->failed_count : s->good_count);
            else if (column == 4) printf("%s%.1f", comma, (double)s->max / 1e3);
            else printf("%s%.1f", comma, (double)slice_quantile(s, column == 2 ? 0.5 : 0.99) / 1e3);
        }
        printf("]");
    }
    printf("}, ");
}

static void print_window(void) {
    const struct figures *f = &figures;
    const char *comma = "";
    printf("\"due\": %llu, \"late\": %llu, \"unsent\": %llu, \"refused_by_grpc_status\": {", (number)f->due_count,
           (number)f->late_count, (number)f->unsent_count);
    for (int i = 1; i < 17; i++) {
        if (!f->refused_counts[i]) continue;
        printf("%s\"%d\": %llu", comma, i, (number)f->refused_counts[i]);
        comma = ", ";
    }
    printf("}, ");
}

static double seconds(struct timeval t) { return (double)t.tv_sec + (double)t.tv_usec / 1e6; }

static double ratio(double a, double b) { return b > 0 ? a / b : 0.0; }

uint64_t figures_print(void) {
    const struct figures *f = &figures;
    double window_s = (double)(f->window_until - f->window_from) / 1e9, calls = (double)f->good_count;
    double user_us = 1e6 * (seconds(f->usage_until.ru_utime) - seconds(f->usage_from.ru_utime));
    double system_us = 1e6 * (seconds(f->usage_until.ru_stime) - seconds(f->usage_from.ru_stime));
    uint64_t failures = 0;
    for (int i = 1; i < OUTCOMES_COUNT; i++) failures += f->outcome_counts[i];

    printf("{\"event\": \"result\", \"loop\": \"%s\", ", setup.rate > 0 ? "open" : "closed");
    printf("\"calls\": %llu, \"seconds\": %.6f, \"calls_per_second\": %.1f, ", (number)f->good_count, window_s,
           ratio(calls, window_s));
    print_histogram("latency_us", &f->latency);
    print_histogram("start_delay_us", &f->start_delay);
    print_histogram("refused_us", &f->refused);
    print_window();
    printf("\"cpu_us_per_call\": %.3f, \"cpu_user_us_per_call\": %.3f, \"cpu_system_us_per_call\": %.3f, ",
           ratio(user_us + system_us, calls), ratio(user_us, calls), ratio(system_us, calls));
    printf("\"calls_per_receive\": %.2f, \"calls_per_send\": %.2f, ", ratio(calls, (double)f->receives_count),
           ratio(calls, (double)f->sends_count));
    printf("\"sent_bytes\": %llu, \"received_bytes\": %llu, ", (number)f->sent_bytes, (number)f->received_bytes);
    printf("\"in_flight_reached\": %u, \"compared\": %llu, \"failures\": %llu, ", f->active_reached,
           (number)f->compared_count, (number)failures);

    /* CLOCK_MONOTONIC, as Python's time.monotonic(): so that events of other programs can be put beside the slices. */
    printf("\"window_from_s\": %.6f, \"held_back\": %llu, ", (double)f->window_from / 1e9,
           (number)f->held_back_count);
    print_curve(&f->latency);
    print_met();
    print_slices();

    const char *comma = "";
    printf("\"failures_by_kind\": {");
    for (int i = 1; i < OUTCOMES_COUNT; i++) {
        if (!f->outcome_counts[i]) continue;
        printf("%s\"%s\": %llu", comma, outcome_names[i], (number)f->outcome_counts[i]);
        comma = ", ";
    }
    comma = "";
    printf("}, \"failures_by_grpc_status\": {");
    for (int i = 1; i < 17; i++) {
        if (!f->grpc_status_counts[i]) continue;
        printf("%s\"%d\": %llu", comma, i, (number)f->grpc_status_counts[i]);
        comma = ", ";
    }
    comma = "";
    printf("}, \"examples\": {");
    for (int i = 1; i < OUTCOMES_COUNT; i++) {
        if (!f->outcome_counts[i]) continue;
        printf("%s\"%s\": ", comma, outcome_names[i]);
        print_text(f->outcome_examples[i]);
        comma = ", ";
        fprintf(stderr, "loadgen: %llu x %s, for example: %s\n", (number)f->outcome_counts[i], outcome_names[i],
                f->outcome_examples[i]);
    }
    printf("}}\n");
    return failures;
}
