"""The local route: each recipient's copy into a Maildir, once, however often it is tried.

The file's name is made of creation time, queue id and recipient alone, so a
repeated attempt (a crash after the rename, before the result was stored) finds
the copy that is there. A copy counts when its file is synced in `new/` and that
directory is synced too. Faults of the file system delay; only an address no path
can be made of fails for good.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Protocol, TypeVar

from twisted.logger import Logger

from mailgate.config.schema.template import MaildirTemplate
from mailgate.crash.point import ARMED, passed
from mailgate.dns.name import ascii_name
from mailgate.mail.path import Path
from mailgate.mail.status import Delayed, Delivered, ErrorKind, Failed, Outcome, RecipientStatus, RemoteReply
from mailgate.mail.unknown import Unknown
from mailgate.queue.item import Lease, QueuedRecipient, QueueItem
from mailgate.queue.store import ContentReader, StoreFailed

T = TypeVar("T")

ENTITY = "localhost"
DELIVERED = Delivered(RecipientStatus(ENTITY, reply=RemoteReply(250, "2.1.5", "OK")))

_PLACEHOLDER = re.compile(r"%\{([^{}]*)\}")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/]|^\.")
_COMPONENT_OCTETS = 255
# What of a host's name goes into a file name: its other parts and a reader's flags need room, too.
_HOST_OCTETS = 190
_SPACE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT})

_log = Logger(namespace="mailgate.deliver")


class RunBlocking(Protocol):
    """Runs a call that may block outside the reactor's thread."""

    def __call__(self, work: Callable[..., T], *args: object) -> Awaitable[T]:
        """Answer what `work(*args)` answers, or raise what it raises."""
        ...


class SplitDetail(Protocol):
    """Sub-addressing (`session.rcpt.sub-addressing`)."""

    async def __call__(self, address: str) -> tuple[str, str] | Unknown:
        """The local part without its detail, and the detail without its separator."""
        ...


class OpensContent(Protocol):
    """The part of the queue store that is used here."""

    async def read(self, item: QueueItem) -> ContentReader:
        """Open the stored octets of a message."""
        ...


class Impossible(Exception):
    """No path can be made of this address."""


def maildir_path(template: MaildirTemplate, address: str, user: str, detail: str) -> str:
    """The Maildir of `address`; raises `Impossible`.

    A value never holds a slash nor begins with a dot: none leaves the fixed part.
    """
    parsed = Path.parse(address.lower())
    domain = ascii_name(parsed.domain) or parsed.domain
    if not user or not domain:
        raise Impossible("the address has no local part or no domain")
    whole = f"{parsed.local}@{domain}"
    digest = hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:2]
    values = {
        "user": user.lower(),
        "detail": detail.lower(),
        "local": parsed.local,
        "domain": domain,
        "address": whole,
        "hash": digest,
    }
    path = _PLACEHOLDER.sub(lambda found: _safe(values[found[1]]), template.text)
    if any(len(component) > _COMPONENT_OCTETS for component in path.encode("utf-8", "replace").split(b"/")):
        raise Impossible("the address is too long for a file name")
    return path


def _safe(value: str) -> str:
    return _UNSAFE.sub(lambda found: f"={ord(found[0]):02X}", value)


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """A route of type `local`; without a template it delays everything."""

    name: str
    template: MaildirTemplate | None = None
    create: bool = True


def file_name(item: QueueItem, address: str, hostname: str) -> str:
    """The one name of this recipient's copy."""
    recipient = hashlib.sha256(address.lower().encode("utf-8", "replace")).hexdigest()[:16]
    host = hostname.replace("/", "\\057").replace(":", "\\072")
    return f"{item.created_ms // 1000}.Q{item.id_text}R{recipient}.{host[:_HOST_OCTETS]}"


class Disk(Protocol):
    """The calls of `os` used here; a test watches their order."""

    def fsync(self, fd: int) -> None:
        """As `os.fsync`."""
        ...

    def rename(self, source: str, target: str) -> None:
        """As `os.rename`."""
        ...


