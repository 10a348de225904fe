"""Directories and lists as the configuration has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from mailgate.config.schema.directory import PrincipalSettings
from mailgate.config.schema.settings import Settings
from mailgate.config.schema.storage import MemoryStoreSettings
from mailgate.lookup.accounts import BadDirectory, MemoryDirectory, Principal, RunBlocking
from mailgate.lookup.lists import BadList, Format, Lists, NamedList, from_lookup, from_store, read_text
from mailgate.lookup.outside import Directories


def directories(settings: Settings, run_blocking: RunBlocking) -> Directories:
    """Every `directory.<id>`. Raises `BadDirectory` with what is wrong in all of them."""
    made: list[MemoryDirectory] = []
    problems: list[str] = []
    for id, directory in settings.directory.items():
        try:
            made.append(MemoryDirectory(id, map(_principal, directory.principals), run_blocking=run_blocking))
        except BadDirectory as bad:
            problems.extend(bad.problems)
    if problems:
        raise BadDirectory(tuple(problems))
    return Directories(made, settings.storage.directory or "")


def lists(settings: Settings, read: Callable[[str], str] = read_text) -> Lists:
    """Every list of `[lookup]` and `[store]`; files are read now. Raises `BadList` with what is wrong in all."""
    made: list[NamedList] = []
    problems: list[str] = []
    for named in chain(
        (from_lookup(id, {**each.entries}) for id, each in settings.lookup.items()), _stores(settings, read, problems)
    ):
        made.append(named)
    if problems:
        raise BadList(tuple(problems))
    return Lists(made)


def _stores(settings: Settings, read: Callable[[str], str], problems: list[str]) -> Iterator[NamedList]:
    for id, store in settings.store.items():
        if isinstance(store, MemoryStoreSettings):
            try:
                yield from_store(
                    id,
                    Format(store.format),
                    store.values,
                    comment=store.comment,
                    separator=store.separator,
                    read=read,
                )
            except BadList as bad:
                problems.extend(bad.problems)


def _principal(settings: PrincipalSettings) -> Principal:
    return Principal(
        settings.name,
        settings.secret,
        settings.email,
        settings.email_list,
        may_log_in=settings.class_ != "group",
    )
