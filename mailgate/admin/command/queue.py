"""`mailgate queue`: what is in the queue, why it is still there, and what to do about it.

Reading commands open the store read-only and need no daemon; changing ones go
through it.
"""

from __future__ import annotations

import click

from mailgate.admin.command.queue_change import CHANGES
from mailgate.admin.command.queue_check import check
from mailgate.admin.command.queue_export import export
from mailgate.admin.command.queue_list import list_
from mailgate.admin.command.queue_pause import pause, resume
from mailgate.admin.command.queue_show import show
from mailgate.admin.command.queue_status import status
from mailgate.admin.command.queue_why import why


@click.group()
def queue() -> None:
    """The message queue."""


for _command in (list_, show, why, *CHANGES, export, check, pause, resume, status):
    queue.add_command(_command)