@dataclass(slots=True)
class Copy:
    """One copy on its way into `new/`: `begin`, `write` for each piece, `finish`. All of it blocks.

    `abandon` may come from another thread while one of these goes on, or before it began there: it waits,
    for a number that is closed under a writing thread could be another's file by then.
    """

    maildir: str
    fixed: str
    name: str
    generation: int
    create: bool
    disk: Disk = os
    _fd: int = -1
    _held: bytes = b""
    _is_abandoned: bool = False
    _turn: RLock = field(default_factory=RLock)

    def begin(self) -> bool:
        """Make room for the copy; False when it is there already. Raises OSError."""
        with self._turn:
            if self._is_abandoned:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            return self._begin()

    def _begin(self) -> bool:
        if not os.path.isdir(self.fixed):
            # Most likely a file system that is not mounted: mail must not land on the disk beneath it.
            raise OSError(errno.ENOENT, "the mail directory is missing", self.fixed)
        self._make_directories()
        if self.generation > 1:
            # The attempt before us may have got as far as the rename.
            if self._delivered_before():
                self._sync(f"{self.maildir}/new")
                return False
            self._remove_leftovers()
        self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return True

    def write(self, octets: bytes) -> None:
        """Write a piece of the message; every CRLF becomes LF. Raises OSError."""
        octets = self._held + octets
        self._held = b""
        if octets.endswith(b"\r"):
            # Its LF may come with the next piece.
            octets, self._held = octets[:-1], b"\r"
        self.write_raw(octets.replace(b"\r\n", b"\n"))

    def write_raw(self, octets: bytes) -> None:
        """Write octets as they are. Raises OSError."""
        view = memoryview(octets)
        with self._turn:
            while view:
                view = view[os.write(self._fd, view) :]

    def finish(self) -> None:
        """Sync the file, move it to `new/`, sync that directory. Raises OSError."""
        with self._turn:
            self._finish()

    def _finish(self) -> None:
        self.write_raw(self._held)
        if ARMED:
            passed("L0")
        self.disk.fsync(self._fd)
        self._close()
        if ARMED:
            passed("L0")
        self.disk.rename(self._temporary, f"{self.maildir}/new/{self.name}")
        if ARMED:
            passed("L1")
        self._sync(f"{self.maildir}/new")
        if ARMED:
            passed("L1")

    def abandon(self) -> None:
        """Remove what was written so far; nothing when the copy is in `new/` or was not begun."""
        with self._turn:
            self._is_abandoned = True
            if self._fd >= 0:
                self._close()
            try:
                os.unlink(self._temporary)
            except OSError:
                pass

    @property
    def _temporary(self) -> str:
        return f"{self.maildir}/tmp/{self.name}.{self.generation}"

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _sync(self, directory: str) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.disk.fsync(fd)
        finally:
            os.close(fd)

    def _make_directories(self) -> None:
        if not os.path.isdir(self.maildir):
            if not self.create:
                raise OSError(errno.ENOENT, "the Maildir is missing", self.maildir)
            missing = []
            directory = os.path.normpath(self.maildir)
            while not os.path.isdir(directory):
                missing.append(directory)
                directory = os.path.dirname(directory)
            for directory in reversed(missing):
                self._make(directory)
                self._sync(os.path.dirname(directory))
        made = [self._make(f"{self.maildir}/{part}") for part in ("tmp", "new", "cur")]
        if any(made):
            self._sync(self.maildir)

    def _make(self, directory: str) -> bool:
        if os.path.isdir(directory):
            return False
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            # Another attempt made it a moment ago.
            return False
        return True

    def _delivered_before(self) -> bool:
        if os.path.exists(f"{self.maildir}/new/{self.name}") or os.path.exists(f"{self.maildir}/cur/{self.name}"):
            return True
        flagged = self.name + ":2,"
        return any(entry.startswith(flagged) for entry in os.listdir(f"{self.maildir}/cur"))

    def _remove_leftovers(self) -> None:
        for entry in os.listdir(f"{self.maildir}/tmp"):
            if entry.startswith(self.name + "."):
                os.unlink(f"{self.maildir}/tmp/{entry}")


