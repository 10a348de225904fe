"""The shared test data of the SMTP grammar: command lines with the replies that are allowed, and ends of data.

They lie outside the repository: `MAILGATE_TESTDATA` names their folder. Where
they are missing the tests skip and say so.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("MAILGATE_TESTDATA", _REPOSITORY.parent / "shared" / "testdata")) / "smtp"

RELAXED = {
    # Spaces around FROM, around its colon and before the bracket: real senders write them.
    "mail.space-after-colon",
    "mail.space-before-colon",
    "mail.two-spaces",
    # An escape of xtext that is none is dropped; what is left must be a valid value.
    "param.dsn-envid-bad-xtext",
    "param.auth-bad-xtext",
    "rcpt.orcpt-bad-xtext",
}
"""Rows where mailgate takes on purpose what the standards let a server refuse."""


def cases(name: str) -> list[object]:
    """The cases of a file as parameters of a test."""
    path = FOLDER / name
    if not path.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(f"no test data: {path}; set MAILGATE_TESTDATA"))]
    return [pytest.param(case, id=case.get("id") or case["name"]) for case in json.loads(path.read_text("utf-8"))]


def line_of(case: dict, domain: str) -> bytes:
    """The octets of a command line, without CRLF; `rcpt@domain` is to be a mailbox, `bad@domain` none."""
    if case["line"] is None:
        return base64.b64decode(case["line_base64"])
    line = case["line"].replace("%RCPT%", f"rcpt@{domain}").replace("%DOMAIN%", domain)
    return line.replace("%BAD%", f"bad@{domain}").encode()


def is_allowed(case: dict, code: int | None) -> bool:
    """Whether a reply's code, None where the server closed without one, is among the allowed ones."""
    allowed = case["allowed"].split("|")
    if code is None:
        return "EOF" in allowed
    return str(code) in allowed or f"{code // 100}xx" in allowed
