/* Is an answer the expected one? Floats within a tolerance, everything else exactly.
 *
 * Batching changes the last bits of a float, so answers cannot be compared byte for byte; and a server may order the
 * fields of a message as it likes, or send values packed, unpacked or as tensor_content. So a PredictResponse is
 * compared by meaning: the same outputs with the same dtype and shape, float and double values within the tolerance,
 * the bytes of other tensors equal, the same model name, version and signature. One walk over some thirty tags costs
 * less than a tenth of a microsecond per output. JSON is compared token by token, numbers within the tolerance. Of a
 * body in another binary form (npy, Open Inference) the float32 values at its end are compared.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen.h"

#define OUTPUTS_MAX 32
#define RANK_MAX 16

enum { DT_FLOAT = 1, DT_DOUBLE = 2 };

struct span {
    const uint8_t *data;
    size_t bytes;
};

struct tensor {
    struct span alias, whole; /* whole: the TensorProto, for dtypes that are compared as bytes */
    uint64_t dtype;
    uint32_t rank;
    uint64_t shape[RANK_MAX];
    struct span values;  /* little-endian floats or doubles */
    uint8_t *gathered;   /* owns the values when they came in pieces */
};

struct predict_response {
    struct span model, signature;
    uint64_t version;
    uint32_t outputs_count;
    struct tensor outputs[OUTPUTS_MAX];
};

struct expectation {
    enum comparison comparison;
    struct tolerance tolerance;
    struct span body;
    struct predict_response response;
    struct expectation *other; /* the next alternative */
};

/* ------------------------------------------------------------------------------------------------- protobuf walk */

struct field {
    uint32_t number, wire_type;
    uint64_t integer;
    struct span content; /* wire types 1, 2, 5 */
};

static bool read_varint(struct span *s, uint64_t *value) {
    *value = 0;
    for (unsigned shift = 0; shift < 64 && s->bytes; shift += 7) {
        uint8_t byte = *s->data++;
        s->bytes--;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return true;
    }
    return false;
}

/* 1: a field was read; 0: the end; -1: malformed */
static int read_field(struct span *s, struct field *f) {
    if (!s->bytes) return 0;
    uint64_t tag, bytes;
    if (!read_varint(s, &tag)) return -1;
    f->number = (uint32_t)(tag >> 3);
    f->wire_type = tag & 7;
    f->content = (struct span){0};
    switch (f->wire_type) {
    case 0: return read_varint(s, &f->integer) ? 1 : -1;
    case 1: bytes = 8; break;
    case 2:
        if (!read_varint(s, &bytes)) return -1;
        break;
    case 5: bytes = 4; break;
    default: return -1;
    }
    if (bytes > s->bytes) return -1;
    f->content = (struct span){s->data, (size_t)bytes};
    s->data += bytes;
    s->bytes -= (size_t)bytes;
    return 1;
}

static void add_values(struct tensor *t, struct span piece) {
    if (!t->values.bytes) {
        t->values = piece;
        return;
    }
    uint8_t *joined = allocate(NULL, t->values.bytes + piece.bytes);
    memcpy(joined, t->values.data, t->values.bytes);
    memcpy(joined + t->values.bytes, piece.data, piece.bytes);
    free(t->gathered);
    t->gathered = joined;
    t->values = (struct span){joined, t->values.bytes + piece.bytes};
}

static bool read_shape(struct tensor *t, struct span s) {
    struct field f, inner;
    int got, got_inner;
    while ((got = read_field(&s, &f)) > 0) {
        if (f.number != 2 || f.wire_type != 2) continue;
        if (t->rank == RANK_MAX) return false;
        uint64_t size = 0; /* proto3 leaves a zero out */
        while ((got_inner = read_field(&f.content, &inner)) > 0)
            if (inner.number == 1 && inner.wire_type == 0) size = inner.integer;
        if (got_inner < 0) return false;
        t->shape[t->rank++] = size;
    }
    return got == 0;
}

