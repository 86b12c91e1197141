/* gRPC over HTTP/2 in clear text, the client's side, as cheap as it gets: frames are written by hand, a call's header
 * block is a constant, a message goes out in one copy, and answers are read where the socket left them.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen_hpack.h"

enum {
    DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PUSH_PROMISE = 5, PING = 6, GOAWAY = 7, WINDOW_UPDATE = 8,
    CONTINUATION = 9
};
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8, PRIORITY = 32 };
enum {
    HEADER_TABLE_SIZE = 1, ENABLE_PUSH = 2, MAX_CONCURRENT_STREAMS = 3, INITIAL_WINDOW_SIZE = 4, MAX_FRAME_SIZE = 5
};

#define FRAME_HEAD_BYTES 9
#define FRAME_BYTES_DEFAULT 16384 /* until the server says that it takes more */
#define FRAME_BYTES_MAX 131072 /* what we accept: official clients 4 MiB, but a frame must fit into half of IN_BYTES */
#define WINDOW_MAX 0x7fffffff

struct http2 {
    struct request_blocks request_blocks;
    size_t request_table_bytes;
    bool request_table_filled;
    struct answer_blocks answer_blocks;
    uint8_t *block; /* a header block that CONTINUATION frames carry on */
    size_t block_bytes;
    uint32_t block_stream;
    bool block_open, block_ends_stream;
    bool settings_seen;
    uint32_t stream_next;
    int64_t window_bytes, stream_window_bytes;
    uint32_t frame_bytes_max;
    uint64_t unacknowledged_bytes;
    struct call **streams; /* by stream number, a power of two of places */
    uint32_t streams_mask;
    struct call *blocked_first, *blocked_last;
};

static inline void put32(uint8_t *at, uint32_t v) {
    v = htonl(v);
    memcpy(at, &v, sizeof v);
}

static inline uint32_t get32(const uint8_t *at) {
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return ntohl(v);
}

static uint8_t *frame_head(uint8_t *at, uint32_t bytes, uint8_t type, uint8_t flags, uint32_t stream) {
    at[0] = (uint8_t)(bytes >> 16), at[1] = (uint8_t)(bytes >> 8), at[2] = (uint8_t)bytes;
    at[3] = type;
    at[4] = flags;
    put32(at + 5, stream);
    return at + FRAME_HEAD_BYTES;
}

static void send_frame(struct connection *c, uint8_t type, uint8_t flags, uint32_t stream, const void *data,
                       uint32_t bytes) {
    uint8_t *at = frame_head(out_reserve(c, FRAME_HEAD_BYTES + bytes), bytes, type, flags, stream);
    if (bytes) memcpy(at, data, bytes);
    c->out_end += FRAME_HEAD_BYTES + bytes;
}

/* --------------------------------------------------------------------------------------------------- the streams */

static struct call *find_stream(const struct http2 *h, uint32_t stream_id) {
    struct call *call = h->streams[(stream_id >> 1) & h->streams_mask];
    return call && call->stream_id == stream_id ? call : NULL;
}

static void add_stream(struct http2 *h, struct call *call) {
    /* A place is still taken when one call has lasted while all others went round: twice the places, once. */
    while (h->streams[(call->stream_id >> 1) & h->streams_mask]) {
        uint32_t count = h->streams_mask + 1;
        struct call **old = h->streams;
        h->streams = allocate(NULL, 2 * count * sizeof *old);
        memset(h->streams, 0, 2 * count * sizeof *old);
        h->streams_mask = 2 * count - 1;
        for (uint32_t i = 0; i < count; i++)
            if (old[i]) h->streams[(old[i]->stream_id >> 1) & h->streams_mask] = old[i];
        free(old);
    }
    h->streams[(call->stream_id >> 1) & h->streams_mask] = call;
}

static void unblock(struct http2 *h, struct call *call) {
    if (!call->blocked) return;
    *(call->blocked_before ? &call->blocked_before->blocked_after : &h->blocked_first) = call->blocked_after;
    *(call->blocked_after ? &call->blocked_after->blocked_before : &h->blocked_last) = call->blocked_before;
    call->blocked = false;
}

