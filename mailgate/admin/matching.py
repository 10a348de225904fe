"""`--match EXPR`: an expression over the recipient context, asked about recipients at rest.

What the expression cannot know is no match: nobody's mail is changed on a guess.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TypeVar

import click

from mailgate.admin.failure import Failed, Status
from mailgate.config.schema.settings import Settings
from mailgate.decisions.explain import printable
from mailgate.deliver.context import message_facts, recipient_scope
from mailgate.expr.choice import Choice, compile_choice
from mailgate.expr.error import ExpressionErrors
from mailgate.expr.kind import boolean
from mailgate.expr.outside import Outside
from mailgate.expr.resolve import Environment
from mailgate.expr.scope import Context
from mailgate.lookup.accounts import BadDirectory
from mailgate.lookup.configured import directories, lists
from mailgate.lookup.lists import BadList
from mailgate.lookup.outside import Answers
from mailgate.lookup.recipient import AddressRules
from mailgate.mail.unknown import Unknown
from mailgate.queue.inspect import pick, read
from mailgate.queue.item import QueueItem
from mailgate.queue.lease import wall_ms
from mailgate.queue.selection import Selection

T = TypeVar("T")

_LAST = 2**63 - 1
_MESSAGES_AT_ONCE = 500


class BadMatch(ValueError):
    """The text is no expression over recipients; it says why."""


def compile_match(text: str) -> Choice[bool]:
    """The expression of `--match`. Raises `BadMatch`."""
    try:
        return compile_choice(
            text,
            key="--match",
            place="--match",
            context=Context.RECIPIENT,
            kind=boolean(False),
            environment=Environment(_not_here),
        )
    except ExpressionErrors as errors:
        raise BadMatch("\n".join(f"--match: {error}" for error in errors.errors)) from None


def check_match(text: str) -> None:
    """Raise `Failed` for an expression that has mistakes."""
    _compiled(text)


def _compiled(text: str) -> Choice[bool]:
    try:
        return compile_match(text)
    except BadMatch as bad:
        raise Failed(Status.USAGE, str(bad)) from None


def picked_by_match(db: sqlite3.Connection, settings: Settings, selection: Selection) -> dict[int, frozenset[int]]:
    """The recipients that a selection with an expression means, for a command that only reads.

    Says on standard error what could not be answered. Raises `Failed` for a
    mistake in the expression.
    """
    match = _compiled(selection.match or "true")
    outside = _outside(settings)
    found: dict[int, frozenset[int]] = {}
    doubts: list[Unknown] = []
    after = -1
    while picked := pick(db, selection, after, _LAST, _MESSAGES_AT_ONCE):
        after = max(picked)
        some, unknown = _at_once(matching(match, outside, read(db, list(picked)), picked, wall_ms()))
        found |= some
        doubts += unknown
    if doubts:
        click.echo(f"{len(doubts)} recipients were left out, --match could not be answered for them:", err=True)
        for reason in sorted({f"{doubt.dependency}: {doubt.reason}" for doubt in doubts}):
            click.echo(printable(reason).encode("utf-8", "backslashreplace").decode(), err=True)
    return found


def _outside(settings: Settings) -> Outside:
    """What the configuration itself answers; nobody is asked over a network."""
    rules = settings.session.rcpt
    try:
        return Answers(
            directories(settings, _run_here),
            lists(settings),
            _no_dns,
            AddressRules(rules.sub_addressing, rules.catch_all),
        )
    except (BadDirectory, BadList) as bad:
        raise Failed(Status.CONFIG, "\n".join(bad.problems)) from None


async def _run_here(work: Callable[[], T], /) -> T:
    return work()


async def _no_dns(name: str, type: str) -> Unknown:
    return Unknown("dns", "a command that only reads asks no name server")


def _at_once(coroutine: Coroutine[object, None, T]) -> T:
    """Run what does not really wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise Failed(Status.USAGE, "--match: a command that only reads cannot ask that; changing commands can")


def _not_here(key: str) -> object:
    raise LookupError(key)


async def matching(
    match: Choice[bool],
    outside: Outside,
    messages: Iterable[QueueItem],
    picked: Mapping[int, frozenset[int]],
    now_ms: int,
) -> tuple[dict[int, frozenset[int]], list[Unknown]]:
    """Which of the recipients match, and what was not known about others."""
    found: dict[int, frozenset[int]] = {}
    unknown: list[Unknown] = []
    for message in messages:
        facts = message_facts(message)
        indexes = set()
        for recipient in message.recipients:
            if recipient.index not in picked.get(message.id, ()):
                continue
            answer = await match.unrecorded(recipient_scope(facts, recipient, outside, now_ms))
            if isinstance(answer, Unknown):
                unknown.append(answer)
            elif answer:
                indexes.add(recipient.index)
        if indexes:
            found[message.id] = frozenset(indexes)
    return found, unknown
