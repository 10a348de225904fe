"""`mailgate config`: say what is wrong with the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from mailgate.admin.failure import Status
from mailgate.admin.output import print_text
from mailgate.config.error import ConfigErrors
from mailgate.config.load import load
from mailgate.lookup.accounts import BadDirectory
from mailgate.lookup.configured import directories, lists
from mailgate.lookup.lists import BadList

T = TypeVar("T")


@click.group()
def config() -> None:
    """The configuration."""


@config.command()
@click.option("--strict", is_flag=True, help="End with status 1 when there are warnings.")
@click.argument("file", required=False)
@click.pass_obj
def check(config_file: str, strict: bool, file: str | None) -> int:
    """Report everything that is wrong with FILE (default: the one in use).

    Nothing is started or changed. Status 0: no errors; 1: warnings, with
    --strict; 78: errors, the file would be refused.
    """
    path = file or config_file
    try:
        loaded = load(path)
    except ConfigErrors as errors:
        print_text(errors.report())
        return Status.CONFIG
    for warning in loaded.warnings:
        print_text(f"{warning} (warning)\n")
    problems: list[str] = []
    try:
        directories(loaded.settings, _never)
    except BadDirectory as bad:
        problems.extend(bad.problems)
    try:
        lists(loaded.settings)
    except BadList as bad:
        problems.extend(bad.problems)
    for problem in problems:
        print_text(f"{path}: {problem}\n")
    if problems:
        return Status.CONFIG
    count = len(loaded.warnings)
    print_text(f"{path}: no errors, {count} warning{'' if count == 1 else 's'}\n")
    return Status.NOTHING if strict and loaded.warnings else Status.OK


async def _never(work: Callable[[], T], /) -> T:
    """Directories that are only checked hash no passwords."""
    return work()
