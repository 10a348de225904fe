"""`mailgate queue show`: one message, each of its recipients, or its stored octets."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing

import click

from mailgate.admin.entry import entry, state_word, status_words
from mailgate.admin.failure import Failed, Status
from mailgate.admin.output import moment, print_json, print_text
from mailgate.admin.selector import queue_id
from mailgate.admin.settings import queue_of, settings_of
from mailgate.decisions.explain import printable
from mailgate.mail.header import header_end
from mailgate.queue.content import BLOCK_OCTETS, blocks, content
from mailgate.queue.inspect import Ordered, Orders, in_attempt, orders, read
from mailgate.queue.item import ExpiresBy, QueuedRecipient, QueueItem, queue_id_text


@click.command()
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
            print_json(entry(message, in_attempt(db, [wanted]), orders(db, [wanted])))
        else:
            _print_message(message, {name for _, name in in_attempt(db, [wanted])}, orders(db, [wanted]))
    return Status.OK


def _print_content(db: sqlite3.Connection, spool: str, message: QueueItem, headers: bool) -> None:
    sys.stdout.flush()
    out = sys.stdout.buffer
    with closing(blocks(*content(db, spool, message))) as stored:
        if headers:
            # Up to the limit of what the queue itself reads of a header.
            octets = next(stored, b"")
            octets += next(stored, b"") if len(octets) < BLOCK_OCTETS else b""
            out.write(octets[: header_end(octets)])
        else:
            out.writelines(stored)
    out.flush()


def _print_message(message: QueueItem, attempted: set[str], orders: Orders) -> None:
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
        ordered = orders[message.id, recipient.index]
        facts += [
            ("", ""),
            ("Recipient", recipient.address),
            ("Status", state_word(recipient) + (", in an attempt now" if recipient.queue in attempted else "")),
            ("Details", status_words(recipient)),
            ("Held", _held(ordered) if recipient.held and not recipient.state.is_final else ""),
            ("Ordered", _ordered(ordered) if not recipient.state.is_final else ""),
            ("Queue", recipient.queue),
            ("Route", f"{ordered.route}, by an operator" if ordered.route is not None else ""),
            ("Retry #", str(recipient.retry_num)),
            ("Delivery Due", "" if recipient.held else moment(recipient.retry_due_ms)),
            ("Notify at", moment(recipient.notify_due_ms) if recipient.notify_due_ms is not None else ""),
            ("Expires", _expires(message, recipient)),
        ]
    for name, value in facts:
        if value or not name:
            print_text(f"{name:14}{printable(value)}".rstrip() + "\n")


def _held(ordered: Ordered) -> str:
    since = f"since {moment(ordered.held_since_ms)}"
    return f"{since}, {ordered.held_reason}" if ordered.held_reason else since


def _ordered(ordered: Ordered) -> str:
    return f"{ordered.cancel_mark}, at the end of the attempt" if ordered.cancel_mark else ""


def _expires(message: QueueItem, recipient: QueuedRecipient) -> str:
    if recipient.state.is_final:
        return ""
    if recipient.expiry.by is ExpiresBy.TTL:
        return moment(message.created_ms + recipient.expiry.value)
    return f"after {max(recipient.expiry.value - recipient.retry_num, 0)} more failed attempts"
