/* A disk that stops, loses power or refuses at a chosen file operation. Preloaded into a process, it stands
 * before the C library's calls that alter files, so that LMDB, hnswlib and Python all go through it.
 *
 * It minds the files of one folder. Operations are counted: creating or emptying a file, writes, truncation,
 * syncs, renames, unlinks. At the chosen one it does one of:
 *
 *   KILL    a write keeps some first pages, then the process is killed; the kernel still has all before it
 *   POWER   as if the machine lost power: of what was not synced, some is there and some is not
 *   EIO     the operation fails once, a write perhaps after some first pages
 *   DEAD    this one and all later ones fail with EIO
 *   FULL    this write and all later ones fail with ENOSPC
 *
 * What power loss leaves, as journalling file systems have it: writes to a file are kept or lost each on its
 * own until that file is synced; names (create, rename, unlink) are lost from the last one backwards until
 * any sync; a write through O_DSYNC is there when it returns; the write under way is torn between sectors.
 * LMDB's lock file and the writer's lock are not minded: nothing of them outlives a process.
 *
 * One thread writes. Linux with glibc.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, KILL, POWER, EIO_ONCE, DEAD, FULL };
enum { DATA, CREATE, RENAME, UNLINK };
enum { SECTOR = 512, PAGE = 4096 };

typedef struct Undo {
    struct Undo *before;
    int kind, durable, is_cut; /* is_cut: a truncation to `at` */
    char *path, *from; /* from: the name before a rename */
    char *kept;        /* a second name of the file that a rename or an unlink took away */
    off_t at, old_size;
    size_t old_length, new_length;
    char *old_bytes, *new_bytes;
} Undo;

static char folder[PATH_MAX];
static long count, fatal;
static int what, dead;
static uint64_t dice;
static Undo *last;
static int kept_names;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

