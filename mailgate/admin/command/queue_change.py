"""`mailgate queue retry, hold, release, reroute, cancel, drop`: what operators change, through the daemon."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import click

from mailgate.admin.control import Request, ask
from mailgate.admin.failure import Failed, Status
from mailgate.admin.matching import check_match
from mailgate.admin.order import COMMAND, MAX_IDS, Page
from mailgate.admin.output import print_json, print_text
from mailgate.admin.selector import demand_text, moment_ms, selectors
from mailgate.admin.settings import control_path
from mailgate.decisions.explain import printable
from mailgate.queue.item import queue_id_text
from mailgate.queue.operate import Action, Order
from mailgate.queue.selection import Selection


def _as(command: Callable[..., Order]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Name and text of a command, for the function that runs it."""

    def named(function: Callable[..., int]) -> Callable[..., int]:
        return functools.update_wrapper(function, command)

    return named


def _changing(command: Callable[..., Order]) -> Callable[..., int]:
    """Give a command the selectors, `--all`, and what all changes have in common."""

    @click.option("--all", "everything", is_flag=True, help="All messages; selectors still hold.")
    @click.option("--reason", metavar="TEXT", default="", help="Kept with the event, and with a hold.")
    @click.option("--dry-run", is_flag=True, help="Count, and change nothing.")
    @click.option("--json", "as_document", is_flag=True, help="Print one JSON document.")
    @selectors
    @_as(command)
    @click.pass_obj
    def changing(
        config_file: str,
        /,
        *,
        selection: Selection,
        everything: bool,
        reason: str,
        dry_run: bool,
        as_document: bool,
        **options: object,
    ) -> int:
        if selection.is_everything and not everything:
            raise Failed(Status.USAGE, "name messages by id or selector, or all of them with --all")
        if selection.match is not None:
            check_match(selection.match)
        demand_text(reason)
        order = command(**options)
        page = Page(order=replace(order, reason=reason), selection=selection, everything=everything, dry_run=dry_run)
        return _carry_out(config_file, page, as_document)

    return changing


@click.command()
@click.option("-t", "--at", metavar="TIME", help="Then instead of now: RFC 3339, +10m.")
@_changing
def retry(at: str | None) -> Order:
    """Try messages again now, or at another time.

    Recipients whose time to live ends before that get ten more attempts. Those
    that are held stay held: mailgate queue release.
    """
    now_ms = time.time_ns() // 1_000_000
    return Order(action=Action.RETRY, at_ms=None if at is None else max(moment_ms(at, now_ms), 0))


@click.command()
@_changing
def hold() -> Order:
    """Stop messages: no attempt, no expiry, until they are released."""
    return Order(action=Action.HOLD)


@click.command()
@_changing
def release() -> Order:
    """Let messages go that are held: they are tried at once, and expire later by the time they were held."""
    return Order(action=Action.RELEASE)


@click.command()
@click.option("--route", metavar="NAME", help="A route of the configuration in use, instead of the strategy's.")
@click.option("--clear", is_flag=True, help="Leave the choice to queue.strategy.route again.")
@click.option("--now", is_flag=True, help="Try at once; otherwise it counts from the next attempt.")
@_changing
def reroute(route: str | None, clear: bool, now: bool) -> Order:
    """Send messages by another route from the next attempt on."""
    if (route is None) == (not clear):
        raise Failed(Status.USAGE, "choose one of --route NAME and --clear")
    return Order(action=Action.REROUTE, route=route, at_ms=time.time_ns() // 1_000_000 if now else None)


@click.command()
@click.option("--notify", is_flag=True, help="Tell the senders that delivery failed.")
@_changing
def cancel(notify: bool) -> Order:
    """Give recipients up; a delivery under way that succeeds still counts.

    Nobody is told, unless with --notify. A message goes with its last recipient.
    """
    return Order(action=Action.CANCEL, notify=notify)


@click.command()
@_changing
def drop() -> Order:
    """Remove messages with all their recipients, whichever match; nobody is told."""
    return Order(action=Action.DROP)


@dataclass(slots=True)
class _Sum:
    """What all pages together have done."""

    matched: int = 0
    changed: int = 0
    held: int = 0
    unknown: int = 0
    ids: list[str] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)

    def add(self, result: dict[str, object]) -> None:
        self.matched += _number(result, "matched")
        self.changed += _number(result, "changed")
        self.held += _number(result, "held")
        self.unknown += _number(result, "unknown")
        self.ids += _texts(result, "ids")
        self.reasons.update(_texts(result, "reasons"))


def _carry_out(config_file: str, page: Page, as_document: bool) -> int:
    path = control_path(config_file)
    done = _Sum()
    try:
        for part in _of_few_ids(page):
            after: int | None = -1
            until: int | None = None
            while after is not None:
                asked = replace(part, after=after, until=until).arguments()
                answer = ask(path, Request(COMMAND, {**asked, "config": os.path.abspath(config_file)}))
                if answer.status is not Status.OK:
                    raise Failed(answer.status, answer.text)
                result = dict(answer.result)
                done.add(result)
                after = _number(result, "after") if "after" in result else None
                until = _number(result, "until")
    except Failed as failed:
        if done.changed and not page.dry_run:
            text = f"{failed.message}; {_counted(page, done)} before that"
            raise Failed(failed.status, text) from None
        raise
    if as_document:
        document: dict[str, object] = {"matched": done.matched, "changed": done.changed, "ids": done.ids}
        print_json({**document, "dry_run": True} if page.dry_run else document)
    _tell(page, done, as_document)
    return Status.OK if done.matched or page.selection.is_everything else Status.NOTHING


def _tell(page: Page, done: _Sum, as_document: bool) -> None:
    """The result for people; beside a document only what is odd, on standard error."""
    lines = [] if as_document else [_counted(page, done)]
    odd = []
    if page.selection.ids is not None:
        missing = {queue_id_text(id_) for id_ in page.selection.ids} - set(done.ids)
        odd += [f"{id_}: nothing matched" for id_ in sorted(missing)]
    if done.held:
        odd.append(f"{done.held} held recipients were left alone: mailgate queue release lets them go")
    if done.unknown:
        odd.append(f"{done.unknown} recipients were left alone, --match could not be answered for them:")
        odd += sorted(done.reasons)
    for line in lines:
        print_text(f"{line}\n")
    for line in odd:
        click.echo(printable(line).encode("utf-8", "backslashreplace").decode(), err=True)


def _counted(page: Page, done: _Sum) -> str:
    would = "would be " if page.dry_run else ""
    if page.order.action is Action.DROP:
        return f"{_plural(done.changed, 'message')} {would}dropped"
    word = {
        Action.RETRY: "rescheduled",
        Action.HOLD: "held",
        Action.RELEASE: "released",
        Action.REROUTE: "rerouted",
        Action.CANCEL: "cancelled",
    }[page.order.action]
    return f"{_plural(done.changed, 'recipient')} of {_plural(done.matched, 'message')} {would}{word}"


def _plural(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"


def _of_few_ids(page: Page) -> Iterator[Page]:
    """The same order in requests that are not too long."""
    ids = sorted(page.selection.ids or ())
    if len(ids) <= MAX_IDS:
        yield page
        return
    for start in range(0, len(ids), MAX_IDS):
        some = frozenset(ids[start : start + MAX_IDS])
        yield replace(page, selection=replace(page.selection, ids=some))


def _number(result: dict[str, object], name: str) -> int:
    value = result.get(name, 0)
    return value if isinstance(value, int) else 0


def _texts(result: dict[str, object], name: str) -> list[str]:
    value = result.get(name)
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
