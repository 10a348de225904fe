"""Crash points: labelled steps at which a test has the process end as if the power had failed.

`MAILGATE_CRASH=D4:3` ends it at the third passing of point D4, `MAILGATE_CRASH=D4`
at the first: by SIGKILL, so that nothing is flushed, closed or told. The variable
is read once, when this module is imported; without it `ARMED` is False for good,
and a step on the way of a message costs the look at one constant:

    if ARMED:
        passed("D4")

The labels are those of the table in `doc/durability.md`, which says what each
leaves behind and what happens after the next start.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from typing import Final

POINTS: Final[Mapping[str, str]] = {
    "A0": "some octets of a message have arrived",
    "A1": "a spool file is synced, its directory is not",
    "A2": "the directory of a spool file is synced, its transaction has not begun",
    "A3": "the commit of new mail is under way",
    "A4": "new mail is committed, the 250 is not sent",
    "A5": "the 250 is sent",
    "A6": "one change of a batch failed and the others are committed",
    "T1": "a file is in the maildrop under its final name",
    "T2": "a message from the maildrop is committed, its file is still there",
    "S1": "units are chosen, their claim is not committed",
    "S2": "a claim is committed, its attempt has not begun",
    "S3": "a lease was renewed",
    "D1": "the connection to a next hop is open",
    "D2": "a next hop has taken MAIL and RCPT",
    "D3": "a part of the text is sent",
    "D4": "the TRANSMITTING mark is committed, the final octets are not sent",
    "D5": "the final octets are sent, the reply is not read",
    "D6": "a final reply is read, the result is not committed",
    "D7": "the results are committed, QUIT is not sent",
    "D8": "some of several LMTP replies are read",
    "D9": "a group is committed and others of the attempt are still to be delivered",
    "L0": "a Maildir copy is in tmp/",
    "L1": "a Maildir copy is in new/, its result is not committed",
    "N1": "a notification is written, the end of the attempt is not committed",
    "N2": "the end of an attempt is committed with its notification",
    "N3": "a notice of delay is committed, the attempt goes on",
    "F1": "the last recipient is final, the end of the attempt is not committed",
    "F2": "a message is removed, its spool file is still there",
    "F3": "an old spool file without a message is found, not yet removed",
    "E1": "recipients have expired, the sweeper's transaction is not committed",
    "E2": "the sweeper's transaction is committed, its notification is not yet sent",
    "Q1": "a quota is charged, its message is not committed",
    "M1": "an operator's cancel is committed while an attempt runs",
    "M2": "an operator's new due time is committed while an attempt runs",
    "X1": "SIGTERM has arrived, attempts are being finished",
    "X6": "new mail is refused because the disk is too full",
    "X7": "the content of a queued message is missing or not what it was",
}
"""Each point and what has just happened there."""

VARIABLE: Final = "MAILGATE_CRASH"


def setting(text: str) -> tuple[str, int]:
    """The label and the passing, counted from 1, that a setting asks for. Raises `ValueError`."""
    label, colon, number = text.partition(":")
    if label not in POINTS:
        raise ValueError(f'{VARIABLE} = "{text}": "{label}" is no crash point; there are {", ".join(POINTS)}')
    if colon and not (number.isascii() and number.isdecimal() and int(number)):
        raise ValueError(f'{VARIABLE} = "{text}": write a passing from 1 after the colon, as in {label}:3')
    return label, int(number) if colon else 1


class Countdown:
    """Counts the passings of one point. Any thread may pass."""

    def __init__(self, label: str, passings: int) -> None:
        self._label = label
        self._left = passings
        self._lock = threading.Lock()

    def is_last(self, label: str) -> bool:
        """Count a passing; True for the one that was waited for."""
        if label != self._label:
            return False
        with self._lock:
            self._left -= 1
            return self._left == 0


_text = os.environ.get(VARIABLE)
_countdown = Countdown(*setting(_text)) if _text else None

ARMED: Final[bool] = _countdown is not None
"""Whether this process is to end at a point; decided at import."""


def passed(label: str) -> None:
    """Say that a point was passed; does not return from the one the process is to end at."""
    if _countdown is not None and _countdown.is_last(label):
        _end()


def passing(label: str) -> None:
    """Say that a point is about to be passed: the end comes at some moment of the blocking call that follows."""
    if _countdown is not None and _countdown.is_last(label):
        threading.Thread(target=_end, daemon=True).start()


def _end() -> None:
    # Not an exit: no other thread may finish what it is about.
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(128 + signal.SIGKILL)
