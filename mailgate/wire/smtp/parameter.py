"""The parameters of MAIL and RCPT as typed values (RFC 5321 4.1.1.11 and the extensions' RFCs).

Names and keyword values are compared without regard to case. What is wrong
raises `RemoteError` with the reply it deserves: 504 for a parameter that is
not known or takes no value, 501 for a value that is not valid. A value given
twice is not valid (RFC 3461 4), except for BODY, where the stronger wins.
Whether an extension is offered, and within what range, is the MAIL and RCPT
stages' to say.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from mailgate.mail import replies
from mailgate.mail.envelope import (
    NO_MAIL_PARAMETERS,
    NO_RCPT_PARAMETERS,
    Body,
    DeliverBy,
    HoldUntil,
    MailParameters,
    Notify,
    RcptParameters,
    Ret,
)
from mailgate.wire.smtp.error import RemoteError

# RFC 1870 4: size-value = 1*20DIGIT.
SIZE_DIGITS = 20
# RFC 2852 4 and RFC 4865 5: at most nine digits of seconds.
SECONDS_DIGITS = 9
# RFC 3461 4.4 and 4.2, RFC 4954 5.
ENVID_OCTETS = 100
ORCPT_OCTETS = 256
AUTH_OCTETS = 256

_BODIES = {body.value: body for body in Body}
_BODY_STRENGTH = tuple(Body)
_RETS = {ret.value: ret for ret in Ret}
_NOTIFIES = {"SUCCESS": Notify.SUCCESS, "FAILURE": Notify.FAILURE, "DELAY": Notify.DELAY}

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# RFC 3461 4: hexchar = "+" 2HEXDIG; what only begins like one is dropped.
_HEXCHAR = re.compile(rb"\+(?:([0-9A-Fa-f]{2})|[^+]{0,2})")
_BY = re.compile(rf"([+-]?[0-9]{{1,{SECONDS_DIGITS}}});([NRnr])([Tt]?)")
_PRIORITY = re.compile(r"[+-]?[0-9]{1,3}")
_MTRK = re.compile(rf"[^:]+(?::[0-9]{{1,{SECONDS_DIGITS}}})?")
_UNIX_TIME = re.compile(r"[0-9]{1,12}")
# RFC 3339 5.6: date-time.
_TIMESTAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(\.[0-9]{1,9})?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


def mail_parameters(text: str) -> MailParameters:
    """Understand what follows the path of MAIL. Raises `RemoteError`."""
    found = NO_MAIL_PARAMETERS
    for name, value in _given(text, _MAIL, _MAIL_FLAGS):
        found = _MAIL_FLAGS[name](found) if value is None else _MAIL[name](found, value)
    return found


def rcpt_parameters(text: str) -> RcptParameters:
    """Understand what follows the path of RCPT. Raises `RemoteError`."""
    found = NO_RCPT_PARAMETERS
    for name, value in _given(text, _RCPT, _RCPT_FLAGS):
        found = _RCPT_FLAGS[name](found) if value is None else _RCPT[name](found, value)
    return found


def _given(text: str, valued: Container[str], flags: Container[str]) -> Iterator[tuple[str, str | None]]:
    """The parameters one by one: known names in upper case, None as the value of a flag."""
    seen = set()
    for token in text.split(" "):
        if not token:
            continue
        name, equals, value = token.partition("=")
        # Some letters outside ASCII turn into ASCII ones in upper case.
        name = name.upper() if name.isascii() else ""
        if name in valued:
            if not value or _CONTROL.search(value) or (name in seen and name != "BODY"):
                raise _bad_value()
            seen.add(name)
            yield name, value
        elif name in flags and not equals:
            yield name, None
        else:
            raise RemoteError(replies.UNKNOWN_PARAMETER)


def _bad_value() -> RemoteError:
    return RemoteError(replies.BAD_PARAMETER_VALUE)


def _decimal(value: str, digits: int) -> int:
    if len(value) > digits or not (value.isascii() and value.isdigit()):
        raise _bad_value()
    return int(value)


def xtext(value: str, limit_octets: int) -> str:
    """Decode xtext (RFC 3461 4) to 1 to `limit_octets` octets of printable text. Raises `RemoteError`.

    Control characters are refused: the text ends up in header fields of DSNs.
    """
    octets = value.encode("utf-8")
    if "+" in value:
        octets = _HEXCHAR.sub(_hexchar, octets)
    if not 1 <= len(octets) <= limit_octets:
        raise _bad_value()
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise _bad_value()
    if _CONTROL.search(text):
        raise _bad_value()
    return text


def _hexchar(found: re.Match[bytes]) -> bytes:
    digits: bytes | None = found[1]
    return binascii.unhexlify(digits) if digits is not None else b""


def timestamp(value: str) -> float:
    """Seconds since the epoch of an RFC 3339 timestamp with zone. Raises `RemoteError`."""
    found = _TIMESTAMP.fullmatch(value)
    if found is None:
        raise _bad_value()
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    fraction, sign, zone_hour, zone_minute = found.groups()[6:]
    # RFC 3339 5.7: a leap second is written as second 60.
    leap = second == 60
    try:
        moment = datetime(year, month, day, hour, minute, 59 if leap else second, tzinfo=UTC)
        zone = timedelta(hours=int(zone_hour or 0), minutes=int(zone_minute or 0))
        if zone >= timedelta(hours=24) or int(zone_minute or 0) > 59:
            raise _bad_value()
        epoch_seconds = moment.timestamp() - (-1 if sign == "-" else 1) * zone.total_seconds()
    except (ValueError, OverflowError):
        raise _bad_value()
    return epoch_seconds + float(fraction or 0) + (1 if leap else 0)


def _size(found: MailParameters, value: str) -> MailParameters:
    return replace(found, size_octets=_decimal(value, SIZE_DIGITS))


def _body(found: MailParameters, value: str) -> MailParameters:
    body = _BODIES.get(value.lower())
    if body is None:
        raise _bad_value()
    if found.body is not None and _BODY_STRENGTH.index(found.body) > _BODY_STRENGTH.index(body):
        return found
    return replace(found, body=body)


def _ret(found: MailParameters, value: str) -> MailParameters:
    ret = _RETS.get(value.lower())
    if ret is None:
        raise _bad_value()
    return replace(found, ret=ret)


def _envid(found: MailParameters, value: str) -> MailParameters:
    return replace(found, envid=xtext(value, ENVID_OCTETS))


def _by(found: MailParameters, value: str) -> MailParameters:
    parts = _BY.fullmatch(value)
    if parts is None:
        raise _bad_value()
    return replace(found, deliver_by=DeliverBy(int(parts[1]), parts[2].upper(), bool(parts[3])))


def _holdfor(found: MailParameters, value: str) -> MailParameters:
    return replace(found, hold_seconds=_decimal(value, SECONDS_DIGITS))


def _holduntil(found: MailParameters, value: str) -> MailParameters:
    moment = float(value) if _UNIX_TIME.fullmatch(value) else timestamp(value)
    return replace(found, hold_until=HoldUntil(moment))


def _mt_priority(found: MailParameters, value: str) -> MailParameters:
    if not _PRIORITY.fullmatch(value):
        raise _bad_value()
    return replace(found, priority=int(value))


def _solicit(found: MailParameters, value: str) -> MailParameters:
    return replace(found, solicit=value)


def _transid(found: MailParameters, value: str) -> MailParameters:
    if len(value) < 3 or value[0] != "<" or value[-1] != ">":
        raise _bad_value()
    return replace(found, transid=value[1:-1])


def _mtrk(found: MailParameters, value: str) -> MailParameters:
    if not _MTRK.fullmatch(value):
        raise _bad_value()
    return replace(found, mtrk=value)


def _auth(found: MailParameters, value: str) -> MailParameters:
    return replace(found, auth=xtext(value, AUTH_OCTETS))


def _smtputf8(found: MailParameters) -> MailParameters:
    return replace(found, smtputf8=True)


def _requiretls(found: MailParameters) -> MailParameters:
    return replace(found, requiretls=True)


def _conperm(found: MailParameters) -> MailParameters:
    return replace(found, conperm=True)


def _notify(found: RcptParameters, value: str) -> RcptParameters:
    words = value.upper() if value.isascii() else ""
    if words == "NEVER":
        return replace(found, notify=Notify.NEVER)
    notify = Notify.NONE
    for word in words.split(","):
        flag = _NOTIFIES.get(word)
        if flag is None:
            raise _bad_value()
        notify |= flag
    return replace(found, notify=notify)


def _orcpt(found: RcptParameters, value: str) -> RcptParameters:
    kind, _, address = value.partition(";")
    if kind.lower() != "rfc822":
        raise _bad_value()
    return replace(found, orcpt=xtext(address, ORCPT_OCTETS))


def _rrvs(found: RcptParameters, value: str) -> RcptParameters:
    moment, semicolon, action = value.partition(";")
    if semicolon and action not in ("C", "c", "R", "r"):
        raise _bad_value()
    timestamp(moment)
    return replace(found, rrvs=value)


def _conneg(found: RcptParameters) -> RcptParameters:
    return replace(found, conneg=True)


_MAIL: dict[str, Callable[[MailParameters, str], MailParameters]] = {
    "SIZE": _size,  # RFC 1870
    "BODY": _body,  # RFC 6152, RFC 3030
    "RET": _ret,  # RFC 3461
    "ENVID": _envid,
    "BY": _by,  # RFC 2852
    "HOLDFOR": _holdfor,  # RFC 4865
    "HOLDUNTIL": _holduntil,
    "MT-PRIORITY": _mt_priority,  # RFC 6710
    "SOLICIT": _solicit,  # RFC 3865
    "TRANSID": _transid,  # RFC 1845
    "MTRK": _mtrk,  # RFC 3885
    "AUTH": _auth,  # RFC 4954
}
_MAIL_FLAGS: dict[str, Callable[[MailParameters], MailParameters]] = {
    "SMTPUTF8": _smtputf8,  # RFC 6531
    "REQUIRETLS": _requiretls,  # RFC 8689
    "CONPERM": _conperm,  # RFC 4141
}
_RCPT: dict[str, Callable[[RcptParameters, str], RcptParameters]] = {
    "NOTIFY": _notify,  # RFC 3461
    "ORCPT": _orcpt,
    "RRVS": _rrvs,  # RFC 7293
}
_RCPT_FLAGS: dict[str, Callable[[RcptParameters], RcptParameters]] = {"CONNEG": _conneg}  # RFC 4141
