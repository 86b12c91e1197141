/* The load generator's pure parts on a command line, for tests/perf/test_loadgen_parts.py.
 *
 *   unit quantiles 0.5 0.99 ... < values      one quantile a line, of the numbers read
 *   unit compare predict EXPECTED ANSWER      "same", or what differs
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../perf/loadgen.h"
#include "../../perf/loadgen_stats.h"

struct figures figures;
static struct histogram histogram;

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
    if (argc == 5 && !strcmp(argv[1], "compare")) {
        char why[TEXT_BYTES] = "";
        size_t expected_bytes, answer_bytes;
        uint8_t *expected = read_whole(argv[3], &expected_bytes), *answer = read_whole(argv[4], &answer_bytes);
        enum comparison comparison = !strcmp(argv[2], "exact") ? COMPARE_EXACT
                                     : !strcmp(argv[2], "json") ? COMPARE_JSON
                                                                : COMPARE_PREDICT;
        struct tolerance tolerance = {1e-4, 1e-6};
        struct expectation *x = expectation_new(comparison, tolerance, expected, expected_bytes, why);
        puts(!x ? why : expectation_met(x, answer, answer_bytes, why) ? "same" : why);
        if (x) expectation_free(x);
        free(expected);
        free(answer);
        return 0;
    }
    return 2;
}
