"""Command lines to values: verbs, arguments, paths (RFC 5321 4.1.1, 4.1.2).

`parse` never raises: what is wrong with a line comes back as `Rejected` with
its reply. Paths follow RFC 5321 with the leniencies real senders need
(spaces around `FROM:`, UTF-8 everywhere, underscores in domains); control
characters are never let through. The case of everything is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv6Address

from mailgate.mail import replies
from mailgate.mail.envelope import NO_MAIL_PARAMETERS, NO_RCPT_PARAMETERS, Body, MailParameters
from mailgate.mail.path import NULL_PATH, Path
from mailgate.wire.smtp.command import (
    Auth,
    Bdat,
    Data,
    Ehlo,
    Event,
    Expn,
    Help,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Rejected,
    Rset,
    StartTls,
    Vrfy,
)
from mailgate.wire.smtp.error import RemoteError
from mailgate.wire.smtp.parameter import SIZE_DIGITS, mail_parameters, rcpt_parameters

# RFC 5321 4.5.3.1.2 and 4.5.3.1.3.
DOMAIN_OCTETS = 255
PATH_OCTETS = 256
# RFC 1035 2.3.4.
LABEL_OCTETS = 63

POSTMASTER = Path("postmaster", "")

# RFC 6531 3.3 adds everything above ASCII; the C1 controls and the line and
# paragraph separators are left out, they would break log lines.
# No group repeats possessively: Python 3.11.2, which Debian 12 has, mistakes such repeats. Nothing here can be
# read in two ways, so giving back costs one step for each group.
_U = "\u00a0-\u2027\u202a-\U0010ffff"
_ATOM = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{_U}-]++"
_DOT_STRING = rf"{_ATOM}(?:\.{_ATOM})*"
_WORD = rf"[A-Za-z0-9_{_U}]++"
_LABEL = rf"{_WORD}(?:-++{_WORD})*"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_LITERAL = r"\[[^\[\]\\]*+\]"

# What nearly every sender sends, in one match. Only ASCII here: no `_U`.
_PLAIN_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++"
_PLAIN_LABEL = r"[A-Za-z0-9_]++(?:-++[A-Za-z0-9_]++)*"
_PLAIN_MAILBOX = rf"({_PLAIN_ATOM}(?:\.{_PLAIN_ATOM})*)@({_PLAIN_LABEL}(?:\.{_PLAIN_LABEL})*)"
_PLAIN_MAIL = re.compile(
    rf"(?ai:MAIL FROM):<(?:{_PLAIN_MAILBOX})?>"
    rf"(?:(?ai: SIZE)=([0-9]{{1,{SIZE_DIGITS}}}))?(?:(?ai: BODY)=((?ai:7BIT|8BITMIME)))?"
)
_PLAIN_RCPT = re.compile(rf"(?ai:RCPT TO):<{_PLAIN_MAILBOX}>")

_FROM = re.compile(r" *(?ai:FROM) *: *")
_TO = re.compile(r" *(?ai:TO) *: *")
_BRACKETED = re.compile(r'<((?:[^">]++|"(?:[^"\\]++|\\.)*")*)>')
_ROUTE = re.compile(rf"@(?:{_DOMAIN}|{_LITERAL})(?:,@(?:{_DOMAIN}|{_LITERAL}))*:")
# RFC 5321 4.1.2: qtextSMTP and quoted-pairSMTP.
_QUOTED = rf'"((?:[ !#-\[\]-~{_U}]++|\\[ -~])+)"'
_MAILBOX = re.compile(rf"(?:({_DOT_STRING})|{_QUOTED})@(?:({_DOMAIN})|({_LITERAL}))")
_QUOTED_PAIR = re.compile(r"\\(.)")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
_CHUNK = re.compile(rf" *([0-9]{{1,{SIZE_DIGITS}}})(?: +((?ai:LAST)))? *")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_BODIES = {body.value: body for body in Body}

_UNKNOWN = Rejected(replies.UNKNOWN_COMMAND, unknown_verb=True)
_RSET, _NOOP, _HELP, _DATA, _QUIT, _STARTTLS = Rset(), Noop(), Help(), Data(), Quit(), StartTls()


def parse(line: bytes) -> Event:
    """Understand one command line, given without its CRLF."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        verb = line.partition(b" ")[0].upper().decode("ascii", "replace")
        return _SYNTAX.get(verb, _UNKNOWN)
    # Some letters outside ASCII turn into ASCII ones in upper case.
    verb, _, argument = text.partition(" ")
    read = _READERS.get(verb.upper()) if verb.isascii() else None
    if read is None:
        return _UNKNOWN
    try:
        return read(text, argument)
    except RemoteError as error:
        return Rejected(error.reply, verb=verb.upper())


