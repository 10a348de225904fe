"""The path template of a local route: checked when it is read, filled in when mail is delivered."""

from __future__ import annotations

import re
from typing import NamedTuple

from mailgate.config.kind import PATH, Kind, Quoted, Unfit

PLACEHOLDERS = ("user", "detail", "local", "domain", "address", "hash")
_PLACEHOLDER = re.compile(r"%\{([^{}]*)\}")


class MaildirTemplate(NamedTuple):
    """A Maildir path with placeholders `%{name}`, all of them known."""

    text: str

    @property
    def fixed(self) -> str:
        """The directory before the first placeholder: it must exist, mailgate never makes it."""
        return self.text[: self.text.index("%{")].rpartition("/")[0] or "/"


def _maildir(value: Quoted) -> MaildirTemplate:
    text = PATH.read(value)
    if not text.startswith("/"):
        raise Unfit(f"{value.text} is no absolute path", "start it with /")
    for name in _PLACEHOLDER.findall(text):
        if name not in PLACEHOLDERS:
            known = ", ".join(f"%{{{known}}}" for known in PLACEHOLDERS)
            raise Unfit(f"%{{{name}}} is no placeholder", f"known are {known}")
    rest = _PLACEHOLDER.sub("", text)
    if "{" in rest or "}" in rest:
        raise Unfit(f"{value.text} has a placeholder that does not end", "write %{user}")
    # A placeholder with a slip in it would become the name of a folder that everybody shares.
    if stray := next((c for c in rest if c in "%{}"), None):
        raise Unfit(f"{value.text} has a {stray} that is part of no placeholder", "write %{user}")
    if rest == text:
        raise Unfit(f"{value.text} has no placeholder", "write for example /srv/mail/%{domain}/%{user}/Maildir")
    if ".." in text.split("/"):
        raise Unfit(f"{value.text} leaves its own directory", "write the path without ..")
    return MaildirTemplate(text)


MAILDIR = Kind("path template", _maildir, PATH.json)