static uint64_t roll(uint64_t below) { /* splitmix64 */
    uint64_t z = (dice += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return below ? (z ^ (z >> 31)) % below : 0;
}

/* ---- which files */

static int minded(const char *path) {
    size_t length = strlen(folder);
    if (!length || !path || strncmp(path, folder, length) || path[length] != '/') return 0;
    const char *name = strrchr(path, '/') + 1;
    return strcmp(name, "lock.mdb") && strcmp(name, "writer");
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int minded_fd(int fd, char *path) {
    return folder[0] && path_of(fd, path) && (minded(path) || !strcmp(path, folder));
}

/* ---- what can be taken back */

static void forget(Undo *undo) {
    if (undo->kept) REAL(unlink)(undo->kept);
    free(undo->path), free(undo->from), free(undo->kept), free(undo->old_bytes), free(undo->new_bytes), free(undo);
}

static Undo *note(int kind, const char *path) {
    Undo *undo = calloc(1, sizeof *undo);
    undo->kind = kind, undo->path = strdup(path), undo->before = last;
    return last = undo;
}

static char *keep(const char *path) { /* a second name, beside the folder */
    char name[PATH_MAX + 32];
    snprintf(name, sizeof name, "%s.kept.%d.%d", folder, getpid(), kept_names++);
    return link(path, name) ? NULL : strdup(name);
}

static void note_data(int fd, const char *path, off_t at, const void *bytes, size_t length, int is_cut) {
    struct stat now;
    Undo *undo = note(DATA, path);
    fstat(fd, &now);
    undo->at = at, undo->old_size = now.st_size, undo->is_cut = is_cut;
    off_t upto = is_cut || (off_t)(at + length) > now.st_size ? now.st_size : (off_t)(at + length);
    if (upto > at) {
        int reader = REAL(open)(path, O_RDONLY | O_CLOEXEC);
        undo->old_bytes = malloc(upto - at);
        ssize_t got = pread(reader, undo->old_bytes, upto - at, at);
        undo->old_length = got > 0 ? got : 0;
        close(reader);
    }
    undo->new_bytes = malloc(length + 1), undo->new_length = length;
    if (length) memcpy(undo->new_bytes, bytes, length);
    undo->durable = (fcntl(fd, F_GETFL) & O_DSYNC) != 0;
}

static void synced(const char *path) { /* the data of this file, and all names */
    int all = !strcmp(path, folder);
    for (Undo **place = &last; *place;) {
        Undo *undo = *place;
        if (undo->kind != DATA || (!all && !strcmp(undo->path, path)))
            *place = undo->before, forget(undo);
        else
            place = &undo->before;
    }
}

static void restore(Undo *undo, int new) {
    int fd = REAL(open)(undo->path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    char *bytes = new ? undo->new_bytes : undo->old_bytes;
    size_t length = new ? undo->new_length : undo->old_length;
    if (length && REAL(pwrite)(fd, bytes, length, undo->at) < 0) abort();
    if (!new && REAL(ftruncate)(fd, undo->old_size)) abort();
    if (new && undo->is_cut && REAL(ftruncate)(fd, undo->at)) abort();
    close(fd);
}

static void lose_power(void) {
    int names = 0;
    for (Undo *undo = last; undo; undo = undo->before) {
        names += undo->kind != DATA;
        if (undo->kind == DATA) restore(undo, 0);
    }
    int lost = (int)roll(names + 1);
    Undo **order = NULL;
    size_t n = 0;
    for (Undo *undo = last; undo; undo = undo->before) {
        order = realloc(order, (n + 1) * sizeof *order);
        order[n++] = undo;
    }
    uint64_t share = roll(101); /* of the writes that are kept: all, none, anything between */
    for (size_t i = n; i-- > 0;)
        if (order[i]->kind == DATA && (order[i]->durable || roll(100) < share)) restore(order[i], 1);
    for (size_t i = 0; i < n && lost > 0; i++) {
        Undo *undo = order[i];
        if (undo->kind == DATA) continue;
        if (undo->kind == CREATE) REAL(unlink)(undo->path);
        if (undo->kind == RENAME) REAL(rename)(undo->path, undo->from);
        if (undo->kept) link(undo->kept, undo->path);
        lost--;
    }
    for (size_t i = 0; i < n; i++)
        if (order[i]->kept) REAL(unlink)(order[i]->kept);
}

static void die(int power) {
    if (power) lose_power();
    while (last) {
        Undo *undo = last;
        last = undo->before, forget(undo);
    }
    kill(getpid(), SIGKILL);
    pause();
}

/* ---- the plan */

void disk_watch(const char *path) {
    snprintf(folder, sizeof folder, "%s", path);
    count = 0, fatal = 0, what = NONE, dead = 0;
}
void disk_plan(long at, int kind, uint64_t seed) { fatal = count + at, what = kind, dead = 0, dice = seed; }
long disk_count(void) { return count; }
void disk_die(int power, uint64_t seed) { dice = seed, die(power); }

/* Counts one; returns whether its time has come. Sets errno where the operation has to fail. */
static int strikes(int is_write) {
    count++;
    int now = what != NONE && fatal == count;
    if (now && (what == DEAD || what == FULL)) dead = what;
    if (dead == FULL && !is_write) return 0;
    if (!now && !dead) return 0;
    errno = dead == FULL || what == FULL ? ENOSPC : EIO;
    return 1;
}

static int fails(void) { /* an operation that is not a write, once it is struck */
    if (what == KILL || what == POWER) die(what == POWER);
    return -1;
}

/* ---- the calls */

static ssize_t put(int fd, const char *path, const void *bytes, size_t length, off_t at) {
    if (!strikes(1)) {
        note_data(fd, path, at, bytes, length, 0);
        return REAL(pwrite)(fd, bytes, length, at);
    }
    int error = errno;
    off_t end = at + (roll(4) ? roll(length + 1) : 0);
    end -= end % (what == POWER ? SECTOR : PAGE); /* nothing less is ever torn */
    if (end > at) {
        size_t some = end - at;
        note_data(fd, path, at, bytes, some, 0);
        if (REAL(pwrite)(fd, bytes, some, at) < 0) abort();
    }
    errno = error;
    return fails();
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
    char path[PATH_MAX];
    return minded_fd(fd, path) ? put(fd, path, bytes, length, at) : REAL(pwrite)(fd, bytes, length, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t at) { return pwrite(fd, bytes, length, at); }

static off_t place(int fd) {
    struct stat now;
    if (!(fcntl(fd, F_GETFL) & O_APPEND)) return lseek(fd, 0, SEEK_CUR);
    fstat(fd, &now);
    return now.st_size;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    char path[PATH_MAX];
    if (!minded_fd(fd, path)) return REAL(write)(fd, bytes, length);
    off_t at = place(fd);
    ssize_t done = put(fd, path, bytes, length, at);
    if (done > 0) lseek(fd, at + done, SEEK_SET);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    char path[PATH_MAX];
    if (!minded_fd(fd, path)) return REAL(writev)(fd, parts, n);
    size_t length = 0;
    for (int i = 0; i < n; i++) length += parts[i].iov_len;
    char *bytes = malloc(length + 1), *end = bytes;
    for (int i = 0; i < n; i++) end = mempcpy(end, parts[i].iov_base, parts[i].iov_len);
    ssize_t done = write(fd, bytes, length);
    int error = errno;
    free(bytes);
    errno = error;
    return done;
}

ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) {
    char path[PATH_MAX];
    if (!minded_fd(fd, path)) return REAL(pwritev)(fd, parts, n, at);
    size_t length = 0;
    for (int i = 0; i < n; i++) length += parts[i].iov_len;
    char *bytes = malloc(length + 1), *end = bytes;
    for (int i = 0; i < n; i++) end = mempcpy(end, parts[i].iov_base, parts[i].iov_len);
    ssize_t done = put(fd, path, bytes, length, at);
    int error = errno;
    free(bytes);
    errno = error;
    return done;
}
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off_t at) { return pwritev(fd, parts, n, at); }

int ftruncate(int fd, off_t size) {
    char path[PATH_MAX];
    if (!minded_fd(fd, path)) return REAL(ftruncate)(fd, size);
    if (strikes(1)) return fails();
    note_data(fd, path, size, NULL, 0, 1);
    return REAL(ftruncate)(fd, size);
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

static int sync_with(int fd, int (*call)(int)) {
    char path[PATH_MAX];
    if (!minded_fd(fd, path)) return call(fd);
    if (strikes(0)) return fails();
    int done = call(fd);
    if (!done) synced(path);
    return done;
}
int fsync(int fd) { return sync_with(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_with(fd, REAL(fdatasync)); }

/* Before a file is made or emptied: 0 go on, -1 it fails. */
static int opening(const char *path, int flags) {
    if (!minded(path) || !(flags & (O_CREAT | O_TRUNC))) return 0;
    int there = !access(path, F_OK);
    if (there && !(flags & O_TRUNC)) return 0;
    if (strikes(0)) return fails();
    if (!there) {
        if (flags & O_CREAT) note(CREATE, path);
        return 0;
    }
    int fd = REAL(open)(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) note_data(fd, path, 0, NULL, 0, 1), close(fd);
    return 0;
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opening(path, flags) ? -1 : REAL(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opening(path, flags) ? -1 : REAL(open)(path, flags, mode);
}

FILE *fopen(const char *path, const char *mode) {
    return mode[0] == 'w' && opening(path, O_CREAT | O_TRUNC) ? NULL : REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    return mode[0] == 'w' && opening(path, O_CREAT | O_TRUNC) ? NULL : REAL(fopen)(path, mode);
}

int rename(const char *from, const char *to) {
    if (!minded(from) || !minded(to)) return REAL(rename)(from, to);
    if (strikes(0)) return fails();
    char *kept = keep(to);
    for (Undo **place = &last; *place;) { /* what was written to the file that goes away */
        Undo *undo = *place;
        if (undo->kind == DATA && !strcmp(undo->path, to))
            *place = undo->before, forget(undo);
        else
            place = &undo->before;
    }
    for (Undo *undo = last; undo; undo = undo->before)
        if (undo->kind == DATA && !strcmp(undo->path, from)) free(undo->path), undo->path = strdup(to);
    Undo *undo = note(RENAME, to);
    undo->from = strdup(from), undo->kept = kept;
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    if (!minded(path) || access(path, F_OK)) return REAL(unlink)(path);
    if (strikes(0)) return fails();
    char *kept = keep(path);
    note(UNLINK, path)->kept = kept;
    return REAL(unlink)(path);
}