def _ehlo(text: str, argument: str) -> Event:
    """A name is one word of at most 255 octets; nothing more is asked of it here."""
    name = argument.strip(" ")
    if " " in name or len(name.encode("utf-8")) > DOMAIN_OCTETS or _UNPRINTABLE.search(name):
        raise RemoteError(replies.SYNTAX)
    return Ehlo(text[:4].upper(), name)


def _auth(text: str, argument: str) -> Event:
    words = argument.split()
    if len(words) not in (1, 2) or _UNPRINTABLE.search(argument):
        raise RemoteError(replies.SYNTAX)
    mechanism = words[0].upper() if words[0].isascii() else words[0]
    return Auth(mechanism, words[1].encode("utf-8") if len(words) == 2 else None)


def _mail(text: str, argument: str) -> Event:
    plain = _PLAIN_MAIL.fullmatch(text)
    if plain is not None and len(text) <= PATH_OCTETS:
        local, domain, size, body = plain.groups()
        parameters = NO_MAIL_PARAMETERS
        if size is not None or body is not None:
            parameters = MailParameters(
                size_octets=int(size) if size is not None else None,
                body=_BODIES[body.lower()] if body is not None else None,
            )
        if local is None:
            return Mail(NULL_PATH, parameters)
        if len(domain) <= LABEL_OCTETS:
            return Mail(Path(local, domain), parameters)
    content, rest = _brackets(_FROM, argument)
    path = NULL_PATH if content.lower() == "postmaster" else _path(content)
    if path is None:
        raise RemoteError(replies.BAD_REVERSE_PATH)
    return Mail(path, mail_parameters(rest) if rest else NO_MAIL_PARAMETERS)


def _rcpt(text: str, argument: str) -> Event:
    plain = _PLAIN_RCPT.fullmatch(text)
    if plain is not None and len(text) <= PATH_OCTETS:
        local, domain = plain.groups()
        if len(domain) <= LABEL_OCTETS:
            return Rcpt(Path(local, domain))
    content, rest = _brackets(_TO, argument)
    # RFC 5321 4.1.1.3: "<Postmaster>" needs no domain.
    path = POSTMASTER if content.lower() == "postmaster" else _path(content)
    if path is None or path.is_null:
        raise RemoteError(replies.BAD_FORWARD_PATH)
    return Rcpt(path, rcpt_parameters(rest) if rest else NO_RCPT_PARAMETERS)


def _brackets(keyword: re.Pattern[str], argument: str) -> tuple[str, str]:
    """What stands between the angle brackets, leading spaces skipped, and what follows them."""
    start = keyword.match(argument)
    brackets = _BRACKETED.match(argument, start.end()) if start is not None else None
    if brackets is None:
        raise RemoteError(replies.SYNTAX)
    rest = argument[brackets.end() :]
    if rest and rest[0] != " ":
        raise RemoteError(replies.SYNTAX)
    return brackets[1].lstrip(" "), rest


