/* REST over HTTP/1.1, the client's side: keep-alive, one call at a time on a connection, bodies by Content-Length. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "loadgen.h"

struct http1 {
    struct call *call;
    size_t content_bytes; /* of the answer being read, once its head is read */
    bool closes;
};

static void write_request(struct connection *c) {
    struct http1 *h = c->state;
    if (!h->call) return;
    const struct message *m = h->call->message;
    while (h->call->sent_bytes < m->wire_bytes && out_staged(c) < OUT_BYTES_MAX) {
        size_t bytes = m->wire_bytes - h->call->sent_bytes;
        if (bytes > OUT_BYTES_MAX) bytes = OUT_BYTES_MAX;
        memcpy(out_reserve(c, bytes), m->wire + h->call->sent_bytes, bytes);
        c->out_end += bytes;
        h->call->sent_bytes += bytes;
    }
}

static void http1_start(struct connection *c, struct call *call) {
    struct http1 *h = c->state;
    h->call = call;
    write_request(c);
}

/* Reads status and length from a whole head of `bytes` bytes; false when it is not one this client understands. */
static bool read_head(struct http1 *h, const char *head, size_t bytes) {
    int minor;
    char line[256];
    if (bytes < 16) return false;
    memcpy(line, head, 15); /* sscanf needs an end */
    line[15] = 0;
    if (sscanf(line, "HTTP/1.%d %d", &minor, &h->call->http_status) != 2) return false;
    h->closes = minor == 0;
    bool length_seen = h->call->http_status == 204;
    h->content_bytes = 0;
    const char *end = head + bytes;
    for (const char *at = memchr(head, '\n', bytes); at && ++at < end; at = memchr(at, '\n', (size_t)(end - at))) {
        const char *line_end = memchr(at, '\r', (size_t)(end - at));
        size_t line_bytes = line_end ? (size_t)(line_end - at) : 0;
        if (line_bytes >= sizeof line) continue;
        memcpy(line, at, line_bytes);
        line[line_bytes] = 0;
        if (!strncasecmp(line, "content-length:", 15)) {
            h->content_bytes = strtoull(line + 15, NULL, 10);
            length_seen = true;
        }
        if (!strncasecmp(line, "connection:", 11) && strcasestr(line, "close")) h->closes = true;
        if (!strncasecmp(line, "transfer-encoding:", 18)) return false;
    }
    return length_seen;
}

static void finish(struct connection *c, const uint8_t *body, size_t bytes) {
    struct http1 *h = c->state;
    struct call *call = h->call;
    char text[TEXT_BYTES];
    answer_judge(call, body, bytes);
    h->call = NULL;
    if (call->http_status != 200) {
        snprintf(text, sizeof text, "HTTP status %d: %.*s", call->http_status, (int)(bytes < 300 ? bytes : 300),
                 (const char *)body);
        call_end(c, call, OUTCOME_HTTP_STATUS, 0, text);
    } else {
        call_end(c, call, call->verdict, 0, call->verdict == OUTCOME_GOOD ? "" : verdict_text());
    }
    if (h->closes) c->accepting = false;
}

static size_t http1_receive(struct connection *c, const uint8_t *data, size_t bytes) {
    struct http1 *h = c->state;
    if (!h->call) {
        connection_break(c, OUTCOME_PROTOCOL, "bytes from the server before there was a request");
        return 0;
    }
    size_t used = 0;
    if (!h->call->head_seen) {
        const uint8_t *end = memmem(data, bytes, "\r\n\r\n", 4);
        if (!end) {
            if (bytes == IN_BYTES) connection_break(c, OUTCOME_PROTOCOL, "an endless HTTP head");
            return 0;
        }
        used = (size_t)(end + 4 - data);
        if (!read_head(h, (const char *)data, used)) {
            connection_break(c, OUTCOME_PROTOCOL, "a head without Content-Length, or chunked, or no HTTP/1.1 at all");
            return 0;
        }
        h->call->head_seen = true;
    }
    size_t missing = h->content_bytes - h->call->answer_bytes, available = bytes - used;
    if (available > missing) {
        connection_break(c, OUTCOME_PROTOCOL, "more bytes than Content-Length says");
        return 0;
    }
    if (!h->call->answer_bytes && available == missing) {
        finish(c, data + used, available);
        return bytes;
    }
    answer_append(h->call, data + used, available);
    if (available == missing) finish(c, h->call->answer, h->call->answer_bytes);
    return bytes;
}

static void http1_opened(struct connection *c) {
    c->state = allocate(NULL, sizeof(struct http1));
    memset(c->state, 0, sizeof(struct http1));
    c->active_max = 1;
    connection_ready(c);
}

static void http1_closing(struct connection *c, enum outcome outcome, const char *text) {
    struct http1 *h = c->state;
    if (h->call) call_end(c, h->call, outcome, 0, text);
    free(h);
    c->state = NULL;
}

const struct protocol protocol_http1 = {http1_opened, http1_start, http1_receive, write_request, NULL,
                                        http1_closing};