static void end_stream(struct connection *c, struct call *call, enum outcome outcome, int grpc_status,
                       const char *text) {
    struct http2 *h = c->state;
    uint32_t stream_id = call->stream_id;
    h->streams[(stream_id >> 1) & h->streams_mask] = NULL;
    unblock(h, call);
    bool unfinished = call->sent_bytes < call->message->wire_bytes && outcome != OUTCOME_RESET;
    if ((unfinished || outcome == OUTCOME_LATE) && c->fd >= 0) {
        uint8_t code[4] = {0, 0, 0, 8}; /* CANCEL: nobody waits, or the answer came before the whole request had gone */
        send_frame(c, RST_STREAM, 0, stream_id, code, sizeof code);
    }
    call_end(c, call, outcome, grpc_status, text);
}

/* True when the whole message is staged. */
static bool write_body(struct connection *c, struct call *call) {
    struct http2 *h = c->state;
    const struct message *m = call->message;
    while (call->sent_bytes < m->wire_bytes) {
        int64_t bytes = (int64_t)(m->wire_bytes - call->sent_bytes);
        if (bytes > h->window_bytes) bytes = h->window_bytes;
        if (bytes > call->window_bytes) bytes = call->window_bytes;
        if (bytes > h->frame_bytes_max) bytes = h->frame_bytes_max;
        if (bytes <= 0 || out_staged(c) >= OUT_BYTES_MAX) return false;
        bool last = call->sent_bytes + (size_t)bytes == m->wire_bytes;
        send_frame(c, DATA, last ? END_STREAM : 0, call->stream_id, m->wire + call->sent_bytes, (uint32_t)bytes);
        call->sent_bytes += (size_t)bytes;
        h->window_bytes -= bytes;
        call->window_bytes -= bytes;
    }
    return true;
}

/* What is left of a call's message waits behind others for the connection's window and buffer. A call that has no window
   of its own waits for that first, aside: there may be a thousand, and nobody looks at them until it comes. */
static void block(struct http2 *h, struct call *call) {
    if (call->blocked || call->window_bytes <= 0) return;
    call->blocked = true;
    call->blocked_after = NULL;
    call->blocked_before = h->blocked_last;
    *(h->blocked_last ? &h->blocked_last->blocked_after : &h->blocked_first) = call;
    h->blocked_last = call;
}

static void write_blocked(struct connection *c) {
    struct http2 *h = c->state;
    for (struct call *call = h->blocked_first, *after; call && h->window_bytes > 0; call = after) {
        after = call->blocked_after;
        if (write_body(c, call) || call->window_bytes <= 0) unblock(h, call);
    }
}

/* Those that wait longer go first. */
static void write_or_block(struct connection *c, struct call *call) {
    struct http2 *h = c->state;
    if (h->blocked_first && out_staged(c) < OUT_BYTES_MAX) write_blocked(c);
    if (h->blocked_first || !write_body(c, call)) block(h, call);
}

static void http2_start(struct connection *c, struct call *call) {
    struct http2 *h = c->state;
    const struct request_blocks *blocks = &h->request_blocks;
    bool filled = h->request_table_filled;
    call->stream_id = h->stream_next;
    h->stream_next += 2;
    if (h->stream_next > WINDOW_MAX - 2) c->accepting = false; /* stream numbers are used up */
    call->window_bytes = h->stream_window_bytes;
    add_stream(h, call);
    send_frame(c, HEADERS, END_HEADERS, call->stream_id, filled ? blocks->next : blocks->first,
               (uint32_t)(filled ? blocks->next_bytes : blocks->first_bytes));
    h->request_table_filled = true;
    write_or_block(c, call);
}

/* -------------------------------------------------------------------------------------------------------- answers */

static void judge_message(struct call *call, const uint8_t *data, size_t bytes) {
    if (bytes >= 5 && !data[0] && get32(data + 1) == bytes - 5) {
        answer_judge(call, data + 5, bytes - 5);
        return;
    }
    call->judged = true;
    call->verdict = OUTCOME_LENGTH;
}

