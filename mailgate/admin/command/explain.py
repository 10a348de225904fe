"""`mailgate explain`: tell why it was answered so."""

from __future__ import annotations

import click

from mailgate.admin.failure import Failed, Status
from mailgate.admin.output import print_json, print_text
from mailgate.admin.settings import settings_of
from mailgate.decisions.explain import BadQuestion, Question, as_json, find, told

_LIMIT = 10
_LIMIT_OF_ID = 1000


@click.command()
@click.argument("id", required=False)
@click.option("-r", "--rcpt", metavar="TEXT", help="Entries with a recipient that contains TEXT.")
@click.option("-p", "--peer", metavar="IP", help="Entries of a client, or of a network such as 192.0.2.0/24.")
@click.option("--last", metavar="N", type=click.IntRange(1), help=f"The newest N entries (default {_LIMIT}).")
@click.option("--record", metavar="DIR", help="Read this record instead of the one the configuration names.")
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def explain(
    config_file: str,
    id: str | None,
    rcpt: str | None,
    peer: str | None,
    last: int | None,
    record: str | None,
    as_document: bool,
) -> int:
    """Tell what was decided, by which rule, where it is written and what it read.

    ID is the trace id at the end of a 4xx or 5xx reply, or a queue id. Works
    whether or not the daemon runs.
    """
    if id is None and rcpt is None and peer is None and last is None:
        raise Failed(Status.USAGE, "name a trace id or a queue id, --rcpt, --peer or --last")
    try:
        question = Question(id, rcpt, peer)
    except BadQuestion as bad:
        raise Failed(Status.USAGE, str(bad)) from None
    off = ""
    if record is None:
        decisions = settings_of(config_file).decisions
        record = decisions.path
        off = "" if decisions.enable else " (decisions.enable is false)"
    try:
        # An id is of one session or message: whoever asks for it wants all of it.
        entries = find(record, question, last or (_LIMIT if id is None else _LIMIT_OF_ID))
    except PermissionError as failure:
        raise Failed(Status.PERMISSION, f"no permission to read {failure.filename}") from None
    except OSError as failure:
        raise Failed(Status.NOT_NOW, f"{failure.filename}: {failure.strerror}") from None
    if as_document:
        print_json({"entries": [as_json(entry) for entry in entries]})
    elif entries:
        # The newest stands last, where the reader's eye is.
        print_text("\n".join(told(entry) for entry in reversed(entries)))
    else:
        raise Failed(Status.NOTHING, f"nothing of that is in {record}{off}")
    return Status.OK if entries else Status.NOTHING
