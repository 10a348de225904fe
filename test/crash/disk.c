/* A disk that can fail and that can lose its power, between one process and the real one.

Loaded with LD_PRELOAD; looks at the files below DISK_ROOT only. Two duties:

1. It writes into DISK_LOG what it takes to undo each change that is not synced yet: the old octets
   of every write and truncation, the names that were made, moved and removed, and every sync. Nothing
   is really synced: what a power cut would have lost is taken back by test/support/disk.py. Every file
   has a second name, its inode number, in DISK_INODES, so that removed ones can come back.
2. While the rule in DISK_CONTROL (shared memory, written by the test) is active, calls fail as it says.

The files of SQLite's shared memory (-shm) are left alone: a restart makes them anew. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE = 1, TRUNCATE, SYNC, CREATE, RENAME, UNLINK, MKDIR, DIRSYNC };

/* As `struct` format "<IIQQqqqII" reads it; `first` and `second` octets follow. */
struct record {
    uint32_t magic, kind;
    uint64_t seq, inode;
    int64_t offset, length, old_size;
    uint32_t first, second;
} __attribute__((packed));

enum operation { OP_WRITE = 1, OP_SYNC = 2, OP_RENAME = 4, OP_OPEN = 8, OP_UNLINK = 16 };

/* As `struct` format "<IIiiii104s" writes it. */
struct control {
    volatile uint32_t active, operations;
    volatile int32_t error, skip, count, half;
    char path[104];
};

#define MAGIC 0x6b736964u
#define FILES 65536

struct file {
    char *path;
    uint64_t inode;
    int reading;
    int directory;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct file files[FILES];
static const char *root, *inodes;
static size_t root_length;
static int log_fd = -1;
static uint64_t sequence;
static struct control *control;

/* Look at the environment: at start, and when a process that had loaded everything becomes a daemon. */
__attribute__((constructor)) void disk_begin(void) {
    const char *path = getenv("DISK_LOG");
    root = getenv("DISK_ROOT");
    inodes = getenv("DISK_INODES");
    if (!path || !root || !inodes) {
        root = NULL;
        return;
    }
    root_length = strlen(root);
    log_fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    path = getenv("DISK_CONTROL");
    if (path) {
        int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
        if (fd >= 0) {
            void *memory = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (memory != MAP_FAILED)
                control = memory;
            syscall(SYS_close, fd);
        }
    }
}

static int is_ours(const char *path) {
    size_t length;
    if (!root || !path || strncmp(path, root, root_length) || (path[root_length] && path[root_length] != '/'))
        return 0;
    length = strlen(path);
    return length < 4 || strcmp(path + length - 4, "-shm");
}

static void note(uint32_t kind, uint64_t inode, int64_t offset, int64_t length, int64_t old_size,
                 const void *first, size_t first_length, const void *second, size_t second_length) {
    struct record record = {MAGIC,    kind,         ++sequence,    inode, offset, length,
                            old_size, first_length, second_length};
    struct iovec parts[3] = {
        {&record, sizeof record}, {(void *)first, first_length}, {(void *)second, second_length}};
    if (syscall(SYS_writev, log_fd, parts, 3) < 0)
        abort();
}

/* Whether a call is to fail now, and with what. */
static int fault(int operation, const char *path, int *half) {
    if (half)
        *half = 0;
    if (!control || !control->active || !(control->operations & operation) || !path || !strstr(path, control->path))
        return 0;
    if (control->skip > 0) {
        control->skip--;
        return 0;
    }
    if (control->count == 0)
        return 0;
    if (half && control->half) {
        control->half = 0;
        *half = 1;
        return 0;
    }
    if (control->count > 0)
        control->count--;
    return control->error;
}

static int64_t size_of(int fd) {
    struct stat state;
    return syscall(SYS_fstat, fd, &state) ? 0 : state.st_size;
}

/* Give a file its second name. */
static uint64_t keep(const char *path) {
    struct stat state;
    char name[PATH_MAX];
    if (syscall(SYS_lstat, path, &state) || !S_ISREG(state.st_mode))
        return 0;
    snprintf(name, sizeof name, "%s/%llu", inodes, (unsigned long long)state.st_ino);
    if (syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, name, 0) && errno != EEXIST)
        abort();
    return state.st_ino;
}

static void note_cut(int fd, uint64_t inode, int64_t size, int64_t old_size) {
    void *old = NULL;
    int64_t lost = old_size > size ? old_size - size : 0;
    if (lost) {
        old = malloc(lost);
        lost = syscall(SYS_pread64, fd, old, lost, size);
        if (lost < 0)
            abort();
    }
    note(TRUNCATE, inode, size, 0, old_size, old, lost, NULL, 0);
    free(old);
}