static void finish_stream(struct connection *c, struct call *call, const struct head *trailers) {
    char text[TEXT_BYTES];
    if (call->answer_bytes && !call->judged) judge_message(call, call->answer, call->answer_bytes);
    if (call->http_status != 200) {
        snprintf(text, sizeof text, "HTTP status %d", call->http_status);
        end_stream(c, call, OUTCOME_HTTP_STATUS, 0, text);
    } else if (!trailers || trailers->grpc_status < 0) {
        end_stream(c, call, OUTCOME_GRPC_STATUS, 0, "the answer ends without grpc-status");
    } else if (trailers->grpc_status) {
        snprintf(text, sizeof text, "grpc-status %d: %.300s", trailers->grpc_status, trailers->text);
        end_stream(c, call, OUTCOME_GRPC_STATUS, trailers->grpc_status, text);
    } else if (!call->judged) {
        end_stream(c, call, OUTCOME_LENGTH, 0, "grpc-status 0 without a message");
    } else if (call->verdict == OUTCOME_LENGTH) {
        end_stream(c, call, OUTCOME_LENGTH, 0, "the message is not one uncompressed message of the length it claims");
    } else {
        end_stream(c, call, call->verdict, 0, call->verdict == OUTCOME_GOOD ? "" : verdict_text());
    }
}

static bool on_data(struct connection *c, uint8_t flags, uint32_t stream_id, const uint8_t *data, size_t bytes) {
    struct http2 *h = c->state;
    h->unacknowledged_bytes += bytes;
    if (h->unacknowledged_bytes > WINDOW_MAX / 2) {
        uint8_t increment[4];
        put32(increment, (uint32_t)h->unacknowledged_bytes);
        send_frame(c, WINDOW_UPDATE, 0, 0, increment, sizeof increment);
        h->unacknowledged_bytes = 0;
    }
    if (flags & PADDED) {
        if (!bytes || data[0] >= bytes) return false;
        bytes -= 1 + (size_t)data[0];
        data++;
    }
    struct call *call = find_stream(h, stream_id);
    if (!call) return true; /* reset by us a moment ago */
    if (!call->head_seen) return false;
    if (bytes) {
        bool whole = bytes >= 5 && get32(data + 1) == bytes - 5; /* read in place, without a copy */
        if (whole && !call->answer_bytes && !call->judged) judge_message(call, data, bytes);
        else if (call->judged) call->verdict = OUTCOME_LENGTH; /* bytes behind a whole message */
        else answer_append(call, data, bytes);
    }
    if (flags & END_STREAM) finish_stream(c, call, NULL);
    return true;
}

static bool on_block(struct connection *c, const uint8_t *block, size_t bytes, uint32_t stream_id, bool ends_stream) {
    struct http2 *h = c->state;
    const struct head *head = answer_block_read(&h->answer_blocks, block, bytes);
    if (!head) return false;
    struct call *call = find_stream(h, stream_id);
    if (!call) return true;
    if (!call->head_seen) {
        if (head->http_status >= 100 && head->http_status < 200) return !ends_stream;
        call->head_seen = true;
        call->http_status = head->http_status;
    } else if (!ends_stream) {
        return false;
    }
    if (ends_stream) finish_stream(c, call, head);
    return true;
}

static bool on_headers(struct connection *c, uint8_t type, uint8_t flags, uint32_t stream_id, const uint8_t *data,
                       size_t bytes) {
    struct http2 *h = c->state;
    if (type == HEADERS) {
        size_t padding = 0;
        if (flags & PADDED) {
            if (!bytes) return false;
            padding = *data++;
            bytes--;
        }
        if (flags & PRIORITY) {
            if (bytes < 5) return false;
            data += 5;
            bytes -= 5;
        }
        if (padding > bytes) return false;
        bytes -= padding;
        if (flags & END_HEADERS) return on_block(c, data, bytes, stream_id, flags & END_STREAM);
        h->block_open = true;
        h->block_stream = stream_id;
        h->block_ends_stream = flags & END_STREAM;
        h->block_bytes = 0;
    }
    if (h->block_bytes + bytes > IN_BYTES) return false;
    h->block = allocate(h->block, h->block_bytes + bytes + 1);
    if (bytes) memcpy(h->block + h->block_bytes, data, bytes);
    h->block_bytes += bytes;
    if (type == HEADERS || !(flags & END_HEADERS)) return true;
    h->block_open = false;
    return on_block(c, h->block, h->block_bytes, h->block_stream, h->block_ends_stream);
}

