"""Selectors: how commands are told which messages and recipients they are about."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import click

from mailgate.admin.failure import Failed, Status
from mailgate.expr.value import BadValue, read_duration
from mailgate.queue.selection import Selection, StateWord, is_text

_ID = re.compile(r"[0-9a-fA-F]{1,16}")
_MS = timedelta(milliseconds=1)


def queue_id(text: str) -> int:
    """A queue id as people write it: hex, in either case, leading zeros optional."""
    if not _ID.fullmatch(text):
        raise Failed(Status.USAGE, f'"{text}" is no queue id: up to 16 hex digits')
    return int(text, 16)


def moment_ms(text: str, now_ms: int) -> int:
    """A moment: RFC 3339, or relative to now as `+10m` and `-2h`."""
    if text[:1] in ("+", "-"):
        offset = _duration_ms(text[1:])
        return now_ms + offset if text[0] == "+" else now_ms - offset
    try:
        moment = datetime.fromisoformat(text)
        # RFC 3339 has a date, a time and an offset; fromisoformat takes less.
        if moment.tzinfo is None or len(text) < len("2026-01-31T12:00:00Z"):
            raise ValueError
        # A moment that UTC has no year for could be kept, and never shown.
        return int(moment.astimezone(UTC).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise Failed(
            Status.USAGE, f'"{text}" is no time: write 2026-01-31T12:00:00Z, or +10m and -2h for times from now'
        ) from None


def demand_text(given: str | None) -> None:
    """Raise `Failed` where octets of the command line are no UTF-8: nothing in the queue has them."""
    if given is not None and not is_text(given):
        shown = given.encode("utf-8", "backslashreplace").decode()
        raise Failed(Status.USAGE, f"{shown} is no UTF-8 text")


def _duration_ms(text: str) -> int:
    try:
        return read_duration(text) // _MS
    except BadValue as bad:
        raise Failed(Status.USAGE, str(bad)) from None


def selectors(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the selectors of recipients; it receives them as one `selection`.

    All given ones must hold. Raises `Failed` for an id, time or duration that is none.
    """

    @click.argument("ids", nargs=-1, metavar="[ID]...")
    @click.option("-s", "--sender", metavar="TEXT", help="Part of the return path; <> is the null sender.")
    @click.option("-r", "--rcpt", metavar="TEXT", help="Part of the recipient's address.")
    @click.option("--text", metavar="TEXT", help="Part of the return path or of any recipient.")
    @click.option("-d", "--domain", metavar="NAME", help="The recipient's domain.")
    @click.option("-q", "--queue", "queue_name", metavar="NAME", help="The virtual queue.")
    @click.option("--status", type=click.Choice([word.value for word in StateWord]), help="The recipient's state.")
    @click.option("-b", "--before", metavar="TIME", help="Next delivery earlier than TIME: RFC 3339, +10m, -2h.")
    @click.option("-a", "--after", metavar="TIME", help="Next delivery later than TIME.")
    @click.option("--older", metavar="DURATION", help="Messages older than this, such as 2d.")
    @click.option("--younger", metavar="DURATION", help="Messages younger than this.")
    @click.option("--error", metavar="TEXT", help="Part of the text of the last error.")
    @click.option("--match", metavar="EXPR", help="An expression over the recipient, such as retry_num > 3.")
    @functools.wraps(command)
    def selecting(
        *args: object,
        ids: tuple[str, ...],
        sender: str | None,
        rcpt: str | None,
        text: str | None,
        domain: str | None,
        queue_name: str | None,
        status: str | None,
        before: str | None,
        after: str | None,
        older: str | None,
        younger: str | None,
        error: str | None,
        match: str | None,
        **options: object,
    ) -> int:
        now_ms = time.time_ns() // 1_000_000
        for given in (sender, rcpt, text, domain, queue_name, error, match):
            demand_text(given)
        selection = Selection(
            ids=frozenset(queue_id(id) for id in ids) if ids else None,
            sender=sender,
            rcpt=rcpt,
            text=text,
            domain=domain,
            queue=queue_name,
            status=None if status is None else StateWord(status),
            before_ms=None if before is None else moment_ms(before, now_ms),
            after_ms=None if after is None else moment_ms(after, now_ms),
            created_before_ms=None if older is None else now_ms - _duration_ms(older),
            created_after_ms=None if younger is None else now_ms - _duration_ms(younger),
            error=error,
            match=match,
        )
        return command(*args, selection=selection, **options)

    return selecting
