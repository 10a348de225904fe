"""The few keys that programs of any user need: host name, file of the queue, maildrop.

`sendmail` and `mailq` must start at once, work for users who may not read the
configuration, and not fail because somebody is editing it. So nothing is
checked here; the schema's defaults hold for what is not given. Where a file is
no TOML as a whole its sections are read one by one.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from typing import NamedTuple

from mailgate.config.paths import DEFAULT_QUEUE, MAILDROP, system_hostname

_MACRO = re.compile(r"%\{(env|file|cfg):([^{}\n]*)\}%")
_SECTION = re.compile(r"(?m)^(?=\[)")
# A section that nobody needs here may be as broken as it likes.
_NEEDED = re.compile(r"(?m)^\[*\s*[\"']?(?:queue|storage|store)\b")
_DEEPEST = 8


class Illegible(Exception):
    """The configuration does not say where the queue is: the text says why."""


class Outline(NamedTuple):
    """Where the daemon of a configuration keeps what others look for."""

    hostname: str
    queue_file: str
    maildrop: str


def outline(path: str, environ: Mapping[str, str] | None = None) -> Outline:
    """Read the keys of a configuration. Raises `Illegible`.

    A main file that is missing, or that may not be read, is one without keys.
    """
    found = _Keys(_trees(path), os.environ if environ is None else environ)
    store = found.text("storage.data")
    queue = (found.text(f"store.{store}.path") if store else None) or DEFAULT_QUEUE
    return Outline(
        (found.text("server.hostname") or system_hostname()).rstrip("."),
        queue,
        found.text("queue.maildrop") or os.path.join(os.path.dirname(queue), MAILDROP),
    )


def _trees(path: str) -> list[dict[str, object]]:
    """The tables of the main file and of those in `conf.d` beside it."""
    folder = os.path.join(os.path.dirname(path), "conf.d")
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".toml") and name[0] != ".")
    except OSError:
        names = []
    trees: list[dict[str, object]] = []
    for file in (path, *(os.path.join(folder, name) for name in names)):
        try:
            with open(file, encoding="utf-8", errors="replace", newline="") as opened:
                text = opened.read().removeprefix("\ufeff").replace("\r\n", "\n")
        except OSError:
            continue
        try:
            trees.append(tomllib.loads(text))
        except (ValueError, RecursionError):
            trees += _sections(file, text)
    return trees


def _sections(file: str, text: str) -> list[dict[str, object]]:
    """The sections of a broken file that are whole. Raises `Illegible` where one that matters is not."""
    trees: list[dict[str, object]] = []
    for section in _SECTION.split(text):
        try:
            trees.append(tomllib.loads(section))
        except (ValueError, RecursionError) as wrong:
            if _NEEDED.search(section):
                raise Illegible(f"{file}: {wrong}; mailgate config check tells all that is wrong") from None
    return trees


class _Keys:
    def __init__(self, trees: list[dict[str, object]], environ: Mapping[str, str]) -> None:
        self._trees = trees
        self._environ = environ

    def text(self, key: str, depth: int = 0) -> str | None:
        """The text of a key with its macros expanded; None where it is not given. Raises `Illegible`."""
        for tree in self._trees:
            value: object = tree
            for name in key.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, str):
                return _MACRO.sub(lambda found: self._inserted(key, found[1], found[2], depth), value)
        return None

    def _inserted(self, key: str, kind: str, argument: str, depth: int) -> str:
        inserted: str | None = None
        if kind == "env":
            inserted = self._environ.get(argument)
        elif kind == "file":
            try:
                with open(argument[2:] if argument.startswith("//") else argument, encoding="utf-8") as file:
                    inserted = file.read()
            except (OSError, ValueError):
                inserted = None
        elif depth < _DEEPEST:
            inserted = self.text(argument.strip(), depth + 1)
            if inserted is None and argument.strip() == "server.hostname":
                inserted = system_hostname()
        if inserted is None:
            raise Illegible(f"{key} needs %{{{kind}:{argument}}}%, which cannot be had here")
        return inserted