/* -------------------------------------------------------------------------------------------- connection's frames */

static bool on_settings(struct connection *c, uint8_t flags, const uint8_t *data, size_t bytes) {
    struct http2 *h = c->state;
    if (flags & ACK) return true;
    size_t table_bytes = h->request_table_bytes;
    for (; bytes >= 6; data += 6, bytes -= 6) {
        uint32_t name = (uint32_t)data[0] << 8 | data[1], value = get32(data + 2);
        if (name == HEADER_TABLE_SIZE) table_bytes = value < HPACK_TABLE_BYTES ? value : HPACK_TABLE_BYTES;
        if (name == MAX_CONCURRENT_STREAMS) c->active_max = value;
        if (name == MAX_FRAME_SIZE) h->frame_bytes_max = value;
        if (name == INITIAL_WINDOW_SIZE) {
            for (uint32_t i = 0; i <= h->streams_mask; i++)
                if (h->streams[i]) {
                    h->streams[i]->window_bytes += (int64_t)value - h->stream_window_bytes;
                    if (h->streams[i]->sent_bytes < h->streams[i]->message->wire_bytes) block(h, h->streams[i]);
                }
            h->stream_window_bytes = value;
        }
    }
    if (!h->settings_seen || h->request_table_bytes != table_bytes) {
        request_blocks_build(&h->request_blocks, table_bytes);
        h->request_table_bytes = table_bytes;
        h->request_table_filled = false;
    }
    send_frame(c, SETTINGS, ACK, 0, NULL, 0);
    if (!h->settings_seen) {
        h->settings_seen = true;
        connection_ready(c);
    }
    write_blocked(c);
    return bytes == 0;
}

static void on_window_update(struct connection *c, uint32_t stream_id, uint32_t increment) {
    struct http2 *h = c->state;
    struct call *call;
    if (!stream_id) h->window_bytes += increment;
    else if ((call = find_stream(h, stream_id))) {
        call->window_bytes += increment;
        if (!call->blocked && call->sent_bytes < call->message->wire_bytes) write_or_block(c, call);
    }
    if (!stream_id && h->blocked_first) write_blocked(c);
}

static void on_goaway(struct connection *c, const uint8_t *data) {
    struct http2 *h = c->state;
    uint32_t last_stream = get32(data) & WINDOW_MAX;
    char text[TEXT_BYTES];
    snprintf(text, sizeof text, "GOAWAY with error %u", get32(data + 4));
    c->accepting = false;
    for (uint32_t i = 0; i <= h->streams_mask; i++)
        if (h->streams[i] && h->streams[i]->stream_id > last_stream)
            end_stream(c, h->streams[i], OUTCOME_GOAWAY, 0, text);
}

