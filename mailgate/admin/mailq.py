"""The program `mailq`: the queue as it has been listed for decades, and with `-j` as `postqueue -j` prints it.

Only reads, whether or not the daemon runs. Messages come in the order of their
arrival and are read a thousand at a time.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mailgate.admin.failure import Failed, Status
from mailgate.admin.opened import queue_at
from mailgate.admin.outlet import give_up_output, have_output
from mailgate.config.outline import Illegible, outline
from mailgate.config.paths import DEFAULT_CONFIG
from mailgate.mail.status import ErrorKind
from mailgate.queue.inspect import in_attempt
from mailgate.queue.item import queue_id_text
from mailgate.queue.rows import read_status
from mailgate.queue.scope import error_text

_USAGE = "mailq [-j] [--config FILE]"
_AT_ONCE = 1000
_NULL_SENDER = "MAILER-DAEMON"
_COLUMNS = f"{'-Queue ID-':17} {'--Size--':>8} {'---Arrival Time----':>19}  -Sender/Recipient-------"
_INDENT = " " * 47
_FINAL = "('completed', 'perm_fail')"


class Waiting(NamedTuple):
    """One recipient that is still to be delivered to."""

    address: str
    orcpt: str | None
    reason: str
    """What the last attempt failed for; empty before one."""
    is_new: bool
    """No attempt has been made."""
    is_held: bool
    is_cancelled: bool


class Message(NamedTuple):
    """One message of the queue."""

    id: int
    created_ms: int
    size_octets: int
    sender: str
    in_attempt: bool
    is_due: bool
    recipients: tuple[Waiting, ...]

    @property
    def is_held(self) -> bool:
        """Every recipient that is left is held."""
        return bool(self.recipients) and all(recipient.is_held for recipient in self.recipients)

    @property
    def queue_name(self) -> str:
        """In which of the queues of old it would be."""
        if self.in_attempt:
            return "active"
        if self.is_held:
            return "hold"
        return "incoming" if self.is_due and all(each.is_new for each in self.recipients) else "deferred"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; answers its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    have_output()
    try:
        as_documents, config = _options(given)
        with queue_at(outline(config).queue_file) as db:
            found = messages(db, time.time_ns() // 1_000_000)
            _print_documents(found) if as_documents else _print_listing(found)
        sys.stdout.flush()
    except Illegible as wrong:
        return _told(Status.CONFIG, str(wrong))
    except Failed as failed:
        return _told(failed.status, failed.message)
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        give_up_output()
    return Status.OK


def _told(status: Status, message: str) -> int:
    print(f"mailq: {message}", file=sys.stderr)
    return status


def _options(given: list[str]) -> tuple[bool, str]:
    as_documents, config = False, os.environ.get("MAILGATE_CONFIG") or DEFAULT_CONFIG
    while given:
        option = given.pop(0)
        if option == "-j":
            as_documents = True
        elif option.startswith("--config="):
            config = option.partition("=")[2]
        elif option in ("--config", "-C") and given:
            config = given.pop(0)
        elif option == "-v":
            # Says more elsewhere; there is nothing more to say here.
            continue
        else:
            raise Failed(Status.USAGE, f"{option} means nothing here; write {_USAGE}")
    return as_documents, config


def messages(db: sqlite3.Connection, now_ms: int) -> Iterator[Message]:
    """All messages, in the order of their arrival."""
    last = -1
    while rows := db.execute(
        "SELECT id, created, size, return_path FROM message WHERE id > ? ORDER BY id LIMIT ?", (last, _AT_ONCE)
    ).fetchall():
        first, last = rows[0][0], rows[-1][0]
        attempted = {id_ for id_, _ in in_attempt(db, [row[0] for row in rows])}
        waiting: dict[int, list[Waiting]] = {}
        for id_, *recipient in db.execute(
            "SELECT message_id, address, orcpt, state, status_json, retry_num, held_since, cancel_mark FROM recipient"
            f" WHERE message_id BETWEEN ? AND ? AND state NOT IN {_FINAL} ORDER BY message_id, idx",
            (first, last),
        ):
            waiting.setdefault(id_, []).append(_waiting(*recipient))
        due = {
            id_
            for (id_,) in db.execute(
                "SELECT DISTINCT message_id FROM unit WHERE message_id BETWEEN ? AND ? AND due <= ?",
                (first, last, now_ms),
            )
        }
        for id_, created, size, sender in rows:
            recipients = tuple(waiting.get(id_, ()))
            yield Message(id_, created, size, sender, id_ in attempted, id_ in due, recipients)


def _waiting(
    address: str,
    orcpt: str | None,
    state: str,
    status_json: str | None,
    retry_num: int,
    held_since: int | None,
    cancel_mark: str | None,
) -> Waiting:
    status = read_status(status_json) if status_json is not None else None
    failed = status is not None and state != "scheduled" and status.kind is not ErrorKind.NONE
    reason = error_text(status) if status is not None and failed else ""
    is_new = state == "scheduled" and not retry_num
    return Waiting(address, orcpt, reason, is_new, held_since is not None, cancel_mark is not None)


def _print_listing(found: Iterator[Message]) -> None:
    count = octets = 0
    for message in found:
        if not count:
            _print(_COLUMNS)
        count += 1
        octets += message.size_octets
        mark = "*" if message.in_attempt else "!" if message.is_held else " "
        arrival = time.strftime("%a %b %d %H:%M:%S", time.localtime(message.created_ms / 1000))
        sender = message.sender or _NULL_SENDER
        _print(f"{queue_id_text(message.id)}{mark} {message.size_octets:8} {arrival:>19}  {_line(sender)}")
        told = ""
        for recipient in message.recipients:
            if recipient.reason and recipient.reason != told:
                told = recipient.reason
                _print(f"({_line(told)})".rjust(len(_INDENT)))
            _print(f"{_INDENT}{_line(recipient.address)}")
        _print("")
    if count:
        _print(f"-- {-(-octets // 1024)} Kbytes in {count} Request{'s' if count != 1 else ''}.")
    else:
        _print("Mail queue is empty")


def _print_documents(found: Iterator[Message]) -> None:
    for message in found:
        document = {
            "queue_name": message.queue_name,
            "queue_id": queue_id_text(message.id),
            "arrival_time": message.created_ms // 1000,
            "message_size": message.size_octets,
            "forced_expire": any(recipient.is_cancelled for recipient in message.recipients),
            "sender": message.sender or _NULL_SENDER,
            "recipients": [_recipient(recipient) for recipient in message.recipients],
        }
        _print(json.dumps(document, ensure_ascii=False))


def _recipient(recipient: Waiting) -> dict[str, str]:
    document = {"address": recipient.address}
    if recipient.orcpt is not None:
        document["orig_address"] = recipient.orcpt
    if recipient.reason:
        document["delay_reason"] = recipient.reason
    return document


def _line(text: str) -> str:
    """What came from a client or a next hop on one line, and without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _print(line: str) -> None:
    sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")


if __name__ == "__main__":
    sys.exit(main())
