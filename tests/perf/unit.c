/* The load generator's pure parts on a command line, for tests/perf/test_loadgen_parts.py.
 *
 *   unit quantiles 0.5 0.99 ... < values      one quantile a line, of the numbers read
 *   unit slices 0.5 0.99 ... < values         the same of the coarser one that each slice of time has
 *   unit compare predict EXPECTED... ANSWER   "same" ("same as 1": as the second one expected), or what differs
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../perf/loadgen.h"
#include "../../perf/loadgen_stats.h"

struct figures figures;
static struct histogram histogram;
static struct slice slice;

void *allocate(void *old, size_t bytes) {
    void *memory = realloc(old, bytes);
    if (!memory) abort();
    return memory;
}

/* In a block of exactly its size, so that a sanitizer sees the first byte read behind it. */
static uint8_t *read_whole(const char *path, size_t *bytes) {
    static uint8_t buffer[1 << 20];
    FILE *file = fopen(path, "rb");
    if (!file) abort();
    *bytes = fread(buffer, 1, sizeof buffer, file);
    fclose(file);
    uint8_t *exact = allocate(NULL, *bytes + !*bytes);
    memcpy(exact, buffer, *bytes);
    return exact;
}

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "quantiles")) {
        unsigned long long value;
        while (scanf("%llu", &value) == 1) histogram_record(&histogram, value);
        for (int i = 2; i < argc; i++)
            printf("%llu\n", (unsigned long long)histogram_quantile(&histogram, atof(argv[i])));
        return 0;
    }
    if (argc > 2 && !strcmp(argv[1], "slices")) {
        unsigned long long value;
        while (scanf("%llu", &value) == 1) slice_record(&slice, value);
        for (int i = 2; i < argc; i++) printf("%llu\n", (unsigned long long)slice_quantile(&slice, atof(argv[i])));
        return 0;
    }
    if (argc >= 5 && !strcmp(argv[1], "compare")) {
        char why[TEXT_BYTES] = "";
        size_t answer_bytes;
        uint8_t *answer = read_whole(argv[argc - 1], &answer_bytes), *expected[ALTERNATIVES_MAX];
        enum comparison comparison = !strcmp(argv[2], "exact") ? COMPARE_EXACT
                                     : !strcmp(argv[2], "json") ? COMPARE_JSON
                                     : !strcmp(argv[2], "floats") ? COMPARE_FLOATS
                                                                : COMPARE_PREDICT;
        struct tolerance tolerance = {1e-4, 1e-6};
        struct expectation *x = NULL;
        for (int i = 3; i < argc - 1; i++) {
            size_t bytes;
            expected[i - 3] = read_whole(argv[i], &bytes);
            struct expectation *one = expectation_new(comparison, tolerance, expected[i - 3], bytes, why);
            if (x && one) expectation_or(x, one);
            else if (!x) x = one;
        }
        int met = x ? expectation_met(x, answer, answer_bytes, why) : -1;
        if (met > 0) printf("same as %d\n", met);
        else puts(met ? why : "same");
        expectation_free(x);
        for (int i = 3; i < argc - 1; i++) free(expected[i - 3]);
        free(answer);
        return 0;
    }
    return 2;
}