class LocalDelivery:
    """Delivers a group of recipients into their Maildirs. Opens no socket."""

    def __init__(
        self,
        store: OpensContent,
        run_blocking: RunBlocking,
        split_detail: SplitDetail,
        hostname: str,
        delivered_to: bool = True,
        disk: Disk = os,
    ) -> None:
        self._store = store
        self._run_blocking = run_blocking
        self._split_detail = split_detail
        self._hostname = hostname
        self._delivered_to = delivered_to
        self._disk = disk

    async def deliver(
        self, route: LocalRoute, lease: Lease, recipients: Sequence[QueuedRecipient]
    ) -> Mapping[int, Outcome]:
        """One outcome for each recipient, by its index. Raises nothing but what is a fault of the program."""
        outcomes: dict[int, Outcome] = {}
        copies: list[tuple[QueuedRecipient, Copy]] = []
        for recipient in recipients:
            copy = await self._copy(route, lease, recipient)
            if isinstance(copy, Copy):
                copies.append((recipient, copy))
            else:
                outcomes[recipient.index] = copy
        if copies:
            try:
                await self._write(lease.item, copies, outcomes)
            except StoreFailed as fault:
                if ARMED:
                    passed("X7")
                _log.error(
                    "{event}",
                    event="queue.content-not-found",
                    queueId=lease.item.id_text,
                    details=str(fault),
                )
                status = RecipientStatus(ENTITY, ErrorKind.IO, "Queue system error.")
                for recipient, _ in copies:
                    outcomes.setdefault(recipient.index, Delayed(status))
        return outcomes

    async def _copy(self, route: LocalRoute, lease: Lease, recipient: QueuedRecipient) -> Copy | Outcome:
        address = recipient.address
        if route.template is None:
            return Delayed(_refusal(address, 451, "4.3.0", "local delivery is not configured"))
        split = await self._split_detail(address)
        if isinstance(split, Unknown):
            return Delayed(RecipientStatus(split.dependency, ErrorKind.DEPENDENCY, split.reason))
        try:
            maildir = maildir_path(route.template, address, *split)
        except Impossible as reason:
            return Failed(_refusal(address, 550, "5.1.3", str(reason)))
        name = file_name(lease.item, address, self._hostname)
        return Copy(maildir, route.template.fixed, name, lease.generation, route.create, self._disk)

    async def _write(
        self, item: QueueItem, copies: Sequence[tuple[QueuedRecipient, Copy]], outcomes: dict[int, Outcome]
    ) -> None:
        reader = await self._store.read(item)
        try:
            octets = await reader.read()
            if len(octets) == item.size_octets:
                # The common case: in memory as a whole, one trip to a thread for all copies.
                results = await self._run_blocking(self._store_all, copies, octets)
                for (recipient, copy), result in zip(copies, results, strict=True):
                    self._tell(item, recipient, copy, result, outcomes)
                return
        finally:
            reader.close()
        for recipient, copy in copies:
            result = await self._store_in_pieces(item, recipient, copy)
            self._tell(item, recipient, copy, result, outcomes)

    def _store_all(self, copies: Sequence[tuple[QueuedRecipient, Copy]], octets: bytes) -> list[bool | OSError]:
        converted = octets.replace(b"\r\n", b"\n")
        results: list[bool | OSError] = []
        for recipient, copy in copies:
            try:
                fresh = copy.begin()
                if fresh:
                    copy.write_raw(self._first_line(recipient) + converted)
                    copy.finish()
                results.append(fresh)
            except OSError as fault:
                copy.abandon()
                results.append(fault)
        return results

    async def _store_in_pieces(self, item: QueueItem, recipient: QueuedRecipient, copy: Copy) -> bool | OSError:
        reader = await self._store.read(item)
        done = False
        try:
            fresh = await self._run_blocking(copy.begin)
            if fresh:
                await self._run_blocking(copy.write_raw, self._first_line(recipient))
                while octets := await reader.read():
                    await self._run_blocking(copy.write, octets)
                await self._run_blocking(copy.finish)
            done = True
            return fresh
        except OSError as fault:
            return fault
        finally:
            reader.close()
            if not done:
                await self._run_blocking(copy.abandon)

    def _first_line(self, recipient: QueuedRecipient) -> bytes:
        if not self._delivered_to:
            return b""
        return b"Delivered-To: " + recipient.address.encode("utf-8", "replace") + b"\n"

    def _tell(
        self,
        item: QueueItem,
        recipient: QueuedRecipient,
        copy: Copy,
        result: bool | OSError,
        outcomes: dict[int, Outcome],
    ) -> None:
        if isinstance(result, OSError):
            outcomes[recipient.index] = Delayed(_os_error(recipient.address, result))
            return
        outcomes[recipient.index] = DELIVERED
        _log.info(
            "{event}",
            event="delivery.local",
            queueId=item.id_text,
            to=recipient.address,
            path=copy.maildir,
            duplicate=not result,
        )


def _refusal(address: str, code: int, enhanced: str, text: str) -> RecipientStatus:
    return RecipientStatus(
        ENTITY,
        ErrorKind.UNEXPECTED_REPLY,
        command=f"RCPT TO:{Path.parse(address).wire}",
        reply=RemoteReply(code, enhanced, text),
    )


def _os_error(address: str, fault: OSError) -> RecipientStatus:
    # The text goes into DSNs: it names no path.
    text = fault.strerror or "I/O error"
    if fault.errno in _SPACE_ERRORS:
        return _refusal(address, 452, "4.2.2", text)
    return _refusal(address, 451, "4.2.0", text)
