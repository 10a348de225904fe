"""A ring of decisions on disk, bounded by size and age, written by one thread.

`record` is called on the reactor's thread and keeps references; when some have
gathered they become lines (`entry.py`), which the writer thread appends to a
segment file. Lines are made in batches because the second one takes a third of
the time of the first, and on the reactor's thread because the interpreter runs
one thread at a time: made elsewhere they would cost as much, and the switching
besides. Nothing is synced: a power cut or a kill loses the last moments, which
is what a record for explanations may lose. When the disk is slower than the
traffic the oldest waiting lines are dropped and counted; mail never waits for
its record.

On disk: one folder, in it segments `SSSSSSSSSSSSS-PID-N.jsonl` (`S`: when the
segment was begun, milliseconds since the epoch; `N` counts up). A segment is
UTF-8 text, one entry a line, oldest first; a line that does not parse is what
a crash tore. Several processes may share a folder: each writes segments of its
own, each removes the oldest ones of all when the folder has grown past its
bound, and one whose segment was removed begins another. Readers need no lock.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta

from mailgate.decisions.entry import Finished, Kind, LineWriter, Redactor, Trail
from mailgate.mail.reply import Reply
from mailgate.mail.session import Session

SUFFIX = ".jsonl"

# So many finished trails become lines together.
_BATCH = 32
# How long entries wait for company. Also what a kill -9 loses at most.
_PAUSE_SECONDS = 0.2
# What waits is written in pieces of so much, and is never more than so much.
_PIECE_OCTETS = 256 * 1024
_PENDING_OCTETS = 8 * 1024 * 1024
_SEGMENTS = 16
_TRIM_SECONDS = 60.0


def segments(folder: str) -> list[str]:
    """The paths of the segments in a folder, oldest first; none when the folder is not there.

    Raises `OSError` when the folder cannot be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [os.path.join(folder, name) for name in sorted(names) if name.endswith(SUFFIX)]


