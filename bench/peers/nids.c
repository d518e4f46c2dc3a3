/* libnids as a peer of bench.peers: a capture file is followed by nids_run, and the bytes that the callback gets are counted.
 *
 * Its fastest way that is still fair: no checksums, no port scan detection, no log, a table with room for every connection, nothing kept.
 * It follows only connections whose handshake it saw, and it does not say how many bytes are missing: none are ever skipped, a stream with a hole just stops.
 */
#include <nids.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long bytes, streams;
static long long packets;

static void count(struct tcp_stream *connection, void **unused)
{
    (void)unused;
    switch (connection->nids_state) {
    case NIDS_JUST_EST:
        connection->client.collect++;
        connection->server.collect++;
        break;
    case NIDS_DATA:
        for (struct half_stream *half = &connection->client; half; half = half == &connection->client ? &connection->server : NULL) {
            if (half->count_new > 0) {
                bytes += half->count_new;
                streams += half->count == half->count_new;
            }
        }
        break;
    }
}

static void count_packet(struct ip *packet, int length)
{
    (void)packet;
    (void)length;
    packets++;
}

static void say_nothing(int type, int error, struct ip *packet, void *data)
{
    (void)type;
    (void)error;
    (void)packet;
    (void)data;
}

int main(int argc, char **argv)
{
    struct nids_chksum_ctl every_address = {0, 0, NIDS_DONT_CHKSUM, 0};
    struct timespec begin, end;

    if (argc != 3) {
        fprintf(stderr, "usage: %s CAPTURE CONNECTIONS\n", argv[0]);
        return 2;
    }
    nids_params.filename = argv[1];
    nids_params.n_tcp_streams = atoi(argv[2]) / 3 * 4 + 1024; /* follows up to 3/4 of it at once */
    nids_params.scan_num_hosts = 0;
    nids_params.syslog = (void (*)())say_nothing;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    if (!nids_init()) {
        fprintf(stderr, "%s\n", nids_errbuf);
        return 1;
    }
    nids_register_chksum_ctl(&every_address, 1);
    nids_register_tcp((void (*))count);
    nids_register_ip((void (*))count_packet);
    nids_run();
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("{\"ns\": %lld, \"packets\": %lld, \"bytes_delivered\": %lld, \"streams\": %lld}\n",
           (end.tv_sec - begin.tv_sec) * 1000000000LL + (end.tv_nsec - begin.tv_nsec), packets, bytes, streams);
    return 0;
}
