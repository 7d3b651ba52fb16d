/* LD_PRELOAD library that records, in order, a program's writes to its database files and to its sockets, so that the
 * disk after a power loss can be reconstructed for any moment. TRACE names the output file.
 *
 * A record is: kind (1 byte), file number (1), thread number (2), length of the payload (4), offset (8), payload.
 *   N name      assigns a file number; payload: path
 *   W write     at offset; payload: the data
 *   T truncate  to offset
 *   S sync      begins: all earlier writes are on the disk at the matching Y
 *   Y synced    the sync has succeeded
 *   A answer    the first bytes sent in one call on a socket
 *
 * Writes are recorded before they happen and syncs after, so the trace never shows data as safer than it was. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 1024
#define ANSWER 2048

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1;
static unsigned char number_of[FILES];
static char *names[256];
static int known;
static uint16_t threads;
static _Thread_local uint16_t thread;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* The program may call a replaced function before initialization, so `real` looks the original up on each call. */
static void note(char kind, int file, uint64_t offset, const void *payload, uint32_t length)
{
    static ssize_t (*out)(int, const struct iovec *, int);
    unsigned char head[16] = {(unsigned char)kind, (unsigned char)file};
    if (!out) out = REAL(writev);
    if (!thread) thread = ++threads;
    memcpy(head + 2, &thread, 2);
    memcpy(head + 4, &length, 4);
    memcpy(head + 8, &offset, 8);
    struct iovec parts[2] = {{head, sizeof head}, {(void *)payload, length}};
    if (out(trace, parts, 2) != (ssize_t)(sizeof head + length)) abort();
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("TRACE");
    if (path) trace = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

/* The number of a traced file (databases and their WALs); 0 for any other file. */
static int number(int fd) { return fd >= 0 && fd < FILES ? number_of[fd] : 0; }

static int opened(int fd, const char *path)
{
    const char *dot = strrchr(path, '.');
    if (fd < 0 || fd >= FILES || trace < 0) return fd;
    pthread_mutex_lock(&lock);
    number_of[fd] = 0;
    if (dot && (!strcmp(dot, ".db") || !strcmp(dot, ".db-wal") || !strcmp(dot, ".db-journal"))) {
        int at = 1;
        while (at <= known && strcmp(names[at], path)) at++;
        if (at > known && known < 255) {
            known = at;
            names[at] = strdup(path);
            note('N', at, 0, path, strlen(path));
        }
        number_of[fd] = at;
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN(name)                                                         \
    int name(const char *path, int flags, ...)                             \
    {                                                                      \
        va_list rest;                                                      \
        va_start(rest, flags);                                             \
        int mode = va_arg(rest, int);                                      \
        va_end(rest);                                                      \
        return opened(((int (*)(const char *, int, ...))real(#name))(path, flags, mode), path); \
    }
OPEN(open)
OPEN(open64)

int close(int fd)
{
    if (fd >= 0 && fd < FILES) number_of[fd] = 0;
    return REAL(close)(fd);
}

#define PWRITE(name, offset_t)                                                     \
    ssize_t name(int fd, const void *from, size_t length, offset_t offset)         \
    {                                                                              \
        ssize_t (*call)(int, const void *, size_t, offset_t) = real(#name);        \
        if (!number(fd)) return call(fd, from, length, offset);                    \
        pthread_mutex_lock(&lock);                                                 \
        note('W', number(fd), offset, from, length);                               \
        ssize_t done = call(fd, from, length, offset);                             \
        pthread_mutex_unlock(&lock);                                               \
        return done;                                                               \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define TRUNCATE(name, offset_t)                          \
    int name(int fd, offset_t length)                     \
    {                                                     \
        int (*call)(int, offset_t) = real(#name);         \
        if (!number(fd)) return call(fd, length);         \
        pthread_mutex_lock(&lock);                        \
        note('T', number(fd), length, "", 0);             \
        int done = call(fd, length);                      \
        pthread_mutex_unlock(&lock);                      \
        return done;                                      \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(name)                                        \
    int name(int fd)                                      \
    {                                                     \
        int (*call)(int) = real(#name);                   \
        int file = number(fd);                            \
        if (!file) return call(fd);                       \
        pthread_mutex_lock(&lock);                        \
        note('S', file, 0, "", 0);                        \
        pthread_mutex_unlock(&lock);                      \
        int done = call(fd);                              \
        pthread_mutex_lock(&lock);                        \
        if (done == 0) note('Y', file, 0, "", 0);         \
        pthread_mutex_unlock(&lock);                      \
        return done;                                      \
    }
SYNC(fsync)
SYNC(fdatasync)

static void answered(const struct iovec *parts, int count)
{
    char told[ANSWER];
    size_t length = 0;
    if (trace < 0) return;
    for (int at = 0; at < count && length < sizeof told; at++) {
        size_t more = parts[at].iov_len < sizeof told - length ? parts[at].iov_len : sizeof told - length;
        memcpy(told + length, parts[at].iov_base, more);
        length += more;
    }
    pthread_mutex_lock(&lock);
    note('A', 0, 0, told, length);
    pthread_mutex_unlock(&lock);
}

static int is_socket(int fd)
{
    int type;
    socklen_t size = sizeof type;
    return trace >= 0 && fd > 2 && !number(fd) && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

ssize_t send(int fd, const void *from, size_t length, int flags)
{
    struct iovec part = {(void *)from, length};
    if (is_socket(fd)) answered(&part, 1);
    return REAL(send)(fd, from, length, flags);
}

ssize_t write(int fd, const void *from, size_t length)
{
    struct iovec part = {(void *)from, length};
    if (number(fd)) {
        pthread_mutex_lock(&lock);
        note('W', number(fd), lseek(fd, 0, SEEK_CUR), from, length);
        ssize_t done = REAL(write)(fd, from, length);
        pthread_mutex_unlock(&lock);
        return done;
    }
    if (is_socket(fd)) answered(&part, 1);
    return REAL(write)(fd, from, length);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    if (is_socket(fd)) answered(parts, count);
    return REAL(writev)(fd, parts, count);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (is_socket(fd)) answered(message->msg_iov, message->msg_iovlen);
    return REAL(sendmsg)(fd, message, flags);
}
