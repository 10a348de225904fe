"""Where the store lives: its lock, the kind of file system, the space left, names of spool files.

Blocking calls; they are made on the store's own threads only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable
from time import monotonic

from mailgate.crash.point import ARMED, passed
from mailgate.queue.item import queue_id_text
from mailgate.queue.store import StoreFailed, StoreFull

# WAL needs memory that all processes of the file share, which these do not give.
_NETWORK_TYPES = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs", "gfs2", "gpfs", "glusterfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "vboxsf", "virtiofs", "fuse.ceph"),
        *("fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "fuse.vmhgfs-fuse"),
    )
)
_MOUNTS = "/proc/self/mountinfo"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_SPACE_LOOK_SECONDS = 0.25


class StoreInUse(StoreFailed):
    """Another daemon has this store: `pid`, or 0 where the lock file does not say."""

    def __init__(self, path: str, pid: int) -> None:
        super().__init__(f"the queue {path} is in use by process {pid or '(unknown)'}")
        self.pid = pid


class StoreUnsuitable(StoreFailed):
    """The store cannot be used by this program: its place or its version."""


def os_failure(error: OSError) -> StoreFailed:
    """The store's word for a failed file operation."""
    return StoreFull(str(error)) if error.errno in _FULL else StoreFailed(str(error))


def sqlite_failure(error: sqlite3.Error) -> StoreFailed:
    """The store's word for a failed database operation."""
    name = getattr(error, "sqlite_errorname", "")
    return StoreFull(f"{error}") if name == "SQLITE_FULL" else StoreFailed(f"{error} ({name or type(error).__name__})")


def lock(path: str) -> int:
    """Take `<path>.lock` for this process and write its id there; the descriptor that holds it.

    The kernel gives it back when the process ends, however it ends; programs
    started by this process do not inherit it. Raises `StoreInUse`, `OSError`.
    """
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).strip()
        os.close(fd)
        raise StoreInUse(path, int(holder) if holder.isdigit() else 0)
    except OSError:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def unlock(fd: int) -> None:
    """Give the lock back. The file stays: removing it would let two daemons hold different files."""
    os.ftruncate(fd, 0)
    os.close(fd)


def network_type(path: str, mountinfo: str) -> str | None:
    """The type of the network file system `path` is on; None when it is on a local one.

    `mountinfo` is the text of /proc/self/mountinfo.
    """
    real = os.path.realpath(path)
    best, found = -1, ""
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        point = _unescaped(mount.split(" ")[4])
        inside = point == "/" or real == point or real.startswith(point + "/")
        # Of two mounts at one place the later covers the earlier.
        if inside and len(point) >= best:
            best, found = len(point), source.split(" ")[0]
    return found if found in _NETWORK_TYPES else None


def refuse_network(*paths: str) -> None:
    """Raise `StoreUnsuitable` when a path is on a network file system."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            text = mounts.read()
    except OSError:
        return
    for path in paths:
        kind = network_type(path, text)
        if kind is not None:
            raise StoreUnsuitable(f"the queue cannot be kept at {path}: {kind} is a network file system")


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def spool_name(queue_id: int) -> str:
    """The path of a content inside the spool directory.

    Queue ids begin with the time, so their first digits are the same for
    years: the last two spread the files over 256 directories.
    """
    text = queue_id_text(queue_id)
    return f"{text[-2:]}/{text}"


def free_octets(path: str) -> int:
    """Octets a process without privileges can still write at `path`."""
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


class Space:
    """Says when there is too little room for new mail; looks at the disk a few times a second at most."""

    def __init__(self, paths: tuple[str, ...], min_free_octets: int, free: Callable[[str], int] = free_octets) -> None:
        self._paths = paths
        self._min_free_octets = min_free_octets
        self._free = free
        self._looked = float("-inf")
        self._short: str | None = None

    def demand_from_now(self, min_free_octets: int) -> None:
        """Take another limit; the next look at the disk counts."""
        self._min_free_octets = min_free_octets
        self._looked = float("-inf")

    def demand(self) -> None:
        """Raise `StoreFull` while there is less than the least free space; `StoreFailed` where that is unknown."""
        now = monotonic()
        if now - self._looked >= _SPACE_LOOK_SECONDS:
            try:
                self._short = next((p for p in self._paths if self._free(p) < self._min_free_octets), None)
            except OSError as error:
                raise os_failure(error) from error
            self._looked = now
        if self._short is not None:
            if ARMED:
                passed("X6")
            raise StoreFull(f"less than {self._min_free_octets} octets are free at {self._short}")


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
