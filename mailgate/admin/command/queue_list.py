"""`mailgate queue list`: what waits, by the time of the next attempt; or grouped and counted."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import click

from mailgate.admin.entry import entry, state_word
from mailgate.admin.failure import Status
from mailgate.admin.matching import picked_by_match
from mailgate.admin.output import moment, print_json, print_json_list, print_table, print_text, size
from mailgate.admin.selector import selectors
from mailgate.admin.settings import queue_of, settings_of
from mailgate.decisions.explain import timestamp
from mailgate.queue.inspect import By, Group, by_due, group, in_attempt, orders, read, select
from mailgate.queue.item import QueueItem
from mailgate.queue.pause import pauses
from mailgate.queue.selection import Selection

_LIMIT = 100
_AT_ONCE = 500
# More than there can be, and SQLite still takes two of them for a number.
_MOST = 2**61


@click.command("list")
@click.option("--all", "everything", is_flag=True, help="All messages, which is what it lists without selectors.")
@selectors
@click.option("--limit", metavar="N", type=click.IntRange(0), help=f"Show N messages at most (default {_LIMIT}).")
@click.option("--offset", metavar="N", type=click.IntRange(0), default=0, help="Leave out the first N.")
@click.option("--by", type=click.Choice([by.value for by in By]), help="Group and count instead.")
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document, without a limit.")
@click.pass_obj
def list_(
    config_file: str,
    /,
    *,
    selection: Selection,
    limit: int | None,
    offset: int,
    by: str | None,
    as_document: bool,
    everything: bool,
) -> int:
    """List queued messages by next delivery.

    All selectors given must hold; a message is listed when they hold for one of
    its recipients. Status 1: something was asked for and nothing matched.
    """
    settings = settings_of(config_file)
    if limit is None and not as_document:
        limit = _LIMIT
    limit, offset = limit if limit is None else min(limit, _MOST), min(offset, _MOST)
    with queue_of(settings) as db:
        matched = None if selection.match is None else picked_by_match(db, settings, selection)
        if by is not None:
            groups = group(db, selection, By(by), matched)
            total = len(groups)
            groups = groups[offset : None if limit is None else offset + limit]
            _print_groups(groups, total, by, as_document)
        else:
            if matched is None:
                total, ids = select(db, selection, limit, offset)
            else:
                total, ids = len(matched), by_due(db, matched)[offset : None if limit is None else offset + limit]
            _print_list(db, ids, total, as_document)
    return Status.OK if total or selection.is_everything else Status.NOTHING


def _print_list(db: sqlite3.Connection, ids: list[int], total: int, as_document: bool) -> None:
    if as_document:
        print_json_list({"running": not pauses(db), "total": total}, "items", _entries(db, ids))
        return
    messages = read(db, ids)
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
    if pauses(db):
        print_text("Paused: mailgate queue status\n")


def _entries(db: sqlite3.Connection, ids: list[int]) -> Iterator[dict[str, object]]:
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        leased, ordered = in_attempt(db, some), orders(db, some)
        yield from (entry(message, leased, ordered) for message in read(db, some))


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
