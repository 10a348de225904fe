"""`mailgate queue pause` and `resume`: no attempt begins meanwhile, mail is accepted as ever."""

from __future__ import annotations

import os

import click

from mailgate.admin.control import Request, ask
from mailgate.admin.failure import Failed, Status
from mailgate.admin.output import print_json, print_text
from mailgate.admin.settings import control_path


@click.command()
@click.option("--cluster", is_flag=True, help="For every node, and until queue resume --cluster; otherwise this node.")
@click.option("--reason", metavar="TEXT", default="", help="Kept with the pause, and in the log.")
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def pause(config_file: str, cluster: bool, reason: str, as_document: bool) -> int:
    """Begin no delivery attempt any more; those that run go on to their end.

    New mail is accepted, and what expires is still told to its sender. A
    restart ends the pause of this node, not that of the cluster.
    """
    return _order(config_file, "queue.pause", cluster, reason, as_document)


@click.command()
@click.option("--cluster", is_flag=True, help="Take the pause of the cluster away; otherwise that of this node.")
@click.option("--reason", metavar="TEXT", default="", help="Kept in the log.")
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def resume(config_file: str, cluster: bool, reason: str, as_document: bool) -> int:
    """Take a pause away; what is due is tried at once."""
    return _order(config_file, "queue.resume", cluster, reason, as_document)


def _order(config_file: str, command: str, cluster: bool, reason: str, as_document: bool) -> int:
    given = {"cluster": cluster, "reason": reason, "config": os.path.abspath(config_file)}
    answer = ask(control_path(config_file), Request(command, given))
    if answer.status is not Status.OK:
        raise Failed(answer.status, answer.text)
    was, runs = answer.result.get("previous") is True, answer.result.get("running") is True
    if as_document:
        print_json({"previous": was, "running": runs})
        return Status.OK
    paused = answer.result.get("paused")
    left = [str(each) for each in paused] if isinstance(paused, list) else []
    print_text(f"was {'running' if was else 'paused'}, is {'running' if runs else 'paused'}")
    print_text(f" ({' and '.join(left)})\n" if left else "\n")
    return Status.OK