static int open_file(int at, const char *path, int flags, mode_t mode) {
    struct stat state;
    int fd, error, was_there;
    if (at != AT_FDCWD || !is_ours(path))
        return syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&mutex);
    was_there = !syscall(SYS_lstat, path, &state);
    if (!was_there && (flags & O_CREAT) && (error = fault(OP_OPEN, path, NULL))) {
        pthread_mutex_unlock(&mutex);
        errno = error;
        return -1;
    }
    if (was_there && S_ISREG(state.st_mode) && (flags & O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY &&
        !(flags & O_EXCL)) {
        uint64_t inode = keep(path);
        int reading = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
        if (reading >= 0) {
            note_cut(reading, inode, 0, state.st_size);
            syscall(SYS_close, reading);
        }
    }
    fd = syscall(SYS_openat, at, path, flags, mode);
    if (fd >= 0 && fd < FILES) {
        struct file *file = &files[fd];
        int saved = errno;
        memset(file, 0, sizeof *file);
        file->reading = -1;
        if (!syscall(SYS_fstat, fd, &state) && (S_ISDIR(state.st_mode) || S_ISREG(state.st_mode))) {
            file->path = strdup(path);
            file->directory = S_ISDIR(state.st_mode);
            if (!file->directory) {
                file->inode = keep(path);
                if (!was_there)
                    note(CREATE, file->inode, 0, 0, 0, path, strlen(path), NULL, 0);
                if ((flags & O_ACCMODE) != O_RDONLY)
                    file->reading = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
            }
        }
        errno = saved;
    }
    pthread_mutex_unlock(&mutex);
    return fd;
}

#define OPENS(name, at_argument, at)                                                                                   \
    int name(at_argument const char *path, int flags, ...) {                                                           \
        mode_t mode = 0;                                                                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                           \
            va_list rest;                                                                                              \
            va_start(rest, flags);                                                                                     \
            mode = va_arg(rest, int);                                                                                  \
            va_end(rest);                                                                                              \
        }                                                                                                              \
        return open_file(at, path, flags, mode);                                                                       \
    }
#define COMMA ,
OPENS(open, , AT_FDCWD)
OPENS(open64, , AT_FDCWD)
OPENS(openat, int directory COMMA, directory)
OPENS(openat64, int directory COMMA, directory)

int close(int fd) {
    if (root && fd >= 0 && fd < FILES && files[fd].path) {
        pthread_mutex_lock(&mutex);
        if (files[fd].path) {
            if (files[fd].reading >= 0)
                syscall(SYS_close, files[fd].reading);
            free(files[fd].path);
            memset(&files[fd], 0, sizeof files[fd]);
        }
        pthread_mutex_unlock(&mutex);
    }
    return syscall(SYS_close, fd);
}

static struct file *file_of(int fd) {
    return root && fd >= 0 && fd < FILES && files[fd].path ? &files[fd] : NULL;
}

/* Any write: at `offset`, or at the file's own place when that is -1. */
static ssize_t write_file(int fd, const struct iovec *parts, int count, off_t offset) {
    struct file *file = file_of(fd);
    ssize_t done;
    int error, half;
    int64_t length = 0, size, at, old_length;
    void *old = NULL;
    struct iovec one;
    if (!file)
        return offset < 0 ? syscall(SYS_writev, fd, parts, count)
                          : syscall(SYS_pwritev2, fd, parts, count, offset, 0L, 0);
    pthread_mutex_lock(&mutex);
    for (int n = 0; n < count; n++)
        length += parts[n].iov_len;
    error = fault(OP_WRITE, file->path, &half);
    if (error) {
        pthread_mutex_unlock(&mutex);
        errno = error;
        return -1;
    }
    if (half) {
        one = parts[0];
        one.iov_len = (one.iov_len + 1) / 2;
        length = one.iov_len;
        parts = &one;
        count = 1;
    }
    size = size_of(fd);
    at = offset;
    if (offset < 0)
        at = syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND ? size : syscall(SYS_lseek, fd, 0, SEEK_CUR);
    old_length = at < size ? (at + length < size ? length : size - at) : 0;
    if (old_length > 0) {
        old = malloc(old_length);
        old_length = syscall(SYS_pread64, file->reading >= 0 ? file->reading : fd, old, old_length, at);
        if (old_length < 0)
            abort();
    }
    note(WRITE, file->inode, at, length, size, old, old_length, NULL, 0);
    free(old);
    done = offset < 0 ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev2, fd, parts, count, offset, 0L, 0);
    pthread_mutex_unlock(&mutex);
    return done;
}

