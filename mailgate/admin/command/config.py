"""`mailgate config`: say what is wrong with the configuration, and what it comes to."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import click

from mailgate.admin.failure import Failed, Status
from mailgate.admin.output import print_text
from mailgate.config.effective import ANY_ID, all_keys
from mailgate.config.error import ConfigErrors
from mailgate.config.load import load
from mailgate.config.schema.settings import Settings
from mailgate.config.show import configured
from mailgate.config.show import effective as all_effective
from mailgate.config.write import WriteError
from mailgate.expr.scope import nearest
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

    Nothing is started or changed; `mailgate reload` puts a good one into use. Status 0: no errors; 1: warnings, with
    --strict; 78: errors, the file would be refused.
    """
    path = file or config_file
    # Everything loaded stays until the end: looking through it for garbage takes a fifth of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        loaded = load(path)
    except ConfigErrors as errors:
        print_text(errors.report())
        return Status.CONFIG
    finally:
        if collects:
            gc.enable()
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


@config.command()
@click.option("--effective", is_flag=True, help="Show every key that has a value, defaults included.")
@click.option("--origin", is_flag=True, help="Say behind each key where it comes from.")
@click.argument("key", required=False)
@click.pass_obj
def show(config_file: str, effective: bool, origin: bool, key: str | None) -> int:
    """Print the configuration as TOML, all of its files as one; KEY limits it to a key or table.

    Macros are shown as they are written, secrets as "[secret]". Status 1: KEY
    has no value; 78: the configuration has errors.
    """
    try:
        loaded = load(config_file)
    except ConfigErrors as errors:
        raise Failed(Status.CONFIG, str(errors)) from None
    shown = all_effective(loaded) if effective else configured(loaded)
    part = shown if key is None else shown.below(key)
    if part is None:
        raise _no_value(key or "")
    try:
        text = part.text(origin)
    except WriteError as wrong:
        raise Failed(Status.INTERNAL, f"the configuration cannot be shown: {wrong}") from None
    print_text(text)
    return Status.OK


def _no_value(key: str) -> Failed:
    names = key.split(".")
    known = [one.split(".") for one in all_keys(Settings)]
    if any(_leads_to(names, one) for one in known):
        return Failed(Status.NOTHING, f"{key} is not set")
    near = nearest(key, (".".join(one) for one in known))
    return Failed(Status.USAGE, f"there is no key {key}" + (f"; did you mean {near}?" if near else ""))


def _leads_to(names: list[str], key: list[str]) -> bool:
    """Whether the names are a key or the beginning of one; an id may be any name."""
    return len(names) <= len(key) and all(one in (name, ANY_ID) for name, one in zip(names, key, strict=False))


async def _never(work: Callable[[], T], /) -> T:
    """Directories that are only checked hash no passwords."""
    return work()
