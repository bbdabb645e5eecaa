// What connects hosts that are network namespaces of one machine: `wire NAME...` makes a TUN device for each name. Packets
// go to the device that their IPv4 address ends with, 1 for the first. Each line on stdin sets what the wire is like from
// now on: the delay in microseconds, the rate of each device in Mbit/s or 0, and the part of packets that is lost, from 0
// to 1. Says "ready", ends with stdin.
//
// As netem does, which many kernels lack; in a process of its own, so that it takes its time from the machine's cores.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { HOSTS = 8, LONGEST = 9200, PLACES = 4096, AT_ONCE = 64 };

struct Packet {
    int64_t due;
    ssize_t size;
    unsigned char bytes[LONGEST];
};

// The packets on their way to a host, in the order of their arrival. Untouched pages cost nothing.
static struct Packet queues[HOSTS][PLACES];
static unsigned first[HOSTS], last[HOSTS];
static int64_t busy_until[HOSTS];
static double delay_us, rate_mbit, loss;

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int open_device(const char* name) {
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (device < 0 || ioctl(device, TUNSETIFF, &request) < 0) {
        perror(name);
        exit(1);
    }
    return device;
}

static void take(int device, int hosts) {
    static unsigned char bytes[LONGEST];
    for (int i = 0; i < AT_ONCE; ++i) {
        ssize_t size = read(device, bytes, LONGEST);
        if (size < 0) return;
        int to = bytes[19] - 1;
        if (size < 20 || bytes[0] >> 4 != 4 || to < 0 || to >= hosts || last[to] - first[to] == PLACES) continue;
        if (drand48() < loss) continue;
        int64_t now = now_ns();
        if (busy_until[to] < now) busy_until[to] = now;
        if (rate_mbit > 0) busy_until[to] += (int64_t)(size * 8e3 / rate_mbit);
        struct Packet* packet = &queues[to][last[to]++ % PLACES];
        packet->due = busy_until[to] + (int64_t)(delay_us * 1e3);
        packet->size = size;
        memcpy(packet->bytes, bytes, size);
    }
}

int main(int count, char** names) {
    int hosts = count - 1;
    if (hosts < 1 || hosts > HOSTS) return 2;
    struct pollfd waiting[HOSTS + 1];
    for (int host = 0; host < hosts; ++host) waiting[host] = (struct pollfd){open_device(names[host + 1]), POLLIN, 0};
    waiting[hosts] = (struct pollfd){0, POLLIN, 0};
    // A network does not wait until a core is free.
    setpriority(PRIO_PROCESS, 0, -20);
    prctl(PR_SET_TIMERSLACK, 1);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int64_t now = now_ns(), next = INT64_MAX;
        for (int to = 0; to < hosts; ++to) {
            for (; first[to] != last[to]; ++first[to]) {
                struct Packet* packet = &queues[to][first[to] % PLACES];
                if (packet->due > now) {
                    if (packet->due < next) next = packet->due;
                    break;
                }
                // What the host does not take is lost, as on any network.
                if (write(waiting[to].fd, packet->bytes, packet->size) < 0) continue;
            }
        }
        int64_t left = next - now;
        struct timespec time = {left / 1000000000, left % 1000000000};
        if (ppoll(waiting, hosts + 1, next == INT64_MAX ? NULL : &time, NULL) <= 0) continue;
        for (int host = 0; host < hosts; ++host) {
            if (waiting[host].revents & POLLIN) take(waiting[host].fd, hosts);
        }
        if (waiting[hosts].revents) {
            char line[128];
            ssize_t size = read(0, line, sizeof line - 1);
            if (size <= 0) return 0;
            line[size] = 0;
            if (sscanf(line, "%lf %lf %lf", &delay_us, &rate_mbit, &loss) != 3) return 2;
        }
    }
}
