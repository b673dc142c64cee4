/* Stands between a process and libc and notes, in one file, whatever would have to be synced: writes with their data, sizes, names,
 * and the beginning and end of each sync. `journal.rs` reads it and makes of it what a power cut leaves.
 * KVMMS_JOURNAL: the file. KVMMS_JOURNAL_ROOT: only files below are noted. KVMMS_JOURNAL_KILL: a file; once it is there this process
 * ends itself by SIGKILL before the n-th write or sync from then on, n being what the file holds. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNC, ALLOC, SYNC_BEGIN, SYNC_END, RENAME, UNLINK, MKDIR, LINK };

struct head { uint32_t magic; uint32_t op; uint64_t ino, at, len; uint32_t one, two; };

static const char *root(void) { static const char *r; if (!r) { r = getenv("KVMMS_JOURNAL_ROOT"); if (!r) r = ""; } return r; }

#define REAL(name) ({ static __typeof__(&name) f; if (!f) f = (__typeof__(&name))dlsym(RTLD_NEXT, #name); f; })

static int journal(void) {
    static int fd = -1;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    if (fd < 0 && getenv("KVMMS_JOURNAL")) {
        fd = REAL(open)(getenv("KVMMS_JOURNAL"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
        /* Out of the way of programs that close low numbers. */
        if (fd >= 0) { int high = fcntl(fd, F_DUPFD_CLOEXEC, 900); if (high >= 0) { REAL(close)(fd); fd = high; } }
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

static void note(uint32_t op, uint64_t ino, uint64_t at, uint64_t len, const char *one, const char *two, const struct iovec *data, int n) {
    int saved = errno;
    struct head h = { 0x4b4a4e4c, op, ino, at, len, one ? strlen(one) : 0, two ? strlen(two) : 0 };
    struct iovec v[1027];
    int c = 0;
    v[c++] = (struct iovec){ &h, sizeof h };
    v[c++] = (struct iovec){ (void *)(one ? one : ""), h.one };
    v[c++] = (struct iovec){ (void *)(two ? two : ""), h.two };
    uint64_t left = op == WRITE ? len : 0;
    if (left && n > 1000) abort();
    for (int i = 0; i < n && left; i++) {
        size_t part = data[i].iov_len < left ? data[i].iov_len : left;
        v[c++] = (struct iovec){ data[i].iov_base, part };
        left -= part;
    }
    if (c > 1000) abort();
    if (REAL(writev)(journal(), v, c) < 0) abort();
    errno = saved;
}

static int below(const char *path) {
    const char *r = root();
    size_t n = strlen(r);
    return n && !strncmp(path, r, n) && (path[n] == '/' || !path[n]);
}

/* Whether the file behind a descriptor is one of ours, and which. */
static int ours(int fd, uint64_t *ino) {
    int saved = errno, found = 0;
    char link[64], path[PATH_MAX];
    struct stat st;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n > 0) {
        path[n] = 0;
        if (below(path) && !fstat(fd, &st) && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) { *ino = st.st_ino; found = 1; }
    }
    errno = saved;
    return found;
}

static void whole_path(int dir, const char *path, char *out) {
    if (path[0] == '/') { snprintf(out, PATH_MAX, "%s", path); return; }
    char link[64], base[PATH_MAX];
    if (dir == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; }
    else { snprintf(link, sizeof link, "/proc/self/fd/%d", dir); ssize_t n = readlink(link, base, sizeof base - 1); base[n > 0 ? n : 0] = 0; }
    if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) out[0] = 0;
}

/* One more write or sync: perhaps the last. */
static void count(void) {
    const char *file = getenv("KVMMS_JOURNAL_KILL");
    static int seen;
    if (!file || REAL(access)(file, F_OK)) return;
    int fd = REAL(open)(file, O_RDONLY | O_CLOEXEC);
    char text[32] = { 0 };
    if (fd < 0) return;
    if (REAL(read)(fd, text, 31) > 0 && __sync_add_and_fetch(&seen, 1) >= atoi(text)) kill(getpid(), SIGKILL);
    REAL(close)(fd);
}

static int opened(int dir, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    struct stat st;
    int saved = errno, fresh = 0;
    if (flags & O_CREAT) {
        whole_path(dir, path, full);
        fresh = below(full) && lstat(full, &st) != 0;
    }
    errno = saved;
    int fd = REAL(openat)(dir, path, flags, mode);
    if (fd >= 0 && fresh && !fstat(fd, &st)) note(CREATE, st.st_ino, 0, 0, full, NULL, NULL, 0);
    else if (fd >= 0 && (flags & O_TRUNC)) { uint64_t ino; if (ours(fd, &ino)) note(TRUNC, ino, 0, 0, NULL, NULL, NULL, 0); }
    return fd;
}

#define MODE(last) mode_t mode = 0; if (flags & (O_CREAT | __O_TMPFILE)) { va_list a; va_start(a, last); mode = va_arg(a, mode_t); va_end(a); }
int open(const char *p, int flags, ...) { MODE(flags) return opened(AT_FDCWD, p, flags, mode); }
int open64(const char *p, int flags, ...) { MODE(flags) return opened(AT_FDCWD, p, flags | O_LARGEFILE, mode); }
int openat(int d, const char *p, int flags, ...) { MODE(flags) return opened(d, p, flags, mode); }
int openat64(int d, const char *p, int flags, ...) { MODE(flags) return opened(d, p, flags | O_LARGEFILE, mode); }
int creat(const char *p, mode_t mode) { return opened(AT_FDCWD, p, O_WRONLY | O_CREAT | O_TRUNC, mode); }

