/* Faults of a file system, put between a program and the C library: cc -shared -fPIC -o faults.so faults.c -ldl, LD_PRELOAD.
 *
 * Counted are the calls that change a file whose path contains a given part: opening it for writing, write, pwrite, fsync,
 * rename. From the n-th on (or at the n-th alone, for what passes) they fail. The part, the kind and n come from fault_arm() or
 * from ONNXSPECT_FAULT_PATH, ONNXSPECT_FAULT_KIND, ONNXSPECT_FAULT_NTH.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { NONE, FULL, BROKEN, INTERRUPTED, SHORT, READ_ONLY, KILLED };
static char part[256];
static int kind = NONE, nth = 0;
static long seen = 0;

void fault_arm(const char *path, int what, int when) {
    strncpy(part, path, sizeof part - 1);
    kind = what, nth = when, seen = 0;
}

long fault_seen(void) { return seen; }

__attribute__((constructor)) static void from_environment(void) {
    const char *path = getenv("ONNXSPECT_FAULT_PATH");
    if (path) fault_arm(path, atoi(getenv("ONNXSPECT_FAULT_KIND")), atoi(getenv("ONNXSPECT_FAULT_NTH")));
}

/* Whether this call on `path` goes wrong: -1 with errno set, 1 for a short write, 0 for no fault. */
static int fault(const char *path, int writes) {
    if (kind == NONE || !path || !strstr(path, part)) return 0;
    long now = ++seen;
    int at = now == nth, from = now >= nth;
    switch (kind) {
    case FULL: if (from) { errno = ENOSPC; return -1; } break;
    case BROKEN: if (from) { errno = EIO; return -1; } break;
    case READ_ONLY: if (from) { errno = EROFS; return -1; } break;
    case INTERRUPTED: if (at && writes) { errno = EINTR; return -1; } break;
    case SHORT: if (from && writes) return 1; break;
    case KILLED: if (at) raise(SIGKILL); break;
    }
    return 0;
}

static int fault_fd(int fd, int writes) {
    char link[64], path[4096];
    if (kind == NONE) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return fault(path, writes);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define OPENING(name, first, ...)                                              \
    int f; va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
    REAL(name);                                                                \
    if ((flags & O_ACCMODE) != O_RDONLY && (f = fault(path, 0)) < 0) return -1; \
    return real(__VA_ARGS__, mode)

int open(const char *path, int flags, ...) { OPENING(open, path, path, flags); }
int open64(const char *path, int flags, ...) { OPENING(open64, path, path, flags); }
int openat(int at, const char *path, int flags, ...) { OPENING(openat, path, at, path, flags); }
int openat64(int at, const char *path, int flags, ...) { OPENING(openat64, path, at, path, flags); }

ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    int f = fault_fd(fd, 1);
    return f < 0 ? -1 : real(fd, data, f && n > 1 ? n / 2 : n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    REAL(pwrite);
    int f = fault_fd(fd, 1);
    return f < 0 ? -1 : real(fd, data, f && n > 1 ? n / 2 : n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL(pwrite64);
    int f = fault_fd(fd, 1);
    return f < 0 ? -1 : real(fd, data, f && n > 1 ? n / 2 : n, at);
}
int fsync(int fd) { REAL(fsync); return fault_fd(fd, 0) < 0 ? -1 : real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return fault_fd(fd, 0) < 0 ? -1 : real(fd); }
int rename(const char *from, const char *to) { REAL(rename); return fault(from, 0) < 0 ? -1 : real(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat);
    return fault(from, 0) < 0 ? -1 : real(a, from, b, to);
}