static bool read_tensor(struct tensor *t, struct span s) {
    struct field f;
    int got;
    t->whole = s;
    while ((got = read_field(&s, &f)) > 0) {
        if (f.number == 1 && f.wire_type == 0) t->dtype = f.integer;
        else if (f.number == 2 && f.wire_type == 2 && !read_shape(t, f.content)) return false;
        else if (f.number == 4 && f.wire_type == 2 && (t->dtype == DT_FLOAT || t->dtype == DT_DOUBLE))
            add_values(t, f.content);
        else if (f.number == 5 && (f.wire_type == 2 || f.wire_type == 5)) add_values(t, f.content);
        else if (f.number == 6 && (f.wire_type == 2 || f.wire_type == 1)) add_values(t, f.content);
    }
    return got == 0;
}

static bool read_model_spec(struct predict_response *r, struct span s) {
    struct field f, inner;
    int got, got_inner;
    while ((got = read_field(&s, &f)) > 0) {
        if (f.wire_type != 2) continue;
        if (f.number == 1) r->model = f.content;
        if (f.number == 3) r->signature = f.content;
        if (f.number != 2) continue;
        while ((got_inner = read_field(&f.content, &inner)) > 0)
            if (inner.number == 1 && inner.wire_type == 0) r->version = inner.integer;
        if (got_inner < 0) return false;
    }
    return got == 0;
}

static bool read_response(struct predict_response *r, struct span s) {
    struct field f, inner;
    int got, got_inner;
    r->model = r->signature = (struct span){0};
    r->version = 0;
    r->outputs_count = 0;
    while ((got = read_field(&s, &f)) > 0) {
        if (f.wire_type != 2) return false;
        if (f.number == 2 && !read_model_spec(r, f.content)) return false;
        if (f.number != 1) continue;
        if (r->outputs_count == OUTPUTS_MAX) return false;
        struct tensor *t = &r->outputs[r->outputs_count++];
        *t = (struct tensor){0};
        while ((got_inner = read_field(&f.content, &inner)) > 0) {
            if (inner.number == 1) t->alias = inner.content;
            if (inner.number == 2 && !read_tensor(t, inner.content)) return false;
        }
        if (got_inner < 0) return false;
    }
    return got == 0;
}

static void release_response(struct predict_response *r) {
    for (uint32_t i = 0; i < r->outputs_count; i++) free(r->outputs[i].gathered);
}

/* ------------------------------------------------------------------------------------------------------ comparing */

static bool same(struct span a, struct span b) {
    return a.bytes == b.bytes && (!a.bytes || !memcmp(a.data, b.data, a.bytes));
}

static bool close_to(double actual, double expected, struct tolerance tolerance) {
    if (actual == expected || (isnan(actual) && isnan(expected))) return true;
    if (isinf(expected)) return false; /* a share of infinity would let anything pass */
    return fabs(actual - expected) <= tolerance.absolute + tolerance.relative * fabs(expected);
}

static double value_at(struct span values, uint64_t dtype, size_t i) {
    if (dtype == DT_DOUBLE) {
        double wide;
        memcpy(&wide, values.data + 8 * i, sizeof wide);
        return wide;
    }
    float narrow;
    memcpy(&narrow, values.data + 4 * i, sizeof narrow);
    return narrow;
}

static bool same_tensor(const struct tensor *e, const struct tensor *a, struct tolerance tolerance, char *why) {
    int alias_bytes = (int)e->alias.bytes;
    const char *alias = (const char *)e->alias.data;
    if (a->dtype != e->dtype) {
        snprintf(why, TEXT_BYTES, "output %.*s has dtype %llu, not %llu", alias_bytes, alias,
                 (unsigned long long)a->dtype, (unsigned long long)e->dtype);
        return false;
    }
    if (e->dtype != DT_FLOAT && e->dtype != DT_DOUBLE) {
        if (same(a->whole, e->whole)) return true;
        snprintf(why, TEXT_BYTES, "output %.*s has other bytes than expected", alias_bytes, alias);
        return false;
    }
    if (a->rank != e->rank || memcmp(a->shape, e->shape, e->rank * sizeof e->shape[0])) {
        snprintf(why, TEXT_BYTES, "output %.*s has another shape than expected", alias_bytes, alias);
        return false;
    }
    size_t width = e->dtype == DT_DOUBLE ? 8 : 4;
    if (a->values.bytes != e->values.bytes || e->values.bytes % width) {
        snprintf(why, TEXT_BYTES, "output %.*s has %zu bytes of values, not %zu", alias_bytes, alias, a->values.bytes,
                 e->values.bytes);
        return false;
    }
    if (e->values.bytes && !memcmp(a->values.data, e->values.data, e->values.bytes)) return true;
    for (size_t i = 0; i < e->values.bytes / width; i++) {
        double actual = value_at(a->values, e->dtype, i), expected = value_at(e->values, e->dtype, i);
        if (close_to(actual, expected, tolerance)) continue;
        snprintf(why, TEXT_BYTES, "output %.*s value %zu is %.9g, expected %.9g", alias_bytes, alias, i, actual,
                 expected);
        return false;
    }
    return true;
}