class Ring:
    """The writing side of the ring, one per process."""

    def __init__(
        self,
        folder: str,
        *,
        size_octets: int,
        age: timedelta,
        secrets: Collection[str] = (),
        on_failure: Callable[[OSError], None] = lambda failure: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`on_failure` is called on the writer thread when writing begins to fail, once until it works again.

        `secrets` are replaced wherever they would be written.
        """
        self._folder = folder
        self._secrets: frozenset[str] = frozenset()
        self.keep(size_octets=size_octets, age=age, secrets=secrets)
        self._on_failure = on_failure
        self._now = now
        self._finished: deque[Finished] = deque()
        self._waiting: deque[tuple[bytes, int]] = deque()
        """Lines, and how many."""
        # Who holds it makes lines of what is finished: so they stay in order.
        self._making = threading.Lock()
        # Each of these is changed by one thread only, or by who holds the lock.
        self._put = 0
        self._taken = 0
        self._shed = 0
        self.dropped = 0
        """Entries given up because too many waited."""
        self.lost = 0
        """Entries that could not be written."""
        self.written = 0
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._file: int | None = None
        self._file_octets = 0
        self._file_began = 0.0
        self._numbers = itertools.count()
        self._trimmed = float("-inf")
        self._failing = False

    # --- the reactor's side ---------------------------------------------------

    def keep(self, *, size_octets: int, age: timedelta, secrets: Collection[str] = ()) -> None:
        """Keep so much for so long from now on. Secrets once known stay secret: old sessions still record theirs."""
        self._size = size_octets
        self._age_seconds = age.total_seconds()
        self._segment_octets = max(size_octets // _SEGMENTS, 4096)
        self._segment_seconds = max(self._age_seconds / _SEGMENTS, 1.0)
        self._secrets = self._secrets.union(secrets)
        self._lines = LineWriter(Redactor(self._secrets))

    def start(self) -> None:
        """Start the writer thread. What was recorded before is written then."""
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)
        self._thread.start()

    def record(
        self,
        kind: Kind,
        trail: Trail,
        session: Session,
        *,
        replies: Sequence[Reply],
        reason: str = "",
        queue_id: int | None = None,
        size_octets: int | None = None,
    ) -> None:
        """Keep a finished trail. Never blocks, never raises; the trail may not be changed afterwards.

        `replies` are the final ones (LMTP: one for each recipient), `reason` is
        the word of the refusal, "" for an accepted message.
        """
        self._finished.append(
            Finished(kind, trail, session, int(self._now() * 1000), replies, reason, queue_id, size_octets)
        )
        # Should the writer thread be at it, the next one that is recorded tries again.
        if len(self._finished) >= _BATCH and self._making.acquire(blocking=False):
            try:
                self._make_lines()
            finally:
                self._making.release()
            self._shed_oldest()
        if not self._wake.is_set():
            self._wake.set()

    def _make_lines(self) -> None:
        """Make lines of a batch. For whoever holds the lock."""
        make, finished = self._lines.line, self._finished
        lines = [make(finished.popleft()) for _ in range(min(_BATCH, len(finished)))]
        octets = b"".join(lines)
        self._put += len(octets)
        self._waiting.append((octets, len(lines)))

    def _shed_oldest(self) -> None:
        while self._put - self._taken - self._shed > _PENDING_OCTETS:
            try:
                octets, count = self._waiting.popleft()
            except IndexError:
                break
            self._shed += len(octets)
            self.dropped += count

    def close(self) -> None:
        """Write what waits and end the writer thread. Blocks; may be called twice."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # --- the writer's side ------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(_TRIM_SECONDS)
            self._stop.wait(_PAUSE_SECONDS)
            self._wake.clear()
            self.drain()
        self.drain()
        self._close_file()

    def drain(self) -> None:
        """Write everything that waits, and remove what is too much or too old. For the writer thread."""
        with self._making:
            while self._finished:
                self._make_lines()
        waiting = self._waiting
        most = min(_PIECE_OCTETS, self._segment_octets)
        while waiting:
            pieces: list[bytes] = []
            count = octets = 0
            while octets < most:
                try:
                    piece, lines = waiting.popleft()
                except IndexError:
                    break
                pieces.append(piece)
                octets += len(piece)
                count += lines
            self._taken += octets
            self._append(b"".join(pieces), count)
        now = self._now()
        if not 0 <= now - self._trimmed < _TRIM_SECONDS:
            self._trim(now)

    def _append(self, octets: bytes, count: int) -> None:
        try:
            file = self._segment(self._now())
            while octets:
                written = os.write(file, octets)
                self._file_octets += written
                octets = octets[written:]
        except OSError as failure:
            self.lost += count
            # The line may be torn: what follows it begins a new segment.
            self._close_file()
            if not self._failing:
                self._failing = True
                self._on_failure(failure)
        else:
            self.written += count
            self._failing = False

    def _segment(self, now: float) -> int:
        """The open segment, or a new one when it is full, old or removed by another process."""
        if self._file is not None:
            fresh = 0 <= now - self._file_began < self._segment_seconds
            if fresh and self._file_octets < self._segment_octets and os.fstat(self._file).st_nlink:
                return self._file
            self._close_file()
        os.makedirs(self._folder, mode=0o750, exist_ok=True)
        self._trim(now)
        name = f"{int(now * 1000):013d}-{os.getpid()}-{next(self._numbers):06d}{SUFFIX}"
        path = os.path.join(self._folder, name)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._file_octets = 0
        self._file_began = now
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _trim(self, now: float) -> None:
        """Remove the oldest segments until a new one fits, and those whose last entry is too old."""
        self._trimmed = now
        room = self._size - self._segment_octets
        try:
            paths = segments(self._folder)
        except OSError:
            return
        for path in reversed(paths):
            try:
                status = os.stat(path)
                room -= status.st_size
                if room < 0 or now - status.st_mtime > self._age_seconds:
                    os.unlink(path)
            except OSError:
                # Another process was faster, or may not remove it either: the next turn tries again.
                continue
