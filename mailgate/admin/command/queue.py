"""`mailgate queue`: what is in the queue, why it is still there, and what to do about it.

Reading commands open the store read-only and need no daemon; changing ones go
through it.
"""

from __future__ import annotations

import click

from mailgate.admin.command.group import LazyGroup


class _Commands(LazyGroup):
    places = {
        "list": "queue_list:list_",
        "show": "queue_show:show",
        "why": "queue_why:why",
        "export": "queue_export:export",
        "check": "queue_check:check",
        "status": "queue_status:status",
        "retry": "queue_change:retry",
        "hold": "queue_change:hold",
        "release": "queue_change:release",
        "reroute": "queue_change:reroute",
        "cancel": "queue_change:cancel",
        "drop": "queue_change:drop",
        "pause": "queue_pause:pause",
        "resume": "queue_pause:resume",
    }


@click.group(cls=_Commands)
def queue() -> None:
    """The message queue."""
