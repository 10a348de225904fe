"""`mailgate queue`: what is in the queue, and why it is still there.

The reading commands; they open the store read-only and need no daemon.
"""

from __future__ import annotations

import os
import sqlite3
import sys

import click

from mailgate.admin.entry import entry, state_word, status_words
from mailgate.admin.failure import Failed, Status
from mailgate.admin.output import moment, print_json, print_table, print_text, size
from mailgate.admin.selector import queue_id, selectors
from mailgate.admin.settings import queue_of, settings_of
from mailgate.decisions.explain import printable, timestamp
from mailgate.mail.header import header_end
from mailgate.queue.content import BLOCK_OCTETS, content
from mailgate.queue.inspect import By, Group, group, in_attempt, read, select
from mailgate.queue.item import ExpiresBy, QueuedRecipient, QueueItem, queue_id_text
from mailgate.queue.selection import Selection

_LIMIT = 100


@click.group()
def queue() -> None:
    """The message queue."""


@queue.command("list")
@selectors
@click.option("--limit", metavar="N", type=click.IntRange(0), help=f"Show N messages at most (default {_LIMIT}).")
@click.option("--offset", metavar="N", type=click.IntRange(0), default=0, help="Leave out the first N.")
@click.option("--by", type=click.Choice([by.value for by in By]), help="Group and count instead.")
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document, without a limit.")
@click.pass_obj
def list_(
    config_file: str, *, selection: Selection, limit: int | None, offset: int, by: str | None, as_document: bool
) -> int:
    """List queued messages by next delivery.

    All selectors given must hold; a message is listed when they hold for one of
    its recipients. Status 1: something was asked for and nothing matched.
    """
    settings = settings_of(config_file)
    if limit is None and not as_document:
        limit = _LIMIT
    with queue_of(settings) as db:
        if by is not None:
            groups = group(db, selection, By(by))
            total = len(groups)
            groups = groups[offset : None if limit is None else offset + limit]
            _print_groups(groups, total, by, as_document)
        else:
            total, ids = select(db, selection, limit, offset)
            _print_list(db, ids, total, as_document)
    return Status.OK if total or selection.is_everything else Status.NOTHING


def _print_list(db: sqlite3.Connection, ids: list[int], total: int, as_document: bool) -> None:
    messages = read(db, ids)
    if as_document:
        leased = in_attempt(db, ids)
        # Nothing can pause a queue of this version: it always runs.
        print_json({"running": True, "total": total, "items": [entry(message, leased) for message in messages]})
        return
    if messages:
        print_table(
            ("ID", "Delivery Due", "Sender", "Recipients", "Size"),
            [
                (
                    (message.id_text,),
                    (moment(_due_ms(message)),),
                    (message.return_path or "<>",),
                    [f"{recipient.address} ({state_word(recipient)})" for recipient in message.recipients],
                    (size(message.size_octets),),
                )
                for message in messages
            ],
        )
    print_text(f"{len(messages)} of {total} messages\n" if len(messages) != total else f"{_counted(total)}\n")


def _counted(total: int) -> str:
    return "1 message" if total == 1 else f"{total} messages" if total else "The queue has no such message"


def _due_ms(message: QueueItem) -> int | None:
    """The next delivery of a message; None where there is none."""
    due = (r.retry_due_ms for r in message.recipients if not r.state.is_final and not r.held)
    return min((moment for moment in due if moment is not None), default=None)


def _print_groups(groups: list[Group], total: int, by: str, as_document: bool) -> None:
    if as_document:
        found = [
            {"name": g.name, "messages": g.messages, "recipients": g.recipients, "oldest": timestamp(g.oldest_ms)}
            for g in groups
        ]
        print_json({"total": total, "groups": found})
        return
    if groups:
        print_table(
            (by.capitalize(), "Messages", "Recipients", "Oldest"),
            [((g.name or "-",), (str(g.messages),), (str(g.recipients),), (moment(g.oldest_ms),)) for g in groups],
        )
    print_text(f"{len(groups)} of {total} groups\n")


@queue.command()
@click.argument("id")
@click.option("--content", "whole", is_flag=True, help="Print the stored octets of the message instead.")
@click.option("--headers", is_flag=True, help="Print the stored header instead.")
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def show(config_file: str, id: str, whole: bool, headers: bool, as_document: bool) -> int:
    """Show one message and what became of each of its recipients."""
    if whole + headers + as_document > 1:
        raise Failed(Status.USAGE, "choose one of --content, --headers and --json")
    wanted = queue_id(id)
    settings = settings_of(config_file)
    with queue_of(settings) as db:
        found = read(db, [wanted]) if wanted < 1 << 63 else []
        if not found:
            text = queue_id_text(wanted)
            raise Failed(Status.NOTHING, f"{text} is not in the queue; mailgate explain {text} tells what became of it")
        message = found[0]
        if whole or headers:
            _print_content(db, settings.queue.spool, message, headers)
        elif as_document:
            print_json(entry(message, in_attempt(db, [wanted])))
        else:
            _print_message(message, {name for _, name in in_attempt(db, [wanted])})
    return Status.OK


def _print_content(db: sqlite3.Connection, spool: str, message: QueueItem, headers: bool) -> None:
    octets, fd = content(db, spool, message)
    try:
        sys.stdout.flush()
        out = sys.stdout.buffer
        if headers:
            # Up to the limit of what the queue itself reads of a header.
            if fd is not None:
                octets += os.read(fd, BLOCK_OCTETS)
            out.write(octets[: header_end(octets)])
        else:
            while octets:
                out.write(octets)
                octets = os.read(fd, BLOCK_OCTETS) if fd is not None else b""
        out.flush()
    finally:
        if fd is not None:
            os.close(fd)


def _print_message(message: QueueItem, attempted: set[str]) -> None:
    facts = [
        ("ID", message.id_text),
        ("Sender", message.return_path or "<>"),
        ("Accepted", moment(message.created_ms)),
        ("Size", f"{message.size_octets} octets"),
        ("Source", f"{message.source.value}, from {message.from_ip} via port {message.via_port}"),
        ("Trace", message.trace or ""),
        ("ENVID", message.env_id or ""),
        ("Priority", str(message.priority) if message.priority else ""),
        ("SHA-256", message.content_hash),
    ]
    for recipient in message.recipients:
        facts += [
            ("", ""),
            ("Recipient", recipient.address),
            ("Status", state_word(recipient) + (", in an attempt now" if recipient.queue in attempted else "")),
            ("Details", status_words(recipient)),
            ("Queue", recipient.queue),
            ("Retry #", str(recipient.retry_num)),
            ("Delivery Due", "" if recipient.held else moment(recipient.retry_due_ms)),
            ("Notify at", moment(recipient.notify_due_ms) if recipient.notify_due_ms is not None else ""),
            ("Expires", _expires(message, recipient)),
        ]
    for name, value in facts:
        if value or not name:
            print_text(f"{name:14}{printable(value)}".rstrip() + "\n")


def _expires(message: QueueItem, recipient: QueuedRecipient) -> str:
    if recipient.state.is_final:
        return ""
    if recipient.expiry.by is ExpiresBy.TTL:
        return moment(message.created_ms + recipient.expiry.value)
    return f"after {max(recipient.expiry.value - recipient.retry_num, 0)} more failed attempts"
