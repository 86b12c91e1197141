/* Header blocks of the load generator: ours, made once per connection, and the server's, decoded once per distinct
 * block.
 *
 * Header blocks of answers are decoded by libnghttp2's HPACK decoder, once: servers repeat the same few blocks, so a
 * block that was decoded before is found in a small cache. That is sound only for blocks that leave the decoder's
 * dynamic table alone, and only while nobody else changed it; `block_is_pure` tells which those are.
 */
#include "loadgen_hpack.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------- our header blocks */

static uint8_t *put_integer(uint8_t *at, uint8_t pattern, unsigned prefix_bits, size_t value) {
    size_t limit = (1u << prefix_bits) - 1;
    if (value < limit) {
        *at++ = (uint8_t)(pattern | value);
        return at;
    }
    *at++ = (uint8_t)(pattern | limit);
    for (value -= limit; value >= 128; value >>= 7) *at++ = (uint8_t)(value | 128);
    *at++ = (uint8_t)value;
    return at;
}

static uint8_t *put_string(uint8_t *at, const char *text) {
    size_t bytes = strlen(text);
    at = put_integer(at, 0, 7, bytes);
    memcpy(at, text, bytes);
    return at + bytes;
}

/* One literal; `name_index` is its name's place in the static table, 0 for none. */
static uint8_t *put_literal(uint8_t *at, bool indexed, unsigned name_index, const char *name, const char *value) {
    at = indexed ? put_integer(at, 0x40, 6, name_index) : put_integer(at, 0, 4, name_index);
    if (!name_index) at = put_string(at, name);
    return put_string(at, value);
}

void request_blocks_build(struct request_blocks *b, size_t table_bytes_max) {
    static const struct { unsigned index; const char *name; } names[] = {
        {4, ":path"}, {1, ":authority"}, {0, "te"}, {31, "content-type"}, {58, "user-agent"}};
    enum { NAMES_COUNT = sizeof names / sizeof names[0] };
    const char *values[NAMES_COUNT] = {setup.path, setup.authority, "trailers", "application/grpc",
                                       "ringserve-loadgen"};
    size_t table_bytes = 0;
    for (unsigned i = 0; i < NAMES_COUNT; i++) table_bytes += strlen(names[i].name) + strlen(values[i]) + 32;
    bool indexed = table_bytes <= table_bytes_max;

    uint8_t *first = b->first, *next = b->next;
    /* RFC 7541 4.2: a table below the default is acknowledged by an update of its size */
    if (table_bytes_max < HPACK_TABLE_BYTES) first = put_integer(first, 0x20, 5, indexed ? table_bytes_max : 0);
    *first++ = *next++ = 0x83; /* :method POST */
    *first++ = *next++ = 0x86; /* :scheme http */
    for (unsigned i = 0; i < NAMES_COUNT; i++) {
        first = put_literal(first, indexed, names[i].index, names[i].name, values[i]);
        /* the newest entry of the table is number 62 */
        next = indexed ? put_integer(next, 0x80, 7, 62 + NAMES_COUNT - 1 - i)
                       : put_literal(next, false, names[i].index, names[i].name, values[i]);
    }
    if (setup.grpc_timeout) {
        first = put_literal(first, false, 0, "grpc-timeout", setup.grpc_timeout);
        next = put_literal(next, false, 0, "grpc-timeout", setup.grpc_timeout);
    }
    b->first_bytes = (size_t)(first - b->first);
    b->next_bytes = (size_t)(next - b->next);
}

/* ------------------------------------------------------------------------------------- the server's header blocks */

static bool skip_integer(const uint8_t **at, const uint8_t *end, unsigned prefix_bits, size_t *value) {
    size_t limit = (1u << prefix_bits) - 1;
    *value = *(*at)++ & limit;
    if (*value < limit) return true;
    for (unsigned shift = 0; *at < end && shift < 28; shift += 7) {
        uint8_t byte = *(*at)++;
        *value += (size_t)(byte & 127) << shift;
        if (byte < 128) return true;
    }
    return false;
}

/* True when decoding this block leaves the dynamic table as it was: no insertion, no change of its size. */
static bool block_is_pure(const uint8_t *at, size_t bytes) {
    const uint8_t *end = at + bytes;
    size_t value;
    while (at < end) {
        uint8_t byte = *at;
        if (byte & 0x80) {
            if (!skip_integer(&at, end, 7, &value)) return false;
            continue;
        }
        if (byte & 0x60) return false;
        if (!skip_integer(&at, end, 4, &value)) return false;
        for (unsigned strings = value ? 1 : 2; strings; strings--) {
            if (at >= end || !skip_integer(&at, end, 7, &value) || value > (size_t)(end - at)) return false;
            at += value;
        }
    }
    return true;
}

static bool decode_block(struct answer_blocks *b, const uint8_t *block, size_t bytes, struct head *head) {
    *head = (struct head){.grpc_status = -1};
    for (;;) {
        nghttp2_nv nv;
        int flags = 0;
        ssize_t used = nghttp2_hd_inflate_hd2(b->inflater, &nv, &flags, block, bytes, 1);
        if (used < 0) return false;
        block += used;
        bytes -= (size_t)used;
        if (flags & NGHTTP2_HD_INFLATE_EMIT) {
            const char *name = (const char *)nv.name, *value = (const char *)nv.value;
            if (nv.namelen == 7 && !memcmp(name, ":status", 7)) head->http_status = atoi(value);
            if (nv.namelen == 11 && !memcmp(name, "grpc-status", 11)) head->grpc_status = atoi(value);
            if (nv.namelen == 12 && !memcmp(name, "grpc-message", 12)) snprintf(head->text, TEXT_BYTES, "%s", value);
        }
        if (flags & NGHTTP2_HD_INFLATE_FINAL) break;
        if (!(flags & NGHTTP2_HD_INFLATE_EMIT) && !bytes) return false;
    }
    nghttp2_hd_inflate_end_headers(b->inflater);
    return true;
}

const struct head *answer_block_read(struct answer_blocks *b, const uint8_t *block, size_t bytes) {
    static struct head head;
    for (uint32_t i = 0; i < CACHE_BLOCKS; i++)
        if (b->cache[i].bytes == bytes && bytes && !memcmp(b->cache[i].block, block, bytes)) return &b->cache[i].head;
    if (!decode_block(b, block, bytes, &head)) return NULL;
    if (!block_is_pure(block, bytes)) {
        for (uint32_t i = 0; i < CACHE_BLOCKS; i++) b->cache[i].bytes = 0;
        return &head;
    }
    if (bytes > CACHE_BLOCK_BYTES) return &head;
    struct cached_block *cached = &b->cache[b->cache_next++ % CACHE_BLOCKS];
    cached->bytes = bytes;
    memcpy(cached->block, block, bytes);
    cached->head = head;
    return &cached->head;
}
