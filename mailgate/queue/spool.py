"""One message's octets while they arrive: in memory up to a limit, above it in a file.

The file is written by blocking calls on other threads, one at a time and in
order; what waits for them is bounded, so a client that is faster than the disk
is told to wait. The file bears its final name from the start: what counts is
the row that refers to it, and a file without one is garbage (`recover.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mailgate.crash.point import ARMED, passed
from mailgate.queue.item import Content
from mailgate.queue.place import Space, os_failure, spool_name, sync_directory
from mailgate.queue.store import StoreFailed

T = TypeVar("T")

HEAD_OCTETS = 262_144
# write() asks for a pause above the first and lets go on below the second.
PENDING_OCTETS = 524_288
RESUME_OCTETS = 131_072
# The most buffers one writev takes (IOV_MAX).
_VECTORS = 1024


class RunBlocking(Protocol):
    """Runs a blocking call on another thread and answers on the reactor's."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        """Run it; fires with its result, or fails with what it raised."""
        ...


class FileSpool:
    """The `Spool` of a store with a spool directory."""

    def __init__(
        self,
        queue_id: int,
        spool_dir: str,
        inline_octets: int,
        run_blocking: RunBlocking,
        space: Space,
        in_files: MutableMapping[int, FileSpool],
    ) -> None:
        self._queue_id = queue_id
        self._directory = spool_dir
        self._in_files = in_files
        """Where the store finds those that have a file."""
        self._path = ""
        self._inline_octets = inline_octets
        self._run_blocking = run_blocking
        self._space = space
        self._size = 0
        self._head: list[bytes] = []
        self._head_octets = 0
        self._parts: list[bytes] = []
        """In memory: the whole content. In a file: what waits to be written."""
        self._waiting_octets = 0
        self._fd: int | None = None
        self._in_file = False
        self._made = False
        self._working = False
        self._failure: StoreFailed | None = None
        self._discarded = False
        self._kept = False
        self._resume: Deferred[None] | None = None
        self._idle: list[Deferred[None]] = []

    @property
    def size_octets(self) -> int:
        """Octets written so far."""
        return self._size

    def head(self) -> bytes:
        """The first octets written, up to 256 KiB: at least the header, where that is no longer."""
        if len(self._head) > 1:
            first = self._head[0]
            if b"\r\n\r\n" in first:
                # The header is in there: nothing that follows it is asked for.
                return first
            self._head = [b"".join(self._head)]
        return self._head[0] if self._head else b""

    def write(self, octets: bytes) -> Deferred[None] | None:
        """Take octets. A Deferred means: send no more before it fires; it never fails."""
        self._size += len(octets)
        if ARMED:
            passed("A0")
        room = HEAD_OCTETS - self._head_octets
        if room > 0:
            self._head.append(octets if len(octets) <= room else octets[:room])
            self._head_octets += min(room, len(octets))
        if self._failure is not None or self._discarded:
            return None
        self._parts.append(octets)
        if not self._in_file:
            if self._size <= self._inline_octets:
                return None
            self._in_file = True
            self._path = os.path.join(self._directory, spool_name(self._queue_id))
            self._in_files[self._queue_id] = self
            self._waiting_octets = self._size
        else:
            self._waiting_octets += len(octets)
        if not self._working:
            self._write_on()
        if self._waiting_octets > PENDING_OCTETS and self._working:
            if self._resume is None:
                self._resume = Deferred()
            return self._resume
        return None

    async def finish(self) -> Content:
        """End of data: a large content is fsynced, then its directory, before this returns."""
        if self._discarded:
            raise StoreFailed("the content was discarded")
        if not self._in_file:
            content = Content(self._size, octets=b"".join(self._parts))
            self._parts, self._head, self._head_octets = [], [content.octets or b""], self._size
            return content
        await self._until_idle()
        if self._failure is None and not self._discarded:
            self._working = True
            # Awaited only through _until_idle: one who gives up waiting does not make the disk idle.
            self._run_blocking(self._settle).addCallbacks(lambda _: self._worked(), self._not_written)
            await self._until_idle()
        if self._failure is not None:
            self.discard()
            await self._until_idle()
            raise self._failure
        if self._discarded:
            raise StoreFailed("the content was discarded")
        return Content(self._size, path=self._path)

    def discard(self) -> None:
        """Forget the octets and remove the file, if any. May be called at any time, also twice."""
        if self._discarded or self._kept:
            return
        self._discarded = True
        self._parts = []
        self._waiting_octets = 0
        self._let_go_on()
        if self._in_file and not self._working:
            self._remove_file()

    def keep(self) -> None:
        """The store has taken the file over: `discard` leaves it alone from now on."""
        self._kept = True

    # Everything below runs on the reactor thread, except _write_parts, _settle and _remove.

    def _write_on(self) -> None:
        parts, self._parts = self._parts, []
        octets = sum(map(len, parts))
        self._working = True
        self._run_blocking(lambda: self._write_parts(parts)).addCallbacks(
            lambda _: self._written(octets), self._not_written
        )

    def _written(self, octets: int) -> None:
        self._waiting_octets = max(0, self._waiting_octets - octets)
        if self._parts:
            self._write_on()
        else:
            self._worked()
        if self._waiting_octets <= RESUME_OCTETS:
            self._let_go_on()

    def _not_written(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, OSError):
            self._failure = os_failure(error)
        else:
            self._failure = error if isinstance(error, StoreFailed) else StoreFailed(repr(error))
        self._parts = []
        self._waiting_octets = 0
        self._worked()
        self._let_go_on()

    def _worked(self) -> None:
        self._working = False
        if self._discarded:
            self._remove_file()
            return
        self._now_idle()

    def _remove_file(self) -> None:
        self._working = True
        self._run_blocking(self._remove).addBoth(lambda _: self._now_idle())

    def _now_idle(self) -> None:
        self._working = False
        idle, self._idle = self._idle, []
        for waiting in idle:
            waiting.callback(None)

    async def _until_idle(self) -> None:
        if self._working:
            waiting: Deferred[None] = Deferred()
            self._idle.append(waiting)
            await waiting

    def _let_go_on(self) -> None:
        resume, self._resume = self._resume, None
        if resume is not None:
            resume.callback(None)

    def _write_parts(self, parts: list[bytes]) -> None:
        if self._fd is None:
            self._space.demand()
            self._fd = self._create()
            self._made = True
        views = [memoryview(part) for part in parts]
        while views:
            done = os.writev(self._fd, views[:_VECTORS])
            while views and done >= len(views[0]):
                done -= len(views.pop(0))
            if done:
                views[0] = views[0][done:]
        if ARMED:
            passed("A0")

    def _create(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(self._path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            # The new directory's own name must last as well.
            sync_directory(self._directory)
            return os.open(self._path, flags, 0o600)

    def _settle(self) -> None:
        if self._fd is None:
            raise StoreFailed("the content has no file")
        fd, self._fd = self._fd, None
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if ARMED:
            passed("A1")
        sync_directory(os.path.dirname(self._path))
        if ARMED:
            passed("A2")

    def _remove(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        # A file this spool did not make (its name was taken) is another's.
        if self._made:
            self._made = False
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
