"""`mailgate test`: try a configuration on policy tests before it is live."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import click

from mailgate.admin.failure import Failed, Status
from mailgate.admin.output import print_json, print_text
from mailgate.admin.settings import settings_of
from mailgate.config.error import ConfigErrors
from mailgate.config.schema.server import HANDED_IN
from mailgate.config.schema.settings import Settings
from mailgate.lookup.accounts import BadDirectory
from mailgate.lookup.configured import directories, lists
from mailgate.lookup.lists import BadList
from mailgate.rehearsal.case import Case, read_file
from mailgate.rehearsal.ports import Configured
from mailgate.rehearsal.report import as_json, judged, told
from mailgate.rehearsal.run import rehearse

T = TypeVar("T")

FOLDER = "tests"
"""The directory beside the configuration that policy tests are in."""


@click.command()
@click.option("--config", "other_config", metavar="FILE", help="The configuration to try instead of the one in use.")
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document.")
@click.argument("files", nargs=-1, metavar="[FILES]...")
@click.pass_obj
def test(config_file: str, other_config: str | None, as_document: bool, files: Sequence[str]) -> int:
    """Play policy tests against a configuration, without sockets, queue or network.

    FILES are TOML files of tests (default: tests/*.toml beside the
    configuration). Status 0: all are ok; 1: some failed; 78: the configuration
    or a file of tests has errors.
    """
    path = other_config or config_file
    settings = settings_of(path)
    cases = _cases(settings, files or _beside(path))
    configured = Configured(lambda: directories(settings, _at_once), lambda: lists(settings))
    try:
        results = [judged(case, rehearse(settings, case, configured)) for case in cases]
    except (BadDirectory, BadList) as bad:
        raise Failed(Status.CONFIG, "\n".join(f"{path}: {problem}" for problem in bad.problems)) from None
    if as_document:
        print_json(as_json(results))
    else:
        print_text(told(results))
    return Status.OK if all(result.ok for result in results) else Status.NOTHING


def _beside(path: str) -> Sequence[str]:
    folder = os.path.join(os.path.dirname(path), FOLDER)
    found = sorted(glob.glob(os.path.join(glob.escape(folder), "*.toml")))
    if not found:
        raise Failed(Status.USAGE, f"there is no test: name a file, or put one into {folder}")
    return found


def _cases(settings: Settings, files: Sequence[str]) -> list[Case]:
    """The tests of all files; raises `Failed` with everything that is wrong with any of them."""
    cases: list[Case] = []
    problems: list[str] = []
    for file in files:
        try:
            with open(file, encoding="utf-8") as opened:
                found = read_file(file, opened.read())
        except OSError as failure:
            raise Failed(Status.USAGE, f"{file}: {(failure.strerror or 'cannot be read').lower()}") from None
        except UnicodeDecodeError:
            problems.append(f"{file}:1: not UTF-8 text; save the file as UTF-8")
        except ConfigErrors as errors:
            problems.append(str(errors))
        else:
            cases += found
            problems += [problem for case in found for problem in _undefined(settings, case)]
    if problems:
        raise Failed(Status.CONFIG, "\n".join(problems))
    return cases


def _undefined(settings: Settings, case: Case) -> list[str]:
    """What a test names and the configuration does not define."""
    listeners, known = settings.server.listener, settings.directory
    wrong = []
    if case.listener != HANDED_IN and case.listener not in listeners:
        known_ones = ", ".join((*listeners, HANDED_IN))
        wrong.append(f'listener: no listener "{case.listener}"; defined are {known_ones}')
    for name in case.given.answers.directory:
        if name not in known:
            wrong.append(f'answers.directory.{name}: no directory "{name}"; defined are {", ".join(known) or "none"}')
    return [f"{case.file}:{case.line}: {each}" for each in wrong]


async def _at_once(work: Callable[[], T], /) -> T:
    """No password of the configuration is ever looked at."""
    return work()
