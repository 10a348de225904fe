"""`mailgate queue check`: is the queue what it has to be, and what of it can be put right."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

import click

from mailgate.admin.control import Request, ask
from mailgate.admin.failure import Failed, Status
from mailgate.admin.output import print_json, print_text
from mailgate.admin.settings import control_path, queue_of, settings_of
from mailgate.config.schema.settings import Settings
from mailgate.decisions.explain import printable
from mailgate.queue import place
from mailgate.queue.check import Problem, counts, problems
from mailgate.queue.connection import connect
from mailgate.queue.lease import wall_ms
from mailgate.queue.place import StoreInUse
from mailgate.queue.recover import GARBAGE_AGE
from mailgate.queue.repair import repair_ledger, repair_message

_IDS_AT_ONCE = 2000
_GARBAGE_AGE_MS = int(GARBAGE_AGE.total_seconds() * 1000)


@click.command()
@click.option("--repair", is_flag=True, help="Put right what can be without losing mail, then look again.")
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def check(config_file: str, repair: bool, as_document: bool) -> int:
    """Verify the invariants of the queue: tables, quotas, contents, spool files.

    Every content is read. Status 1: there are problems; with --repair: some are
    left. Repairs go through the daemon, or, when it is down, keep it from
    starting meanwhile.
    """
    settings = settings_of(config_file)
    found = _look(settings)
    repaired: list[Problem] = []
    if repair and found:
        _repair(config_file, settings, _Work.of(found))
        left = _look(settings)
        repaired = [problem for problem in found if problem not in left]
        found = left
    with queue_of(settings) as db:
        rows = counts(db, settings.queue.spool)
    if as_document:
        document: dict[str, object] = {"problems": [_facts(problem) for problem in found], "counts": rows}
        print_json({**document, "repaired": [_facts(problem) for problem in repaired]} if repair else document)
    else:
        for problem in repaired:
            _print("repaired ", problem)
        for problem in found:
            _print("", problem)
        print_text(", ".join(f"{count} {name}" for name, count in rows.items()) + "\n")
        print_text(f"{len(found)} problems\n" if len(found) != 1 else "1 problem\n")
    return Status.NOTHING if found else Status.OK


class _Work(NamedTuple):
    """What a repair is to look at."""

    ids: Sequence[int]
    ledger: bool
    files: Sequence[int]

    @classmethod
    def of(cls, found: Sequence[Problem]) -> _Work:
        ids = sorted({problem.message_id for problem in found if problem.message_id is not None})
        kinds = {problem.invariant for problem in found}
        files = [int(problem.id, 16) for problem in found if problem.invariant == "QI8"]
        return cls(ids, "QI5" in kinds, files)


def _look(settings: Settings) -> list[Problem]:
    with queue_of(settings) as db:
        return list(problems(db, settings.queue.spool, wall_ms(), _GARBAGE_AGE_MS))


def _repair(config_file: str, settings: Settings, work: _Work) -> None:
    """Through the daemon; where there is none, in its place."""
    try:
        held = place.lock(settings.queue_file)
    except StoreInUse:
        _ask_daemon(config_file, work)
        return
    except PermissionError as failure:
        raise Failed(Status.PERMISSION, f"no permission to write {failure.filename}") from None
    except OSError as failure:
        raise Failed(Status.NOT_NOW, f"{failure.filename}: {failure.strerror}") from None
    try:
        with closing(connect(settings.queue_file, write=True)) as db:
            _repair_here(db, settings, work)
    except sqlite3.Error as failure:
        raise Failed(Status.NOT_NOW, f"the queue {settings.queue_file} cannot be written: {failure}") from None
    finally:
        place.unlock(held)


def _ask_daemon(config_file: str, work: _Work) -> None:
    path = control_path(config_file)
    for start in range(0, max(len(work.ids), 1), _IDS_AT_ONCE):
        is_first = start == 0
        given = {
            "ids": work.ids[start : start + _IDS_AT_ONCE],
            "ledger": work.ledger and is_first,
            "files": bool(work.files) and is_first,
            "config": os.path.abspath(config_file),
        }
        answer = ask(path, Request("queue.repair", given))
        if answer.status is not Status.OK:
            raise Failed(answer.status, answer.text)


def _repair_here(db: sqlite3.Connection, settings: Settings, work: _Work) -> None:
    for id_ in work.ids:
        db.execute("BEGIN IMMEDIATE")
        repair_message(db, id_)
        db.execute("COMMIT")
    if work.ledger:
        db.execute("BEGIN IMMEDIATE")
        repair_ledger(db)
        db.execute("COMMIT")
    for id_ in work.files:
        # No daemon can have taken it meanwhile: this process has the store.
        _remove(os.path.join(settings.queue.spool, place.spool_name(id_)))


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        # Another repair was faster: it was over before this process had the store.
        return
    except OSError as failure:
        status = Status.PERMISSION if isinstance(failure, PermissionError) else Status.NOT_NOW
        raise Failed(status, f"{path} cannot be removed: {failure.strerror}") from None


def _facts(problem: Problem) -> dict[str, object]:
    return {"invariant": problem.invariant, "id": problem.id, "detail": problem.detail}


def _print(head: str, problem: Problem) -> None:
    print_text(printable(f"{head}{problem.invariant} {problem.id}: {problem.detail}") + "\n")