def _path(content: str) -> Path | None:
    """A path without its brackets and without its source route; None when it is not valid."""
    if not content:
        return NULL_PATH
    if content[0] == "@":
        # RFC 5321 4.1.2: source routes are accepted and ignored.
        route = _ROUTE.match(content)
        if route is None:
            return None
        content = content[route.end() :]
    mailbox = _MAILBOX.fullmatch(content)
    if mailbox is None or len(content.encode("utf-8")) > PATH_OCTETS:
        return None
    local, quoted, domain, literal = mailbox.groups()
    if local is None:
        local = _QUOTED_PAIR.sub(r"\1", quoted)
    if domain is None:
        return Path(local, literal) if _is_address(literal[1:-1]) else None
    if any(len(label) > LABEL_OCTETS for label in domain.split(".")):
        return None
    return Path(local, domain)


def _is_address(text: str) -> bool:
    """Whether a literal holds an IPv4 or a tagged IPv6 address (RFC 5321 4.1.3); no other tag is registered."""
    if text[:5].lower() != "ipv6:":
        return _IPV4.fullmatch(text) is not None
    try:
        return IPv6Address(text[5:]).scope_id is None
    except ValueError:
        return False


def _bdat(text: str, argument: str) -> Event:
    chunk = _CHUNK.fullmatch(argument)
    if chunk is None:
        raise RemoteError(replies.SYNTAX)
    return Bdat(int(chunk[1]), chunk[2] is not None)


def _data(text: str, argument: str) -> Event:
    return _alone(_DATA, argument)


def _rset(text: str, argument: str) -> Event:
    return _alone(_RSET, argument)


def _starttls(text: str, argument: str) -> Event:
    return _alone(_STARTTLS, argument)


def _quit(text: str, argument: str) -> Event:
    return _alone(_QUIT, argument)


def _alone(event: Event, argument: str) -> Event:
    """Refuse an argument where the command takes none (RFC 5321 4.1.1)."""
    if argument and not argument.isspace():
        raise RemoteError(replies.SYNTAX)
    return event


def _noop(text: str, argument: str) -> Event:
    return _NOOP


def _help(text: str, argument: str) -> Event:
    return _HELP


def _vrfy(text: str, argument: str) -> Event:
    return Vrfy(_subject(argument))


def _expn(text: str, argument: str) -> Event:
    return Expn(_subject(argument))


def _subject(argument: str) -> str:
    """What VRFY or EXPN asks about; RFC 6531 3.7.4.2 lets SMTPUTF8 follow it."""
    subject = argument.strip(" ")
    words = subject.rsplit(" ", 1)
    if len(words) == 2 and words[1].isascii() and words[1].upper() == "SMTPUTF8":
        subject = words[0].rstrip(" ")
    if subject[:1] == "<" and subject[-1:] == ">":
        subject = subject[1:-1].strip(" ")
    if len(subject) > 1 and subject[0] == subject[-1] == '"':
        subject = _QUOTED_PAIR.sub(r"\1", subject[1:-1])
    if not subject or _UNPRINTABLE.search(subject):
        raise RemoteError(replies.SYNTAX)
    return subject


def _not_offered(text: str, argument: str) -> Event:
    """ETRN, ATRN and BURL are known by name only (RFC 1985, RFC 2645, RFC 4468)."""
    raise RemoteError(replies.NOT_OFFERED if argument.strip(" ") else replies.SYNTAX)


_READERS: dict[str, Callable[[str, str], Event]] = {
    "EHLO": _ehlo,
    "HELO": _ehlo,
    "LHLO": _ehlo,
    "STARTTLS": _starttls,
    "AUTH": _auth,
    "MAIL": _mail,
    "RCPT": _rcpt,
    "DATA": _data,
    "BDAT": _bdat,
    "RSET": _rset,
    "VRFY": _vrfy,
    "EXPN": _expn,
    "NOOP": _noop,
    "HELP": _help,
    "QUIT": _quit,
    "ETRN": _not_offered,
    "ATRN": _not_offered,
    "BURL": _not_offered,
}

# An undecodable line of a known verb.
_SYNTAX = {verb: Rejected(replies.SYNTAX, verb=verb) for verb in _READERS}
