"""Putting a message into the maildrop, as any user, whether or not the daemon runs.

Temporary name, content, sync, final name, sync of the directory: what `finish`
has returned for survives a power cut. The directory is made by the daemon
(`maildrop.py`): everybody may add a file, a file gets the directory's group,
which is the daemon's, and is open to that group and its owner alone. What the
user's umask says makes no difference.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from mailgate.crash.point import ARMED, passed
from mailgate.queue.drop import HEAD_OCTETS, UNFINISHED, DropEnvelope, DropHead

WAKE = "wake"
"""The pipe in the maildrop that tells a running daemon to look."""
UNFINISHED_PREFIX = "new-"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o640


class NotNow(Exception):
    """The message cannot be kept now: no maildrop, no permission for it, no space, a disk that fails."""


class HandIn:
    """One message on its way into the maildrop. All methods raise `NotNow`."""

    def __init__(self, maildrop: str) -> None:
        self._maildrop = maildrop
        self._path = ""
        self._fd = -1
        self._envelope_octets = 0
        self._content_octets = 0
        self._eight_bit = False

    def begin(self, envelope: DropEnvelope) -> None:
        """Make the file and write what stands in front of the message."""
        self._name = f"{time.time_ns() // 1_000_000:012x}-{os.urandom(12).hex()}"
        self._path = os.path.join(self._maildrop, UNFINISHED_PREFIX + self._name)
        try:
            self._fd = os.open(self._path, _FLAGS, _MODE)
        except OSError as failure:
            self._path = ""
            raise _failure(failure, self._maildrop) from failure
        self._envelope_octets = self._content_octets = 0
        self._eight_bit = False
        try:
            os.fchmod(self._fd, _MODE)
            self._demand_readable()
        except OSError as failure:
            self.discard()
            raise _failure(failure, self._maildrop) from failure
        octets = envelope.octets
        self._write(UNFINISHED + octets)
        self._envelope_octets = len(octets)

    def _demand_readable(self) -> None:
        """The daemon has to be able to read the file: by its group, or because it is the same user."""
        directory, file = os.stat(self._maildrop), os.fstat(self._fd)
        if file.st_gid != directory.st_gid and file.st_uid != directory.st_uid:
            self.discard()
            raise NotNow(
                f"the daemon could not read what is put into {self._maildrop}: "
                "the directory has lost its set-group-id bit (chmod g+s)"
            )

    def write(self, octets: bytes) -> None:
        """Add octets of the message."""
        self._content_octets += len(octets)
        if not self._eight_bit and not octets.isascii():
            self._eight_bit = True
        self._write(octets)

    def finish(self) -> str:
        """Keep the message for good, wake the daemon, and give the name of the drop."""
        head = DropHead(self._content_octets, self._envelope_octets, self._eight_bit)
        path = os.path.join(self._maildrop, self._name)
        try:
            if os.pwrite(self._fd, head.octets, 0) != HEAD_OCTETS:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            os.fsync(self._fd)
            os.rename(self._path, path)
            # From here on it counts, whatever becomes of this process.
            self._path = ""
            if ARMED:
                passed("T1")
            self._sync_directory()
        except OSError as failure:
            self.discard()
            raise _failure(failure, self._maildrop) from failure
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._wake()
        return self._name

    def discard(self) -> None:
        """Leave nothing behind of a message that was not finished. May be called at any time."""
        fd, self._fd = self._fd, -1
        path, self._path = self._path, ""
        if fd >= 0:
            os.close(fd)
        if path:
            try:
                os.unlink(path)
            except OSError:
                # The daemon removes what is unfinished after a day.
                return

    def _write(self, octets: bytes) -> None:
        view = memoryview(octets)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as failure:
            self.discard()
            raise _failure(failure, self._maildrop) from failure

    def _sync_directory(self) -> None:
        try:
            fd = os.open(self._maildrop, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            # An operator has closed the directory to readers: then everything is synced, the name with it.
            os.sync()
            return
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _wake(self) -> None:
        """Tell a daemon that runs; one that does not looks at its start, and at the latest every `queue.poll`."""
        try:
            fd = os.open(os.path.join(self._maildrop, WAKE), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        try:
            # Anybody could have made something else of that name.
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.write(fd, b"\n")
        except OSError:
            return
        finally:
            os.close(fd)


def _failure(failure: OSError, maildrop: str) -> NotNow:
    reason = failure.strerror or str(failure)
    if failure.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotNow(f"there is no directory {maildrop}: the daemon makes it at its start")
    return NotNow(f"the message cannot be put into {maildrop}: {reason}")