static bool on_frame(struct connection *c, uint8_t type, uint8_t flags, uint32_t stream_id, const uint8_t *data,
                     size_t bytes) {
    struct http2 *h = c->state;
    struct call *call;
    char text[TEXT_BYTES];
    if (h->block_open && (type != CONTINUATION || stream_id != h->block_stream)) return false;
    if (!h->settings_seen && type != SETTINGS) return false;
    switch (type) {
    case DATA: return stream_id && on_data(c, flags, stream_id, data, bytes);
    case HEADERS: return stream_id && on_headers(c, type, flags, stream_id, data, bytes);
    case CONTINUATION: return h->block_open && on_headers(c, type, flags, stream_id, data, bytes);
    case SETTINGS: return on_settings(c, flags, data, bytes);
    case PUSH_PROMISE: return false;
    case PING:
        if (bytes != 8) return false;
        if (!(flags & ACK)) send_frame(c, PING, ACK, 0, data, 8);
        return true;
    case RST_STREAM:
        if (bytes != 4) return false;
        if ((call = find_stream(h, stream_id))) {
            snprintf(text, sizeof text, "RST_STREAM with error %u", get32(data));
            end_stream(c, call, OUTCOME_RESET, 0, text);
        }
        return true;
    case WINDOW_UPDATE:
        if (bytes != 4) return false;
        on_window_update(c, stream_id, get32(data) & WINDOW_MAX);
        return true;
    case GOAWAY:
        if (bytes < 8) return false;
        on_goaway(c, data);
        return true;
    default: return true; /* PRIORITY and unknown types are ignored */
    }
}

static size_t http2_receive(struct connection *c, const uint8_t *data, size_t bytes) {
    size_t used = 0;
    while (bytes - used >= FRAME_HEAD_BYTES && c->fd >= 0) {
        const uint8_t *head = data + used;
        size_t frame_bytes = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
        char text[TEXT_BYTES];
        if (frame_bytes > FRAME_BYTES_MAX) {
            connection_break(c, OUTCOME_PROTOCOL, "a frame larger than we take, or no HTTP/2 at all");
            return used;
        }
        if (bytes - used - FRAME_HEAD_BYTES < frame_bytes) break;
        if (!on_frame(c, head[3], head[4], get32(head + 5) & WINDOW_MAX, head + FRAME_HEAD_BYTES, frame_bytes)) {
            snprintf(text, sizeof text, "a frame of type %u that breaks HTTP/2", head[3]);
            connection_break(c, OUTCOME_PROTOCOL, text);
            return used;
        }
        used += FRAME_HEAD_BYTES + frame_bytes;
    }
    return used;
}

static void http2_opened(struct connection *c) {
    static const uint8_t settings[] = {0, ENABLE_PUSH, 0, 0, 0, 0, 0, INITIAL_WINDOW_SIZE, 0x7f, 0xff, 0xff, 0xff,
                                       0, MAX_FRAME_SIZE, 0, FRAME_BYTES_MAX >> 16, 0, 0};
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    struct http2 *h = allocate(NULL, sizeof *h);
    memset(h, 0, sizeof *h);
    c->state = h;
    if (nghttp2_hd_inflate_new(&h->answer_blocks.inflater)) abort();
    h->stream_next = 1;
    h->request_table_bytes = HPACK_TABLE_BYTES;
    h->window_bytes = h->stream_window_bytes = 65535;
    h->frame_bytes_max = FRAME_BYTES_DEFAULT;
    h->streams_mask = 1023;
    h->streams = allocate(NULL, 1024 * sizeof *h->streams);
    memset(h->streams, 0, 1024 * sizeof *h->streams);
    c->active_max = UINT32_MAX;
    memcpy(out_reserve(c, sizeof preface - 1), preface, sizeof preface - 1);
    c->out_end += sizeof preface - 1;
    send_frame(c, SETTINGS, 0, 0, settings, sizeof settings);
    uint8_t increment[4];
    put32(increment, WINDOW_MAX - 65535);
    send_frame(c, WINDOW_UPDATE, 0, 0, increment, sizeof increment);
}

static void http2_give_up(struct connection *c, struct call *call) {
    end_stream(c, call, OUTCOME_LATE, 0, "no answer before the deadline");
}

static void http2_closing(struct connection *c, enum outcome outcome, const char *text) {
    struct http2 *h = c->state;
    for (uint32_t i = 0; i <= h->streams_mask; i++)
        if (h->streams[i]) end_stream(c, h->streams[i], outcome, 0, text);
    nghttp2_hd_inflate_del(h->answer_blocks.inflater);
    free(h->streams);
    free(h->block);
    free(h);
    c->state = NULL;
}

const struct protocol protocol_http2 = {http2_opened, http2_start, http2_receive, write_blocked,
                                        http2_give_up, http2_closing};
