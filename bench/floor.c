/* floor FILE SLOTS file|memory: a bare loop over a capture, and what that costs.
 *
 * For each record of a pcap file (little-endian, microseconds, Ethernet): check its length against what is at hand; check that it is
 * IPv4 and TCP and that the headers lie within it; hash addresses and ports; find that direction in an open-addressing table, comparing
 * the whole key, or enter it there; SYN sets the next sequence number; payload that begins at it is in order, and is counted. Payload
 * that begins elsewhere is counted as such, and where it ends further on, the next sequence number is set behind it: nothing is held,
 * and no payload byte is looked at. No checksums, times, ends, limits or other link layers; and no prefetching, so that over memory each
 * record costs a full memory latency: a loop that guesses where the next records lie can beat that.
 *
 * file:   read() into one buffer of 256 KiB that is used again and again, and so stays in the second-level cache. A record that is cut
 *         at its end is moved before the buffer, in front of what is read next.
 * memory: the file was read into memory before the clock starts; the loop runs over that.
 *
 * SLOTS, a power of two, is the table's size: twice the number of directions or more; the table never grows. Its pages are touched
 * first within the measured time.
 *
 * Prints one line of JSON. The capture is in the page cache already if whoever runs this has read it before.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 256 << 10, SLACK = 64 << 10, FILE_HEADER = 24, RECORD_HEADER = 16, TCP_PROTOCOL = 6, SYN = 2 };

typedef struct {
    uint64_t addresses;
    uint32_t ports;
    uint32_t next;     /* sequence number */
    uint64_t in_order; /* bytes */
    uint64_t segments; /* 0: the slot is free */
} slot_t;

static slot_t *table;
static uint64_t mask;
static uint64_t packets, segments, directions, in_order, out_of_order;

static void fail(const char *what) {
    fprintf(stderr, "floor: %s\n", what);
    exit(1);
}

static inline uint32_t load32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

static inline uint64_t load64(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, 8);
    return value;
}

static inline uint32_t big16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }

static inline slot_t *find(uint64_t addresses, uint32_t ports) {
    uint64_t hash = (addresses ^ (uint64_t)ports << 16) * UINT64_C(0x9E3779B97F4A7C15);
    hash ^= hash >> 32;
    for (uint64_t at = hash & mask;; at = (at + 1) & mask) {
        slot_t *slot = &table[at];
        if (slot->addresses == addresses && slot->ports == ports && slot->segments) return slot;
        if (!slot->segments) {
            slot->addresses = addresses;
            slot->ports = ports;
            if (++directions > mask) fail("the table is full");
            return slot;
        }
    }
}

static inline void frame(const uint8_t *p, uint32_t length) {
    packets++;
    if (length < 54 || p[12] != 8 || p[13] != 0 || p[14] >> 4 != 4 || p[23] != TCP_PROTOCOL) return;
    uint32_t ip_header = (p[14] & 15) * 4, total = big16(p + 16);
    if (total > length - 14 || ip_header < 20 || ip_header + 20 > total || big16(p + 20) & 0x3FFF) return;
    const uint8_t *tcp = p + 14 + ip_header;
    uint32_t tcp_header = (tcp[12] >> 4) * 4;
    if (tcp_header < 20 || ip_header + tcp_header > total) return;
    uint32_t size = total - ip_header - tcp_header, seq = __builtin_bswap32(load32(tcp + 4));
    segments++;
    slot_t *slot = find(load64(p + 26), load32(tcp));
    slot->segments++;
    if (tcp[13] & SYN) {
        slot->next = seq + 1;
    } else if (size) {
        if (seq == slot->next) {
            slot->in_order += size;
            slot->next = seq + size;
        } else {
            out_of_order += size;
            if ((int32_t)(seq + size - slot->next) > 0) slot->next = seq + size;
        }
    }
}

/* The whole records in size bytes; returns how many bytes they take. */
static size_t records(const uint8_t *p, size_t size) {
    size_t at = 0;
    while (size - at >= RECORD_HEADER) {
        uint32_t length = load32(p + at + 8);
        if (length > SLACK - RECORD_HEADER) fail("a record is larger than 64 KiB");
        if (size - at - RECORD_HEADER < length) break;
        frame(p + at + RECORD_HEADER, length);
        at += RECORD_HEADER + length;
    }
    return at;
}

static size_t read_some(int file, uint8_t *to, size_t size) {
    ssize_t got = read(file, to, size);
    if (got < 0) fail("cannot read the capture");
    return (size_t)got;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int main(int count, char **arguments) {
    if (count != 4) fail("usage: floor FILE SLOTS file|memory");
    int in_memory = !strcmp(arguments[3], "memory");
    uint64_t slots = strtoull(arguments[2], NULL, 10);
    if (!slots || slots & (slots - 1)) fail("SLOTS is a power of two");
    int file = open(arguments[1], O_RDONLY);
    struct stat status;
    uint8_t head[FILE_HEADER];
    if (file < 0 || fstat(file, &status) || read(file, head, FILE_HEADER) != FILE_HEADER) fail("cannot read the capture");
    if (load32(head) != 0xA1B2C3D4 || load32(head + 20) != 1) fail("not a little-endian pcap file of Ethernet frames");
    size_t size = (size_t)status.st_size - FILE_HEADER, left = 0;
    uint8_t *memory = malloc(in_memory ? size + 1 : SLACK + BUFFER);
    table = calloc(slots, sizeof(slot_t));
    mask = slots - 1;
    if (!memory || !table) fail("out of memory");
    for (size_t got = 0; in_memory && got < size;) {
        size_t more = read_some(file, memory + got, size - got);
        if (!more) fail("the file became shorter");
        got += more;
    }
    double begin = seconds();
    if (in_memory) {
        left = size - records(memory, size);
    } else {
        uint8_t *buffer = memory + SLACK;
        for (size_t got; (got = read_some(file, buffer, BUFFER)) > 0;) {
            uint8_t *from = buffer - left;
            size_t have = left + got, used = records(from, have);
            left = have - used;
            memmove(buffer - left, from + used, left);
        }
    }
    double elapsed = seconds() - begin;
    if (left) fail("the capture ends within a record");
    for (uint64_t at = 0; at < slots; at++) in_order += table[at].in_order;
    printf("{\"elapsed_ns\": %.0f, \"packets\": %" PRIu64 ", \"segments\": %" PRIu64 ", \"directions\": %" PRIu64
           ", \"bytes_in_order\": %" PRIu64 ", \"bytes_out_of_order\": %" PRIu64 "}\n",
           elapsed * 1e9, packets, segments, directions, in_order, out_of_order);
    return 0;
}