static bool same_spec(const struct predict_response *e, const struct predict_response *a) {
    return same(a->model, e->model) && a->version == e->version && same(a->signature, e->signature);
}

static bool same_response(const struct expectation *x, const struct predict_response *a, char *why) {
    const struct predict_response *e = &x->response;
    if (!same_spec(e, a)) {
        snprintf(why, TEXT_BYTES, "model_spec is %.*s/%llu/%.*s, expected %.*s/%llu/%.*s", (int)a->model.bytes,
                 (const char *)a->model.data, (unsigned long long)a->version, (int)a->signature.bytes,
                 (const char *)a->signature.data, (int)e->model.bytes, (const char *)e->model.data,
                 (unsigned long long)e->version, (int)e->signature.bytes, (const char *)e->signature.data);
        return false;
    }
    if (a->outputs_count != e->outputs_count) {
        snprintf(why, TEXT_BYTES, "%u outputs, expected %u", a->outputs_count, e->outputs_count);
        return false;
    }
    for (uint32_t i = 0; i < e->outputs_count; i++) {
        uint32_t j = 0;
        while (j < a->outputs_count && !same(a->outputs[j].alias, e->outputs[i].alias)) j++;
        if (j == a->outputs_count) {
            snprintf(why, TEXT_BYTES, "output %.*s is missing", (int)e->outputs[i].alias.bytes,
                     (const char *)e->outputs[i].alias.data);
            return false;
        }
        if (!same_tensor(&e->outputs[i], &a->outputs[j], x->tolerance, why)) return false;
    }
    return true;
}

/* ----------------------------------------------------------------------------------------------------------- JSON */

/* The next token: a bracket, a comma, a colon, a word, a number, or a whole string with its quotes. */
static struct span next_token(struct span *s) {
    while (s->bytes && strchr(" \t\r\n", *s->data)) s->data++, s->bytes--;
    struct span token = {s->data, 0};
    if (!s->bytes) return token;
    size_t n = 1;
    if (*s->data == '"') {
        while (n < s->bytes && s->data[n] != '"') n += s->data[n] == '\\' && n + 1 < s->bytes ? 2 : 1;
        n += n < s->bytes;
    } else if (!strchr("[]{},:", *s->data)) {
        while (n < s->bytes && !strchr("[]{},:\" \t\r\n", s->data[n])) n++;
    }
    token.bytes = n;
    s->data += n;
    s->bytes -= n;
    return token;
}

static bool read_number(struct span token, double *value) {
    char text[64], *end;
    if (!token.bytes || token.bytes >= sizeof text || !strchr("-0123456789", *token.data)) return false;
    memcpy(text, token.data, token.bytes);
    text[token.bytes] = 0;
    *value = strtod(text, &end);
    return !*end;
}

static bool same_json(const struct expectation *x, struct span actual, char *why) {
    struct span expected = x->body;
    for (unsigned i = 0;; i++) {
        struct span e = next_token(&expected), a = next_token(&actual);
        if (!e.bytes && !a.bytes) return true;
        double e_number, a_number;
        if (same(e, a)) continue;
        bool numbers = read_number(e, &e_number) && read_number(a, &a_number);
        if (numbers && close_to(a_number, e_number, x->tolerance)) continue;
        snprintf(why, TEXT_BYTES, "token %u is %.*s, expected %.*s", i, (int)(a.bytes < 80 ? a.bytes : 80),
                 (const char *)a.data, (int)(e.bytes < 80 ? e.bytes : 80), (const char *)e.data);
        return false;
    }
}

