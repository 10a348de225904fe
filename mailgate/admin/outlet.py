"""Standard output, where nobody takes it any more, or never did."""

from __future__ import annotations

import os
import sys


def have_output() -> None:
    """Where standard output was closed before the program began, write to nowhere."""
    if sys.__stdout__ is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), "w", encoding="utf-8")


def give_up_output() -> None:
    """What could not be written goes nowhere: the interpreter must not try again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
