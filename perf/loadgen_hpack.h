/* Header blocks (HPACK) of a connection: see loadgen_hpack.c. */
#ifndef LOADGEN_HPACK_H
#define LOADGEN_HPACK_H

#include <nghttp2/nghttp2.h>

#include "loadgen.h"

#define HPACK_TABLE_BYTES 4096 /* both tables' size until a SETTINGS frame says otherwise */
#define REQUEST_BLOCK_BYTES 4096
#define CACHE_BLOCKS 8
#define CACHE_BLOCK_BYTES 256

/* The block of every request: the first one fills the server's dynamic table, the later ones point into it. */
struct request_blocks {
    uint8_t first[REQUEST_BLOCK_BYTES], next[REQUEST_BLOCK_BYTES];
    size_t first_bytes, next_bytes;
};

/* `table_bytes_max`: what the server's dynamic table may hold. Call it again when that changed. */
void request_blocks_build(struct request_blocks *blocks, size_t table_bytes_max);

struct head {
    int http_status;
    int grpc_status; /* -1: not there */
    char text[TEXT_BYTES];
};

struct cached_block {
    size_t bytes;
    uint8_t block[CACHE_BLOCK_BYTES];
    struct head head;
};

struct answer_blocks {
    nghttp2_hd_inflater *inflater;
    struct cached_block cache[CACHE_BLOCKS];
    uint32_t cache_next;
};

/* Reads one whole block; NULL when it is malformed. Valid until the next call. Every block of the connection must
 * pass through here, in order, also those of unknown streams: the decoder's table keeps step with the server's. */
const struct head *answer_block_read(struct answer_blocks *blocks, const uint8_t *block, size_t bytes);

#endif
