"""`mailgate queue export`: messages as they are stored, with everything the queue knows of them."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence

import click

from mailgate.admin.entry import entry
from mailgate.admin.failure import Failed, Status
from mailgate.admin.matching import picked_by_match
from mailgate.admin.output import print_text
from mailgate.admin.selector import selectors
from mailgate.admin.settings import queue_of, settings_of
from mailgate.queue.content import blocks, content
from mailgate.queue.inspect import by_due, in_attempt, orders, read, select
from mailgate.queue.item import QueueItem
from mailgate.queue.selection import Selection
from mailgate.queue.store import StoreFailed

_MESSAGES_AT_ONCE = 100


@click.command()
@click.option("--all", "everything", is_flag=True, help="All messages, which is what it exports without selectors.")
@click.option("--dir", "directory", metavar="DIR", type=click.Path(file_okay=False), help="ID.eml and ID.json there.")
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document instead of a line for each message.")
@selectors
@click.pass_obj
def export(
    config_file: str, /, *, selection: Selection, everything: bool, directory: str | None, as_document: bool
) -> int:
    """Write messages out: the stored octets, and the entry object of each.

    Into files with --dir; otherwise as JSON lines on standard output, whose
    member `content` has the octets in base64. Nothing is taken from the queue.
    Status 1: something was asked for and nothing matched.
    """
    settings = settings_of(config_file)
    with queue_of(settings) as db:
        if selection.match is None:
            _, ids = select(db, selection, None)
        else:
            ids = by_due(db, picked_by_match(db, settings, selection))
        export = _Export(db, settings.queue.spool, ids)
        if directory is not None:
            _to_files(export, directory, as_document)
        elif as_document:
            _to_document(export)
        else:
            for facts, octets in export.with_octets():
                _write(_line(facts, octets) + b"\n")
    for problem in export.problems:
        click.echo(f"mailgate: {problem}", err=True)
    if export.problems:
        return Status.NOT_NOW
    return Status.OK if export.done or selection.is_everything else Status.NOTHING


class _Export:
    """Messages one after the other; those that leave the queue meanwhile are left out."""

    def __init__(self, db: sqlite3.Connection, spool: str, ids: Sequence[int]) -> None:
        self._db = db
        self._spool = spool
        self._ids = ids
        self.done = 0
        self.problems: list[str] = []

    def messages(self) -> Iterator[tuple[QueueItem, dict[str, object]]]:
        for start in range(0, len(self._ids), _MESSAGES_AT_ONCE):
            ids = self._ids[start : start + _MESSAGES_AT_ONCE]
            leased, ordered = in_attempt(self._db, ids), orders(self._db, ids)
            for message in read(self._db, ids):
                yield message, entry(message, leased, ordered)

    def with_octets(self) -> Iterator[tuple[dict[str, object], bytes]]:
        for message, facts in self.messages():
            before = self.done
            octets = b"".join(self.octets(message))
            if self.done > before:
                yield facts, octets

    def octets(self, message: QueueItem) -> Iterator[bytes]:
        """The stored octets; nothing, and a problem, where they cannot be had."""
        try:
            octets, fd = content(self._db, self._spool, message)
        except (StoreFailed, OSError) as failure:
            # Somebody may have finished it since it was read.
            if read(self._db, [message.id]):
                self.problems.append(f"{message.id_text}: {failure}")
            return
        self.done += 1
        yield from blocks(octets, fd)


def _to_files(export: _Export, directory: str, as_document: bool) -> None:
    files: list[str] = []
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        for message, facts in export.messages():
            before = export.done
            path = os.path.join(directory, message.id_text)
            _replace(f"{path}.eml", export.octets(message))
            if export.done == before:
                os.unlink(f"{path}.eml")
                continue
            _replace(f"{path}.json", [json.dumps(facts, ensure_ascii=False, indent=1).encode(*_UTF_8) + b"\n"])
            files += [f"{path}.eml", f"{path}.json"]
    except OSError as failure:
        status = Status.PERMISSION if isinstance(failure, PermissionError) else Status.NOT_NOW
        raise Failed(status, f"{failure.filename or directory}: {failure.strerror}") from None
    if as_document:
        _write(json.dumps({"matched": export.done, "files": files}, indent=1).encode(*_UTF_8) + b"\n")
    else:
        print_text(f"{export.done} messages in {directory}\n" if export.done != 1 else f"1 message in {directory}\n")


def _replace(path: str, blocks: Iterator[bytes] | list[bytes]) -> None:
    """Write a file that is there whole or not at all, for nobody else to read."""
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        for block in blocks:
            file.write(block)
    os.replace(f"{path}.new", path)


def _to_document(export: _Export) -> None:
    """One document, written while the messages are read: all of them may be more than memory takes."""
    _write(b'{"items": [')
    for number, (facts, octets) in enumerate(export.with_octets()):
        _write((b",\n" if number else b"\n") + _line(facts, octets))
    _write(b'],\n"matched": %d}\n' % export.done)


# What a client sent may hold lone surrogates: they become escapes, never an error.
_UTF_8 = ("utf-8", "backslashreplace")


def _line(facts: dict[str, object], octets: bytes) -> bytes:
    document = {**facts, "content": base64.b64encode(octets).decode("ascii")}
    return json.dumps(document, ensure_ascii=False).encode(*_UTF_8)


def _write(octets: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(octets)
    sys.stdout.buffer.flush()