static bool same_floats(const struct expectation *x, struct span actual, char *why) {
    struct span expected = x->body;
    if (actual.bytes < expected.bytes) {
        snprintf(why, TEXT_BYTES, "%zu bytes, expected %zu of values", actual.bytes, expected.bytes);
        return false;
    }
    const uint8_t *data = actual.data + actual.bytes - expected.bytes;
    for (size_t at = 0; at + sizeof(float) <= expected.bytes; at += sizeof(float)) {
        float e, a;
        memcpy(&e, expected.data + at, sizeof e);
        memcpy(&a, data + at, sizeof a);
        if (close_to(a, e, x->tolerance)) continue;
        snprintf(why, TEXT_BYTES, "value %zu is %g, expected %g", at / sizeof(float), (double)a, (double)e);
        return false;
    }
    return true;
}

/* ------------------------------------------------------------------------------------------------------ interface */

struct expectation *expectation_new(enum comparison comparison, struct tolerance tolerance, const uint8_t *data,
                                    size_t bytes, char why[TEXT_BYTES]) {
    struct expectation *x = allocate(NULL, sizeof *x);
    memset(x, 0, sizeof *x);
    x->comparison = comparison;
    x->tolerance = tolerance;
    x->body = (struct span){data, bytes};
    if (comparison == COMPARE_PREDICT && (!read_response(&x->response, x->body) || !x->response.outputs_count)) {
        snprintf(why, TEXT_BYTES, "not a PredictResponse with at least one output");
        expectation_free(x);
        return NULL;
    }
    return x;
}

void expectation_or(struct expectation *first, struct expectation *other) {
    while (first->other) first = first->other;
    first->other = other;
}

void expectation_free(struct expectation *x) {
    while (x) {
        struct expectation *other = x->other;
        release_response(&x->response);
        free(x);
        x = other;
    }
}

/* The PredictResponse is read once, however many alternatives there are. */
static int met_response(const struct expectation *first, struct span answer, char *why) {
    static struct predict_response actual; /* 10 KB that need not be cleared for every answer */
    int met = -1, index = 0;
    bool spec_met = false;
    if (!read_response(&actual, answer)) {
        snprintf(why, TEXT_BYTES, "not a PredictResponse");
        release_response(&actual);
        return -1;
    }
    for (const struct expectation *x = first; x && met < 0; x = x->other, index++) {
        bool spec = same_spec(&x->response, &actual);
        if (spec_met && !spec) continue; /* `why` says more already */
        if ((spec || x == first) && same_response(x, &actual, why)) met = index;
        spec_met |= spec;
    }
    release_response(&actual);
    return met;
}

int expectation_met(const struct expectation *first, const uint8_t *data, size_t bytes, char why[TEXT_BYTES]) {
    struct span answer = {data, bytes};
    int index = 0;
    for (const struct expectation *x = first; x; x = x->other, index++)
        if (same(answer, x->body)) return index;
    if (first->comparison == COMPARE_PREDICT) return met_response(first, answer, why);
    index = 0;
    for (const struct expectation *x = first; x && first->comparison == COMPARE_JSON; x = x->other, index++)
        if (same_json(x, answer, why)) return index;
    index = 0;
    for (const struct expectation *x = first; x && first->comparison == COMPARE_FLOATS; x = x->other, index++)
        if (same_floats(x, answer, why)) return index;
    if (first->comparison == COMPARE_EXACT) {
        size_t i = 0;
        while (i < bytes && i < first->body.bytes && data[i] == first->body.data[i]) i++;
        snprintf(why, TEXT_BYTES, "%zu bytes, expected %zu; first difference at byte %zu", bytes, first->body.bytes,
                 i);
    }
    return -1;
}
