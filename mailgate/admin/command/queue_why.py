"""`mailgate queue why`: what keeps a message from being delivered now."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import click

from mailgate.admin.control import Request, ask
from mailgate.admin.failure import Failed, Status
from mailgate.admin.output import moment, print_json, print_text
from mailgate.admin.selector import queue_id
from mailgate.admin.settings import control_path, queue_of, settings_of
from mailgate.decisions.explain import printable, timestamp
from mailgate.queue.inspect import read
from mailgate.queue.item import QueueItem, queue_id_text
from mailgate.queue.lease import boot_ms, wall_ms
from mailgate.queue.pause import pauses
from mailgate.queue.why import Reasons
from mailgate.queue.why import why as reasons_of

_IDS_AT_ONCE = 2000


@click.command()
@click.argument("ids", nargs=-1, metavar="ID...", required=True)
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def why(config_file: str, ids: tuple[str, ...], as_document: bool) -> int:
    """Tell what keeps messages from being delivered now, and where the next attempt would go.

    Nothing in the way of a recipient: the next scan starts it. Status 1: an id
    is not in the queue.
    """
    wanted = list(dict.fromkeys(queue_id(id_) for id_ in ids))
    settings = settings_of(config_file)
    asked = _ask_daemon(config_file, wanted, with_next=not as_document)
    with queue_of(settings) as db:
        messages = read(db, [id_ for id_ in wanted if id_ < 1 << 63])
        paused = pauses(db)
        told = [(each, reasons_of(db, each, paused, asked.slots, wall_ms(), boot_ms())) for each in messages]
    missing = [queue_id_text(id_) for id_ in wanted if id_ not in {message.id for message in messages}]
    gone = [f"{id_} is not in the queue; mailgate explain {id_} tells what became of it" for id_ in missing]
    if not messages:
        raise Failed(Status.NOTHING, "\n".join(gone))
    if as_document:
        items = [_facts(message, reasons, asked.is_complete) for message, reasons in told]
        print_json(items[0] if len(wanted) == 1 else {"items": items})
    else:
        for message, reasons in told:
            _print(message, reasons, asked)
        if not asked.is_complete:
            print_text(f"Not complete, the daemon could not be asked for free slots: {asked.problem}\n")
    for line in gone:
        click.echo(line, err=True)
    return Status.NOTHING if missing else Status.OK


@dataclass(frozen=True, slots=True)
class _Asked:
    """What only the daemon knows."""

    is_complete: bool
    problem: str = ""
    slots: Mapping[str, int | None] = field(default_factory=dict)
    next: Mapping[str, object] = field(default_factory=dict)


def _ask_daemon(config_file: str, ids: list[int], with_next: bool) -> _Asked:
    given = {"ids": [i for i in ids if i < 1 << 63][:_IDS_AT_ONCE], "next": with_next}
    try:
        answer = ask(control_path(config_file), Request("queue.why", {**given, "config": os.path.abspath(config_file)}))
    except Failed as failed:
        return _Asked(False, failed.message)
    if answer.status is not Status.OK:
        return _Asked(False, answer.text)
    slots, following = answer.result.get("slots"), answer.result.get("next")
    return _Asked(
        len(ids) <= _IDS_AT_ONCE,
        "",
        {str(queue): free if isinstance(free, int) else None for queue, free in slots.items()}
        if isinstance(slots, dict)
        else {},
        following if isinstance(following, dict) else {},
    )


def _facts(message: QueueItem, reasons: list[Reasons], is_complete: bool) -> dict[str, object]:
    recipients = []
    for each in reasons:
        facts: dict[str, object] = {
            "address": each.recipient.address,
            "due": None if each.due_ms is None else timestamp(each.due_ms),
        }
        if each.expires_ms is not None:
            facts["expires"] = timestamp(each.expires_ms)
        facts["blockers"] = [
            {"kind": blocker.kind.value, "name": blocker.name, "detail": blocker.detail}
            | ({} if blocker.until_ms is None else {"until": timestamp(blocker.until_ms)})
            for blocker in each.blockers
        ]
        recipients.append(facts)
    return {"id": message.id_text, "complete": is_complete, "recipients": recipients}


def _print(message: QueueItem, reasons: list[Reasons], asked: _Asked) -> None:
    print_text(printable(f"{message.id_text} from {message.return_path or '<>'}") + "\n")
    following = asked.next.get(message.id_text)
    for each in reasons:
        print_text(printable(f"  {each.recipient.address}") + "\n")
        for blocker in each.blockers:
            until = "" if blocker.until_ms is None else f", until {moment(blocker.until_ms)}"
            name = f" {blocker.name}" if blocker.name else ""
            print_text(printable(f"    {blocker.kind.value}{name}: {blocker.detail}{until}") + "\n")
        if not each.blockers:
            text = "nothing: the next scan starts it" if asked.is_complete else "nothing that the queue knows of"
            print_text(f"    {text}\n")
        plan = following.get(each.recipient.address) if isinstance(following, dict) else None
        if isinstance(plan, dict):
            _print_next(plan)


def _print_next(plan: Mapping[str, object]) -> None:
    hosts = plan.get("hosts")
    lines = [f"next: route {plan.get('route')}, schedule {plan.get('schedule')}, TLS {plan.get('tls')}"]
    lines += [f"      {host}" for host in hosts] if isinstance(hosts, list) else []
    for line in lines:
        print_text(printable(f"    {line}") + "\n")