ssize_t write(int fd, const void *octets, size_t length) {
    struct iovec part = {(void *)octets, length};
    if (!file_of(fd))
        return syscall(SYS_write, fd, octets, length);
    return write_file(fd, &part, 1, -1);
}

ssize_t writev(int fd, const struct iovec *parts, int count) { return write_file(fd, parts, count, -1); }

ssize_t pwrite(int fd, const void *octets, size_t length, off_t offset) {
    struct iovec part = {(void *)octets, length};
    return write_file(fd, &part, 1, offset);
}

ssize_t pwrite64(int fd, const void *octets, size_t length, off64_t offset) {
    struct iovec part = {(void *)octets, length};
    return write_file(fd, &part, 1, offset);
}

static int cut_file(int fd, off_t size) {
    struct file *file = file_of(fd);
    int result, error;
    if (!file)
        return syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&mutex);
    error = fault(OP_WRITE, file->path, NULL);
    if (error) {
        pthread_mutex_unlock(&mutex);
        errno = error;
        return -1;
    }
    note_cut(file->reading >= 0 ? file->reading : fd, file->inode, size, size_of(fd));
    result = syscall(SYS_ftruncate, fd, size);
    pthread_mutex_unlock(&mutex);
    return result;
}

int ftruncate(int fd, off_t size) { return cut_file(fd, size); }
int ftruncate64(int fd, off64_t size) { return cut_file(fd, size); }

int fallocate(int fd, int mode, off_t offset, off_t length) {
    if (file_of(fd)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return syscall(SYS_fallocate, fd, mode, offset, length);
}

int posix_fallocate(int fd, off_t offset, off_t length) {
    return file_of(fd) ? EOPNOTSUPP : (syscall(SYS_fallocate, fd, 0, offset, length) ? errno : 0);
}

static int sync_file(int fd, long number) {
    struct file *file = file_of(fd);
    int error;
    if (!file)
        return syscall(number, fd);
    pthread_mutex_lock(&mutex);
    error = fault(OP_SYNC, file->path, NULL);
    if (!error) {
        if (file->directory)
            note(DIRSYNC, 0, 0, 0, 0, file->path, strlen(file->path), NULL, 0);
        else
            note(SYNC, file->inode, 0, 0, 0, NULL, 0, NULL, 0);
    }
    pthread_mutex_unlock(&mutex);
    errno = error;
    return error ? -1 : 0;
}

int fsync(int fd) { return sync_file(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }

int rename(const char *from, const char *to) {
    struct stat state;
    uint64_t inode, replaced;
    int result, error;
    if (!is_ours(from) || !is_ours(to))
        return syscall(SYS_rename, from, to);
    pthread_mutex_lock(&mutex);
    error = fault(OP_RENAME, to, NULL);
    if (error) {
        pthread_mutex_unlock(&mutex);
        errno = error;
        return -1;
    }
    inode = keep(from);
    replaced = syscall(SYS_lstat, to, &state) ? 0 : keep(to);
    note(RENAME, inode, replaced, 0, 0, from, strlen(from), to, strlen(to));
    result = syscall(SYS_rename, from, to);
    pthread_mutex_unlock(&mutex);
    return result;
}

int link(const char *from, const char *to) {
    int result;
    if (!is_ours(from) || !is_ours(to))
        return syscall(SYS_link, from, to);
    pthread_mutex_lock(&mutex);
    result = syscall(SYS_link, from, to);
    if (!result)
        note(CREATE, keep(to), 0, 0, 0, to, strlen(to), NULL, 0);
    pthread_mutex_unlock(&mutex);
    return result;
}

int unlink(const char *path) {
    struct stat state;
    int result, error;
    if (!is_ours(path))
        return syscall(SYS_unlink, path);
    pthread_mutex_lock(&mutex);
    error = fault(OP_UNLINK, path, NULL);
    if (error) {
        pthread_mutex_unlock(&mutex);
        errno = error;
        return -1;
    }
    if (!syscall(SYS_lstat, path, &state))
        note(UNLINK, keep(path), 0, 0, 0, path, strlen(path), NULL, 0);
    result = syscall(SYS_unlink, path);
    pthread_mutex_unlock(&mutex);
    return result;
}

int mkdir(const char *path, mode_t mode) {
    int result;
    if (!is_ours(path))
        return syscall(SYS_mkdir, path, mode);
    pthread_mutex_lock(&mutex);
    result = syscall(SYS_mkdir, path, mode);
    if (!result)
        note(MKDIR, 0, 0, 0, 0, path, strlen(path), NULL, 0);
    pthread_mutex_unlock(&mutex);
    return result;
}
