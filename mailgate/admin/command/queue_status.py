"""`mailgate queue status`: does it run, and how much is in each virtual queue."""

from __future__ import annotations

import time

import click

from mailgate.admin.control import Request, ask
from mailgate.admin.failure import Failed, Status
from mailgate.admin.output import moment, print_json, print_table, print_text
from mailgate.admin.settings import control_path, queue_of, settings_of
from mailgate.decisions.explain import printable, timestamp
from mailgate.queue.inspect import counts
from mailgate.queue.pause import PauseOf, pauses

_ANSWER_SECONDS = 5.0


@click.command()
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def status(config_file: str, as_document: bool) -> int:
    """Tell whether attempts begin, and how many recipients wait in each virtual queue."""
    settings = settings_of(config_file)
    is_reachable = _is_reachable(config_file)
    with queue_of(settings) as db:
        paused = pauses(db)
        now_ms = time.time_ns() // 1_000_000
        queues = counts(db, now_ms)
    if as_document:
        print_json(
            {
                "running": not paused,
                "daemon": is_reachable,
                "queues": {
                    each.name: {
                        "scheduled": each.scheduled,
                        "held": each.held,
                        "temp_fail": each.temp_fail,
                        "oldest": timestamp(each.oldest_ms),
                        "oldest_seconds": _seconds(now_ms, each.oldest_ms),
                        "stalled_seconds": _seconds(now_ms, each.stalled_ms),
                    }
                    for each in queues
                },
                "suspensions": [],
            }
        )
        return Status.OK
    print_text("Paused\n" if paused else "Running\n")
    for scope in PauseOf:
        if scope in paused:
            pause = paused[scope]
            why = f": {pause.reason}" if pause.reason else ""
            text = f"Paused for the {scope.value} since {moment(pause.since_ms)} by {pause.actor}{why}"
            print_text(f"{printable(text)}\n")
    if not is_reachable:
        print_text("The daemon cannot be reached: nothing is accepted or delivered\n")
    if queues:
        print_text("\n")
        print_table(
            ("Queue", "Scheduled", "Held", "Failed so far", "Oldest", "Stalled for"),
            [
                (
                    (q.name,),
                    (str(q.scheduled),),
                    (str(q.held),),
                    (str(q.temp_fail),),
                    (moment(q.oldest_ms),),
                    (f"{_seconds(now_ms, q.stalled_ms)} s",),
                )
                for q in queues
            ],
        )
    return Status.OK


def _seconds(now_ms: int, since_ms: int | None) -> int:
    """How long ago, in whole seconds; 0 for what has not been."""
    return 0 if since_ms is None else max(now_ms - since_ms, 0) // 1000


def _is_reachable(config_file: str) -> bool:
    try:
        return ask(control_path(config_file), Request("status"), _ANSWER_SECONDS).status is Status.OK
    except Failed:
        return False
