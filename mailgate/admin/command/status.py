"""`mailgate status`: what the running daemon is doing."""

from __future__ import annotations

from collections.abc import Mapping

import click

from mailgate.admin.control import Request, ask
from mailgate.admin.failure import Failed, Status
from mailgate.admin.output import print_json, print_table, print_text
from mailgate.admin.settings import control_path
from mailgate.decisions.explain import printable


@click.command()
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def status(config_file: str, as_document: bool) -> int:
    """Tell what the daemon is doing: its configuration, listeners and attempts.

    Status 69: it cannot be reached; 77: no permission.
    """
    answer = ask(control_path(config_file), Request("status"))
    if answer.status is not Status.OK:
        raise Failed(answer.status, answer.text)
    if as_document:
        print_json(answer.result)
    else:
        _print(answer.result)
    return Status.OK


def _print(result: Mapping[str, object]) -> None:
    for name, value in (
        ("Version", result.get("version")),
        ("Process", result.get("pid")),
        ("Configuration", result.get("config")),
        ("Generation", f"{result.get('generation')}, since {result.get('since')}"),
        ("Attempts", result.get("attempts")),
    ):
        print_text(f"{name:15}{printable(str(value))}\n")
    listeners = result.get("listeners")
    rows = [each for each in listeners if isinstance(each, dict)] if isinstance(listeners, list) else []
    if rows:
        print_text("\n")
        print_table(
            ("Listener", "Protocol", "Connections", "Addresses"),
            [
                (
                    (str(row.get("id")),),
                    (str(row.get("protocol")),),
                    (str(row.get("connections")),),
                    [str(address) for address in row.get("addresses", ())] or ["(closed)"],
                )
                for row in rows
            ],
        )
