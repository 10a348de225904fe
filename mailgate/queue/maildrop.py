"""The daemon's side of the maildrop: a directory that every user of the host may put files into.

Nothing in it is trusted. What does not have the name of a drop, is no regular
file, has a second name, may be written by others, or is not what it says, is
moved to `.aside` (where only the daemon looks) and never opened again. Files
are opened without following links and without waiting for anybody. Everything
here blocks; it is called on threads, one call at a time.

The directory is sticky (a file is removed by its owner or the daemon alone)
and passes its group on to its files (so the daemon may read them). It is
readable, because `sendmail` has to sync it: what can be seen are names and
owners, as in a process list, never contents.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from heapq import nsmallest
from typing import NamedTuple

from mailgate.queue.drop import HEAD_OCTETS, DropEnvelope, DropHead, NotADrop, read_envelope
from mailgate.queue.handin import UNFINISHED_PREFIX, WAKE

MODE = 0o3777
LOCK = ".lock"
ASIDE = ".aside"
UNFINISHED_MS = 24 * 3600 * 1000
"""Age at which a file that was never finished is removed."""
AHEAD_MS = 24 * 3600 * 1000
"""How far in the future the moment in a name may be: the record of what was taken is cleared by it."""
_OWN = frozenset({WAKE, LOCK, ASIDE})
_NAME = re.compile(r"([0-9a-f]{12})-[0-9a-f]{24}")
_CUT_OCTETS = 240
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class InUse(Exception):
    """Another daemon takes what is in this maildrop."""


class Look(NamedTuple):
    """What is in the maildrop."""

    drops: list[tuple[str, int]]
    """Names to be taken, the oldest first, and the number of the user each belongs to."""
    foreign: list[str]
    """Names that `sendmail` does not give."""


class Drop:
    """One message, open for reading. `read` gives its content from the beginning, once."""

    def __init__(self, name: str, fd: int, head: DropHead, envelope: DropEnvelope, owner: os.stat_result) -> None:
        self.name = name
        self.envelope = envelope
        self.eight_bit = head.eight_bit
        self.size_octets = head.content_octets
        # The one time of a file that its owner cannot set.
        self.handed_in_ms = owner.st_ctime_ns // 1_000_000
        self.login = _login(owner.st_uid)
        self._start = HEAD_OCTETS + head.envelope_octets
        self._fd = fd

    def read(self, at: int, octets: int) -> bytes:
        """Octets of the content from an offset; fewer only at the end.

        Raises `NotADrop` where the file has become shorter than it was, `OSError`.
        """
        wanted = min(octets, self.size_octets - at)
        found = os.pread(self._fd, wanted, self._start + at)
        if len(found) != wanted:
            raise NotADrop("the file was changed while it was read")
        return found

    def close(self) -> None:
        """Give the file back. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Maildrop:
    """The directory, as the one daemon that takes from it sees it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._lock = -1
        self.wake = -1
        """The pipe by which `sendmail` says that something came, open for reading; -1 while the maildrop is not."""
        self._left_there: set[str] = set()
        """What could not be moved aside."""

    @property
    def is_open(self) -> bool:
        """Whether drops can be taken."""
        return self.wake >= 0

    def open(self) -> list[str]:
        """Make the directory where there is none, and take it; what keeps users from using it comes back in words.

        Raises `OSError`, and `InUse` where another daemon has it.
        """
        try:
            return self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> list[str]:
        try:
            os.mkdir(self.path, 0o700)
            made = True
        except FileExistsError:
            made = False
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstat(self._fd)
        # One that an earlier start had not yet opened to everybody.
        made = made or (stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == os.geteuid())
        self._lock = self._own_lock()
        self._make_aside()
        self.wake = self._own_pipe()
        if made:
            # Only now: nobody could have put something else into the place of what is the daemon's.
            try:
                os.fchmod(self._fd, MODE)
            except PermissionError:
                # A service manager may forbid the bit: then the directory has to be made by whoever installs.
                os.fchmod(self._fd, MODE & ~stat.S_ISGID)
        return list(self._obstacles())

    def close(self) -> None:
        """Let another daemon have it. May be called twice."""
        fds, self.wake, self._lock, self._fd = (self.wake, self._lock, self._fd), -1, -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def _own_lock(self) -> int:
        fd = self._own(LOCK, os.O_RDWR, lambda: self._create(LOCK))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise InUse(f"another daemon takes what is put into {self.path}") from None
        return fd

    def _create(self, name: str) -> None:
        os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fd))

    def _own_pipe(self) -> int:
        def make() -> None:
            os.mkfifo(WAKE, 0o600, dir_fd=self._fd)

        # Open for writing as well: it never comes to an end when a writer closes it.
        fd = self._own(WAKE, os.O_RDWR | os.O_NONBLOCK, make)
        os.fchmod(fd, 0o622)
        return fd

    def _own(self, name: str, flags: int, make: Callable[[], None]) -> int:
        """Open what has to be the daemon's own; what somebody else has put into its place is moved away."""
        wanted = stat.S_IFIFO if name == WAKE else stat.S_IFREG
        for _ in range(3):
            try:
                found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            except FileNotFoundError:
                make()
                continue
            if stat.S_IFMT(found.st_mode) == wanted and found.st_uid == os.geteuid() and found.st_nlink == 1:
                fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
                again = os.fstat(fd)
                if (again.st_dev, again.st_ino) == (found.st_dev, found.st_ino):
                    return fd
                os.close(fd)
            self._put_away(name)
        raise FileExistsError(errno.EEXIST, f"somebody puts a file of his into the place of {name}", self.path)

    def _make_aside(self) -> None:
        for _ in range(3):
            try:
                os.mkdir(ASIDE, 0o700, dir_fd=self._fd)
                return
            except FileExistsError:
                found = os.stat(ASIDE, dir_fd=self._fd, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                    return
                self._put_away(ASIDE)
        raise FileExistsError(errno.EEXIST, f"somebody puts a file of his into the place of {ASIDE}", self.path)

    def _put_away(self, name: str) -> None:
        os.rename(name, f"foreign-{os.urandom(8).hex()}", src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _obstacles(self) -> Iterator[str]:
        """What would keep users from handing in mail, or the daemon from reading it."""
        found = os.fstat(self._fd)
        mode = stat.S_IMODE(found.st_mode)
        if not mode & stat.S_ISGID:
            yield f"files in {self.path} would not get its group, and could not be read: chmod g+s {self.path}"
        elif found.st_gid not in (os.getegid(), *os.getgroups()) and os.geteuid():
            yield f"{self.path} does not belong to a group of the daemon: files in it could not be read"
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            yield f"users could remove each other's files in {self.path}: chmod +t {self.path}"
        above = os.path.dirname(os.path.realpath(self.path))
        while True:
            if not os.stat(above).st_mode & stat.S_IXOTH:
                yield f"not every user can reach {self.path}: chmod o+x {above}"
            if above == os.path.dirname(above):
                return
            above = os.path.dirname(above)

    # --- looking ------------------------------------------------------------------

    def look(self, limit: int, skip: Collection[str], running: Mapping[int, int], of_one_user: int) -> Look:
        """Up to `limit` drops and as many foreign names. Raises `OSError`.

        `running` says how many of each user are being taken already: of nobody there are more than `of_one_user`.
        """
        foreign: list[str] = []
        by_user: dict[int, list[str]] = {}
        with os.scandir(self._fd) as entries:
            for entry in entries:
                name = entry.name
                if name in skip or name in self._left_there:
                    continue
                if _NAME.fullmatch(name):
                    try:
                        user = entry.stat(follow_symlinks=False).st_uid
                    except FileNotFoundError:
                        continue
                    room = of_one_user - running.get(user, 0)
                    if room > 0:
                        oldest = by_user.setdefault(user, [])
                        oldest.append(name)
                        if len(oldest) > 2 * room + 100:
                            by_user[user] = nsmallest(room, oldest)
                elif name not in _OWN and not name.startswith(UNFINISHED_PREFIX) and len(foreign) < limit:
                    foreign.append(name)
        drops = [
            (name, user)
            for user, names in by_user.items()
            for name in nsmallest(of_one_user - running.get(user, 0), names)
        ]
        return Look(nsmallest(limit, drops), foreign)

    def old(self, before_ms: int) -> list[str]:
        """The drops whose names are of before a moment."""
        with os.scandir(self._fd) as entries:
            return [
                entry.name
                for entry in entries
                if (found := _NAME.fullmatch(entry.name)) is not None and int(found[1], 16) < before_ms
            ]

    def sweep(self, now_ms: int) -> int:
        """Remove what somebody began to hand in a day ago and never finished; how many."""
        removed = 0
        with os.scandir(self._fd) as entries:
            for entry in entries:
                if entry.name.startswith(UNFINISHED_PREFIX) and entry.name not in self._left_there:
                    try:
                        written = entry.stat(follow_symlinks=False).st_mtime_ns // 1_000_000
                        if now_ms - written > UNFINISHED_MS:
                            os.unlink(entry.name, dir_fd=self._fd)
                            removed += 1
                    except FileNotFoundError:
                        continue
                    except OSError:
                        self._left_there.add(entry.name)
        return removed

    # --- one drop -------------------------------------------------------------------

    def take(self, name: str, now_ms: int) -> Drop:
        """Open a drop. Raises `NotADrop` for what is none, `FileNotFoundError` when it is gone, `OSError`."""
        found = _NAME.fullmatch(name)
        if found is None or int(found[1], 16) > now_ms + AHEAD_MS:
            raise NotADrop("its name is of the future")
        try:
            fd = os.open(name, _OPEN, dir_fd=self._fd)
        except OSError as failure:
            if failure.errno in (errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM, errno.ENODEV):
                raise NotADrop(self._why_not(name, failure)) from None
            raise
        try:
            return _opened(name, fd)
        except BaseException:
            os.close(fd)
            raise

    def _why_not(self, name: str, failure: OSError) -> str:
        mode = os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode
        kind = _KINDS.get(stat.S_IFMT(mode))
        return f"it is {kind}" if kind is not None else f"it cannot be read: {failure.strerror}"

    def remove(self, name: str) -> None:
        """Remove a drop that has been taken. Raises `OSError`, but not where it is gone."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            return

    def set_aside(self, name: str) -> str | None:
        """Move something that is no drop out of the way; where to, or None when it has to stay where it is."""
        try:
            self._make_aside()
        except OSError:
            self._left_there.add(name)
            return None
        # With what tells it from another it is no longer than a name may be.
        cut = os.fsdecode(os.fsencode(name)[:_CUT_OCTETS])
        for path in (f"{ASIDE}/{name}", f"{ASIDE}/{cut}.{os.urandom(4).hex()}"):
            try:
                # A link in front of another file of the name would be replaced.
                os.stat(path, dir_fd=self._fd, follow_symlinks=False)
            except FileNotFoundError:
                try:
                    os.rename(name, path, src_dir_fd=self._fd, dst_dir_fd=self._fd)
                except FileNotFoundError:
                    return None
                except OSError:
                    # Of a directory of somebody else not even the owner of this one can change the parent.
                    break
                return os.path.join(self.path, path)
        self._left_there.add(name)
        return None


def _opened(name: str, fd: int) -> Drop:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise NotADrop(f"it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no regular file')}")
    if found.st_nlink != 1:
        raise NotADrop("the file has another name beside this one")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotADrop("the file may be written by others than its owner")
    head = DropHead.of(os.pread(fd, HEAD_OCTETS, 0), found.st_size)
    octets = os.pread(fd, head.envelope_octets, HEAD_OCTETS)
    if len(octets) != head.envelope_octets:
        raise NotADrop("the file was changed while it was read")
    return Drop(name, fd, head, read_envelope(octets), found)


def _login(uid: int) -> str:
    """The login name of a user; of one that nobody knows any more the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid{uid}"
