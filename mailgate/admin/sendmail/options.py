"""The command line of `sendmail`, as programs have used it for decades.

One letter and what belongs to it, attached or as the next argument. What asks
for something mailgate has no use for is accepted; what asks for something it
does not do is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

from mailgate.queue.drop import notify_words

_WITH_VALUE = frozenset("ABCDFLNORVXbdefhoprM")
"""Options that a value belongs to; of `-d` and `-q` only what is attached."""
_IGNORED = frozenset("ABDGLMOUXdehmnpvcE")
_ENVID = re.compile(r"[!-~]{1,100}")


class Usage(Exception):
    """A command line that means nothing here."""


class Mode(Enum):
    """What the program is to do."""

    DELIVER = "m"
    SMTP = "s"
    LIST = "p"
    ALIASES = "i"
    RETRY = "q"


class Options:
    """What was asked for."""

    def __init__(self) -> None:
        self.mode = Mode.DELIVER
        self.recipients: list[str] = []
        """As written; each may be a list."""
        self.from_header = False
        """-t: recipients stand in the header."""
        self.dot_ends = True
        self.sender: str | None = None
        """As written; None where none was given."""
        self.full_name: str | None = None
        self.notify = ""
        self.ret = ""
        self.envid = ""
        self.config: str | None = None
        self.retry: list[str] = []
        """What -q selects, as arguments of `mailgate queue retry`."""


def read(program: str, arguments: Sequence[str]) -> Options:
    """Read a command line; `program` is the name it was called by. Raises `Usage`."""
    options = Options()
    if program == "mailq":
        options.mode = Mode.LIST
    elif program == "newaliases":
        options.mode = Mode.ALIASES
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            options.recipients += rest
            break
        if not argument.startswith("-") or argument == "-":
            options.recipients.append(argument)
            continue
        _letters(options, argument[1:], rest)
    return options


def _letters(options: Options, letters: str, rest: list[str]) -> None:
    """Read one argument: letters without values may stand together."""
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter == "q":
            _retry(options, letters)
            return
        if letter in _WITH_VALUE:
            if not letters and letter != "d":
                if not rest:
                    raise Usage(f"option -{letter} needs a value")
                letters = rest.pop(0)
            _with_value(options, letter, letters)
            return
        _alone(options, letter)


def _alone(options: Options, letter: str) -> None:
    if letter == "i":
        options.dot_ends = False
    elif letter == "t":
        options.from_header = True
    elif letter == "I":
        options.mode = Mode.ALIASES
    elif letter not in _IGNORED:
        raise Usage(f"unknown option -{letter}")


def _with_value(options: Options, letter: str, value: str) -> None:
    if letter == "b":
        _mode(options, value)
    elif letter in "fr":
        options.sender = value
    elif letter == "F":
        options.full_name = value
    elif letter == "C":
        options.config = value
    elif letter == "o":
        if value == "i":
            options.dot_ends = False
    elif letter == "N":
        try:
            options.notify = notify_words(value)
        except ValueError as wrong:
            raise Usage(f"-N {value}: {wrong}") from None
    elif letter == "R":
        options.ret = value.upper()
        if options.ret not in ("FULL", "HDRS"):
            raise Usage(f"-R {value}: write full or hdrs")
    elif letter == "V":
        if not _ENVID.fullmatch(value):
            raise Usage("-V takes up to 100 printable ASCII characters without spaces")
        options.envid = value


def _mode(options: Options, value: str) -> None:
    if value in ("d", "D"):
        raise Usage("the daemon is `twistd mailgate`")
    if value == Mode.RETRY.value:
        raise Usage("the queue is tried with -q")
    try:
        options.mode = Mode(value)
    except ValueError:
        raise Usage(f"mailgate has no mode -b{value}") from None


def _retry(options: Options, value: str) -> None:
    """-q: all; -qI, -qR and -qS: a part of a queue id, a recipient, a sender. An interval means once, now."""
    options.mode = Mode.RETRY
    kind, text = value[:1], value[1:]
    if kind in ("I", "R", "S") and text:
        options.retry = {"I": ["--", text], "R": ["--rcpt", text], "S": ["--sender", text]}[kind]
    else:
        options.retry = ["--all"]
