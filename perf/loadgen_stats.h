/* What a run counts, and a latency histogram of constant size: linear buckets inside each power of two, so that the
 * error stays below 1 / (2 * HISTOGRAM_PARTS) = 0.4 % of the value from nanoseconds to hours, and recording is a
 * handful of instructions. */
#ifndef LOADGEN_STATS_H
#define LOADGEN_STATS_H

#include <stdint.h>
#include <sys/resource.h>

#include "loadgen.h"

#define HISTOGRAM_BITS 7
#define HISTOGRAM_PARTS (1 << HISTOGRAM_BITS)
#define HISTOGRAM_BUCKETS ((64 - HISTOGRAM_BITS + 1) * HISTOGRAM_PARTS)

struct histogram {
    uint64_t buckets[HISTOGRAM_BUCKETS];
    uint64_t count, sum, min, max;
};

static inline uint32_t histogram_bucket(uint64_t value) {
    if (value < HISTOGRAM_PARTS) return (uint32_t)value;
    uint32_t shift = 63 - (uint32_t)__builtin_clzll(value) - HISTOGRAM_BITS;
    return (shift << HISTOGRAM_BITS) + (uint32_t)(value >> shift);
}

/* The middle of a bucket. */
static inline uint64_t histogram_value(uint32_t bucket) {
    if (bucket < 2 * HISTOGRAM_PARTS) return bucket;
    uint32_t shift = (bucket >> HISTOGRAM_BITS) - 1;
    uint64_t part = (bucket & (HISTOGRAM_PARTS - 1)) | HISTOGRAM_PARTS;
    return (part << shift) + (1ull << shift) / 2;
}

static inline void histogram_record(struct histogram *h, uint64_t value) {
    h->buckets[histogram_bucket(value)]++;
    if (!h->count++ || value < h->min) h->min = value;
    if (value > h->max) h->max = value;
    h->sum += value;
}

/* The smallest recorded value that at least `fraction` of all do not exceed; 0 when nothing was recorded. */
static inline uint64_t histogram_quantile(const struct histogram *h, double fraction) {
    if (!h->count) return 0;
    double exact = fraction * (double)h->count;
    uint64_t wanted = (uint64_t)exact;
    if ((double)wanted < exact) wanted++;
    if (!wanted) wanted = 1;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen < wanted) continue;
        uint64_t value = histogram_value(i);
        return value > h->max ? h->max : value < h->min ? h->min : value;
    }
    return h->max;
}

/* What became of the calls that should have started in one slice of the window. Coarser than `histogram`, so that
 * thousands of slices stay small: 1/16 of a power of two, an error below 3.2 %. The largest latency is exact. */
#define SLICE_BITS 4
#define SLICE_BUCKETS 640

struct slice {
    uint32_t good_count, failed_count;
    uint64_t max;
    uint32_t buckets[SLICE_BUCKETS];
};

static inline void slice_record(struct slice *s, uint64_t value) {
    s->good_count++;
    if (value > s->max) s->max = value;
    uint32_t shift = value >> SLICE_BITS ? 63 - (uint32_t)__builtin_clzll(value) - SLICE_BITS : 0;
    uint32_t bucket = (shift << SLICE_BITS) + (uint32_t)(value >> shift);
    s->buckets[bucket < SLICE_BUCKETS ? bucket : SLICE_BUCKETS - 1]++;
}

/* 0 when nothing was recorded. */
static inline uint64_t slice_quantile(const struct slice *s, double fraction) {
    double wanted = fraction * s->good_count;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < SLICE_BUCKETS && s->good_count; i++) {
        seen += s->buckets[i];
        if (!seen || (double)seen < wanted) continue;
        uint32_t shift = i < 2u << SLICE_BITS ? 0 : (i >> SLICE_BITS) - 1;
        uint64_t low = (uint64_t)(shift ? (i & ((1u << SLICE_BITS) - 1)) | (1u << SLICE_BITS) : i) << shift;
        uint64_t value = low + (1ull << shift) / 2;
        return value < s->max ? value : s->max;
    }
    return s->max;
}

struct figures {
    uint64_t window_from, window_until;       /* the measured window; UINT64_MAX before it is known */
    struct histogram latency, start_delay;    /* of calls that should have started inside the window */
    struct histogram refused;                 /* likewise: until RESOURCE_EXHAUSTED, UNAVAILABLE, HTTP 429 or 503 */
    uint64_t due_count, late_count, unsent_count; /* likewise; unsent: late ones that there was no room to start */
    uint64_t refused_counts[17];              /* likewise, by grpc-status */
    uint64_t good_count;                      /* ended inside the window */
    uint64_t compared_count, received_bytes, sent_bytes, receives_count, sends_count; /* in window and drain */
    uint32_t active_reached;
    uint64_t held_back_count; /* open loop: due in the window, sent later because of --in_flight */
    uint64_t met_counts[ALTERNATIVES_MAX]; /* compared answers by the alternative that they met, of the whole run */
    struct slice *slices;                  /* of the window; NULL: none are kept */
    uint32_t slices_count;
    uint64_t outcome_counts[OUTCOMES_COUNT], grpc_status_counts[17]; /* of the whole run */
    char outcome_examples[OUTCOMES_COUNT][TEXT_BYTES];
    struct rusage usage_from, usage_until;
};

extern struct figures figures;

void count_failure(enum outcome outcome, const char *text);
uint64_t figures_print(void); /* returns how many calls failed */

#endif
