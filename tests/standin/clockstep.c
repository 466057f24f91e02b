/*
 * A steppable wall clock for the stand-in device.
 *
 * Linux has no namespace for CLOCK_REALTIME, so a device whose wall clock jumps (NTP after a boot
 * without a battery-backed clock, a user's `date -s`) is played here: this library is named in the
 * stand-in's /etc/ld.so.preload and adds an offset to every reading of the wall clock. The offset
 * is one 64-bit count of nanoseconds in a file that every process maps, so a step is seen by all
 * of them at once, whatever their environment is. CLOCK_MONOTONIC and the other clocks are left
 * alone.
 *
 * Not played: waits until an absolute wall-clock time (pthread_cond_timedwait, timerfd), and the
 * times of files.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define OFFSET_FILE "/run/standin/clock_offset_ns"
#define NS_PER_S 1000000000LL

static const int64_t none = 0;
static const int64_t *offset_ns = &none;

__attribute__((constructor)) static void map_offset(void)
{
    int fd = open(OFFSET_FILE, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    void *page = mmap(0, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED)
        offset_ns = page;
}

static int shifted(clockid_t clock, struct timespec *ts)
{
    if (syscall(SYS_clock_gettime, clock, ts) != 0)
        return -1;
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
        int64_t ns = ts->tv_nsec + __atomic_load_n(offset_ns, __ATOMIC_RELAXED);
        int64_t s = ns / NS_PER_S;
        ns %= NS_PER_S;
        if (ns < 0) {
            ns += NS_PER_S;
            s -= 1;
        }
        ts->tv_sec += s;
        ts->tv_nsec = ns;
    }
    return 0;
}

int clock_gettime(clockid_t clock, struct timespec *ts)
{
    return shifted(clock, ts);
}

int gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
    struct timespec ts;
    (void)tz;
    if (shifted(CLOCK_REALTIME, &ts) != 0)
        return -1;
    tv->tv_sec = ts.tv_sec;
    tv->tv_usec = ts.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec ts;
    if (shifted(CLOCK_REALTIME, &ts) != 0)
        return (time_t)-1;
    if (out)
        *out = ts.tv_sec;
    return ts.tv_sec;
}

int timespec_get(struct timespec *ts, int base)
{
    return base == TIME_UTC && shifted(CLOCK_REALTIME, ts) == 0 ? base : 0;
}
