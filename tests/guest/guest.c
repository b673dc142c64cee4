/*
 * The one program of the kvmms test guest.
 *
 *   kvmms-guest records RATE DISK...   write numbered records to pseudo-random places of all disks, in lock step
 *   kvmms-guest powerkey               run /sbin/shutdown when the power key is pressed
 *   kvmms-guest files DIRECTORY        write numbered files there without end: f0 to f49 in turn, the last number in "last"
 *
 * What record number N holds and where it goes depends on N alone (see tests/harness/records.py, which replays it), so the whole
 * content of a disk is known from the highest number found on it. Every write is direct and synchronous and goes to the disks in
 * their order: at any instant the number on a disk is that of the disk before it, or one less.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define SECTOR 512u
#define SLOTS 2048u
#define MAX_DISKS 8
/* Every ZERO_EVERY-th record is all zeros, every TAIL_EVERY-th is followed by one in the last sector of the disk. */
#define ZERO_EVERY 37u
#define TAIL_EVERY 16u

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static void put64(unsigned char *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (unsigned char)(v >> (8 * i));
}

static uint64_t get64(const unsigned char *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

/* Header: magic, number, disk; then noise seeded by number and disk. */
static void fill(unsigned char *p, size_t len, uint64_t number, uint64_t disk)
{
    uint64_t x = mix(number * 31 + disk);
    memcpy(p, "KVMMSREC", 8);
    put64(p + 8, number);
    put64(p + 16, disk);
    for (size_t i = 24; i < len; i += 8) {
        x = mix(x);
        put64(p + i, x);
    }
}

struct disk {
    int fd;
    const char *name;
    uint64_t size;
    uint64_t stride; /* blocks between two slots */
};

static uint64_t place(const struct disk *d, uint64_t number)
{
    return (mix(number) % SLOTS) * d->stride * BLOCK;
}

static int write_all(const struct disk *d, const unsigned char *p, size_t len, uint64_t at)
{
    while (len) {
        ssize_t n = pwrite(d->fd, p, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            printf("kvmms records error disk=%s at=%llu: %s\n", d->name, (unsigned long long)at, strerror(errno));
            fflush(stdout);
            return -1;
        }
        p += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static int records(unsigned rate, int count, char **names)
{
    struct disk disks[MAX_DISKS];
    unsigned char *buf;
    uint64_t number = 0;

    if (count > MAX_DISKS)
        count = MAX_DISKS;
    if (posix_memalign((void **)&buf, BLOCK, BLOCK))
        return 1;
    for (int i = 0; i < count; i++) {
        struct disk *d = &disks[i];
        d->name = names[i];
        d->fd = open(names[i], O_RDWR | O_DIRECT | O_SYNC);
        if (d->fd < 0 || ioctl(d->fd, BLKGETSIZE64, &d->size) < 0) {
            printf("kvmms records cannot open %s: %s\n", names[i], strerror(errno));
            return 1;
        }
        d->stride = (d->size - SECTOR) / BLOCK / SLOTS;
        if (d->stride == 0) {
            printf("kvmms records: %s is too small\n", names[i]);
            return 1;
        }
        /* Go on at the highest number that is there: a restarted guest keeps the sequence unbroken. */
        for (uint64_t s = 0; s < SLOTS; s++)
            if (pread(d->fd, buf, SECTOR, (off_t)(s * d->stride * BLOCK)) == SECTOR && !memcmp(buf, "KVMMSREC", 8) && get64(buf + 8) > number)
                number = get64(buf + 8);
    }
    /* The last one may be there in part, or not yet on every disk: it is written once more. */
    if (number)
        number--;
    printf("kvmms records start number=%llu disks=%d slots=%u\n", (unsigned long long)number + 1, count, SLOTS);
    fflush(stdout);

    uint64_t due = now_ns(), told = due;
    for (;;) {
        number++;
        for (int i = 0; i < count; i++) {
            struct disk *d = &disks[i];
            if (number % ZERO_EVERY == 0)
                memset(buf, 0, BLOCK);
            else
                fill(buf, BLOCK, number, (uint64_t)i);
            if (write_all(d, buf, BLOCK, place(d, number)))
                return 1;
            if (number % TAIL_EVERY == 0) {
                fill(buf, SECTOR, number, (uint64_t)i);
                if (write_all(d, buf, SECTOR, d->size / SECTOR * SECTOR - SECTOR))
                    return 1;
            }
        }
        uint64_t now = now_ns();
        if (now - told >= 1000000000ull) {
            printf("kvmms records number=%llu\n", (unsigned long long)number);
            fflush(stdout);
            told = now;
        }
        if (rate) {
            due += 1000000000ull / rate;
            if (due > now) {
                struct timespec t = { (time_t)((due - now) / 1000000000ull), (long)((due - now) % 1000000000ull) };
                nanosleep(&t, NULL);
            } else {
                due = now; /* paused or slow: do not catch up in a burst */
            }
        }
    }
}

static int powerkey(void)
{
    struct pollfd fds[16];
    int n = 0;
    DIR *dir = opendir("/dev/input");
    struct dirent *e;
    while (dir && (e = readdir(dir)) && n < 16) {
        char path[300];
        if (strncmp(e->d_name, "event", 5))
            continue;
        snprintf(path, sizeof path, "/dev/input/%s", e->d_name);
        int fd = open(path, O_RDONLY | O_NONBLOCK);
        if (fd >= 0)
            fds[n++] = (struct pollfd){ .fd = fd, .events = POLLIN };
    }
    while (n && poll(fds, (nfds_t)n, -1) >= 0)
        for (int i = 0; i < n; i++) {
            struct input_event ev;
            while (read(fds[i].fd, &ev, sizeof ev) == sizeof ev)
                if (ev.type == EV_KEY && ev.code == KEY_POWER && ev.value == 1)
                    execl("/sbin/shutdown", "shutdown", "-P", (char *)NULL);
        }
    return 1;
}

/* A whole file or none: it gets its name when it is written. */
static int put_file(const char *name, uint64_t number, const char *head, uint64_t noise)
{
    char partial[32];
    unsigned char word[8];
    snprintf(partial, sizeof partial, "%s.tmp", name);
    FILE *f = fopen(partial, "w");
    if (!f)
        return -1;
    fprintf(f, "%s%llu\n", head, (unsigned long long)number);
    for (uint64_t x = mix(number); noise; noise -= sizeof word, x = mix(x)) {
        put64(word, x);
        fwrite(word, sizeof word, 1, f);
    }
    int failed = ferror(f);
    return fclose(f) || failed ? -1 : rename(partial, name);
}

static int files(const char *directory)
{
    uint64_t number = 0;
    char name[16];

    if (chdir(directory)) {
        printf("kvmms files cannot enter %s: %s\n", directory, strerror(errno));
        return 1;
    }
    FILE *last = fopen("last", "r");
    if (last) {
        unsigned long long found;
        if (fscanf(last, "%llu", &found) == 1)
            number = found;
        fclose(last);
    }
    for (;;) {
        number++;
        snprintf(name, sizeof name, "f%u", (unsigned)(number % 50));
        int failed = put_file(name, number, "file ", 60000) || put_file("last", number, "", 0);
        if (failed)
            printf("kvmms files error at %llu: %s\n", (unsigned long long)number, strerror(errno));
        sync();
        if (!failed && number % 10 == 0)
            printf("kvmms guest wrote file %llu\n", (unsigned long long)number);
        fflush(stdout);
        usleep(50000);
    }
}

int main(int argc, char **argv)
{
    if (argc >= 4 && !strcmp(argv[1], "records"))
        return records((unsigned)atoi(argv[2]), argc - 3, argv + 3);
    if (argc == 2 && !strcmp(argv[1], "powerkey"))
        return powerkey();
    if (argc == 3 && !strcmp(argv[1], "files"))
        return files(argv[2]);
    fprintf(stderr, "usage: kvmms-guest records RATE DISK... | powerkey | files DIRECTORY\n");
    return 2;
}