static ssize_t wrote(int fd, const struct iovec *v, int n, ssize_t done, off_t at) {
    uint64_t ino;
    if (done > 0 && ours(fd, &ino)) {
        if (at < 0) at = lseek(fd, 0, SEEK_CUR) - done;
        note(WRITE, ino, at, done, NULL, NULL, v, n);
    }
    return done;
}
static void before(int fd) { uint64_t ino; if (getenv("KVMMS_JOURNAL_KILL") && ours(fd, &ino)) count(); }

ssize_t write(int fd, const void *b, size_t n) { before(fd); struct iovec v = { (void *)b, n }; return wrote(fd, &v, 1, REAL(write)(fd, b, n), -1); }
ssize_t writev(int fd, const struct iovec *v, int n) { before(fd); return wrote(fd, v, n, REAL(writev)(fd, v, n), -1); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t at) { before(fd); struct iovec v = { (void *)b, n }; return wrote(fd, &v, 1, REAL(pwrite)(fd, b, n, at), at); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t at) { return pwrite(fd, b, n, at); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) { before(fd); return wrote(fd, v, n, REAL(pwritev)(fd, v, n, at), at); }
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t at) { return pwritev(fd, v, n, at); }

int ftruncate(int fd, off_t len) {
    before(fd);
    int r = REAL(ftruncate)(fd, len);
    uint64_t ino;
    if (!r && ours(fd, &ino)) note(TRUNC, ino, 0, len, NULL, NULL, NULL, 0);
    return r;
}
int ftruncate64(int fd, off64_t len) { return ftruncate(fd, len); }
int fallocate(int fd, int mode, off_t at, off_t len) {
    before(fd);
    int r = REAL(fallocate)(fd, mode, at, len);
    uint64_t ino;
    char text[16];
    snprintf(text, sizeof text, "%d", mode);
    if (!r && ours(fd, &ino)) note(ALLOC, ino, at, len, text, NULL, NULL, 0);
    return r;
}
int fallocate64(int fd, int mode, off64_t at, off64_t len) { return fallocate(fd, mode, at, len); }
int posix_fallocate(int fd, off_t at, off_t len) { return fallocate(fd, 0, at, len) ? errno : 0; }
int posix_fallocate64(int fd, off64_t at, off64_t len) { return posix_fallocate(fd, at, len); }

/* The end of a sync tells when the file was changed last; whether that is durable too depends on which sync it was. */
static int synced(int fd, const char *how, int (*real)(int)) {
    before(fd);
    uint64_t ino;
    struct stat st;
    int o = ours(fd, &ino);
    if (o) note(SYNC_BEGIN, ino, 0, 0, NULL, NULL, NULL, 0);
    int r = real(fd);
    if (o && !r && !fstat(fd, &st)) note(SYNC_END, ino, st.st_mtim.tv_sec, st.st_mtim.tv_nsec, how, NULL, NULL, 0);
    return r;
}
int fsync(int fd) { return synced(fd, "whole", REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, "data", REAL(fdatasync)); }

static int moved(uint32_t op, int da, const char *a, int db, const char *b, int r) {
    char one[PATH_MAX], two[PATH_MAX];
    if (r) return r;
    whole_path(da, a, one);
    whole_path(db, b, two);
    if (below(one) || below(two)) note(op, 0, 0, 0, one, two, NULL, 0);
    return r;
}
int rename(const char *a, const char *b) { return moved(RENAME, AT_FDCWD, a, AT_FDCWD, b, REAL(rename)(a, b)); }
int renameat(int da, const char *a, int db, const char *b) { return moved(RENAME, da, a, db, b, REAL(renameat)(da, a, db, b)); }
int renameat2(int da, const char *a, int db, const char *b, unsigned f) { return moved(RENAME, da, a, db, b, REAL(renameat2)(da, a, db, b, f)); }
int link(const char *a, const char *b) { return moved(LINK, AT_FDCWD, a, AT_FDCWD, b, REAL(link)(a, b)); }
int linkat(int da, const char *a, int db, const char *b, int f) { return moved(LINK, da, a, db, b, REAL(linkat)(da, a, db, b, f)); }

static int gone(int dir, const char *p, int r) {
    char full[PATH_MAX];
    if (r) return r;
    whole_path(dir, p, full);
    if (below(full)) note(UNLINK, 0, 0, 0, full, NULL, NULL, 0);
    return r;
}
int unlink(const char *p) { return gone(AT_FDCWD, p, REAL(unlink)(p)); }
int rmdir(const char *p) { return gone(AT_FDCWD, p, REAL(rmdir)(p)); }
int unlinkat(int d, const char *p, int f) { return gone(d, p, REAL(unlinkat)(d, p, f)); }

static int made(int dir, const char *p, int r) {
    char full[PATH_MAX];
    struct stat st;
    if (r) return r;
    whole_path(dir, p, full);
    if (below(full) && !lstat(full, &st)) note(MKDIR, st.st_ino, 0, 0, full, NULL, NULL, 0);
    return r;
}
int mkdir(const char *p, mode_t m) { return made(AT_FDCWD, p, REAL(mkdir)(p, m)); }
int mkdirat(int d, const char *p, mode_t m) { return made(d, p, REAL(mkdirat)(d, p, m)); }
