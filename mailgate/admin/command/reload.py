"""`mailgate reload`: have the running daemon read its configuration again."""

from __future__ import annotations

import os

import click

from mailgate.admin.control import Request, ask
from mailgate.admin.failure import Failed, Status
from mailgate.admin.output import print_text
from mailgate.admin.settings import control_path


@click.command()
@click.pass_obj
def reload(config_file: str) -> int:
    """Have the daemon read its configuration again, without losing a session or a message.

    Sessions that run keep their rules to the end. Status 0: the new
    configuration is in use; 78: it is refused, for the reasons printed, and the
    old one goes on; 69: the daemon cannot be reached; 77: no permission.
    """
    answer = ask(control_path(config_file), Request("reload", {"config": os.path.abspath(config_file)}))
    if answer.status not in (Status.OK, Status.CONFIG):
        raise Failed(answer.status, answer.text)
    print_text(answer.text)
    return answer.status
