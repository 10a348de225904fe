"""`session.*`: what a client may do at each stage of a session."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from mailgate.config.key import key, rule, table
from mailgate.config.kind import BOOLEAN
from mailgate.expr.choice import Choice
from mailgate.expr.kind import (
    DURATION,
    INTEGER,
    MECHANISMS,
    MT_PRIORITY,
    NAME,
    SIZE,
    STRING,
    STRING_OR_TRUTH,
    WORD,
    boolean,
)
from mailgate.expr.scope import Context

_MINUTE = timedelta(minutes=1)
_MIB = 1024 * 1024
_PORT_25 = "listener = 'smtp'"
_NOT_PORT_25 = "listener != 'smtp'"
_LOGGED_IN = "!is_empty(authenticated_as)"


def _when_logged_in(then: object) -> list[dict[str, object]]:
    return [{"if": _LOGGED_IN, "then": then}, {"else": False}]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectSettings:
    """The connect stage, before the greeting."""

    hostname: Choice[str | None] = rule(
        STRING, Context.CONN, default="config_get('server.hostname')", doc="Our name in this session."
    )
    greeting: Choice[str | None] = rule(
        STRING,
        Context.CONN,
        default="config_get('server.hostname') + ' mailgate ESMTP at your service'",
        doc="Text of the greeting after `220`; the default stands in for an empty one.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EhloSettings:
    """EHLO, HELO and LHLO."""

    require: Choice[bool] = rule(
        boolean(True).deciding(lets_pass=False, refuses=True),
        Context.CONN,
        default=True,
        doc="Refuse MAIL before EHLO.",
    )
    reject_non_fqdn: Choice[bool] = rule(
        boolean(True).deciding(lets_pass=False, refuses=True),
        Context.CONN,
        default=_PORT_25,
        doc="Refuse a name in EHLO that is not fully qualified.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionSettings:
    """The SMTP extensions that can be switched; SIZE, 8BITMIME, SMTPUTF8 and ENHANCEDSTATUSCODES are always on."""

    pipelining: Choice[bool] = rule(boolean(True), Context.MAIL, default=True, doc="Advertise PIPELINING (RFC 2920).")
    chunking: Choice[bool] = rule(
        boolean(True), Context.MAIL, default=True, doc="Offer CHUNKING and BINARYMIME (RFC 3030)."
    )
    requiretls: Choice[bool] = rule(boolean(False), Context.MAIL, default=True, doc="Offer REQUIRETLS (RFC 8689).")
    no_soliciting: Choice[str | None] = rule(
        STRING,
        Context.MAIL,
        default="''",
        doc="Advertise NO-SOLICITING (RFC 3865) with these keywords; `''` gives the bare keyword.",
    )
    dsn: Choice[bool] = rule(boolean(False), Context.MAIL, default=_LOGGED_IN, doc="Offer DSN (RFC 3461).")
    future_release: Choice[timedelta | None] = rule(
        DURATION,
        Context.MAIL,
        default=_when_logged_in("7d"),
        doc="Longest time a client may have a message held back, FUTURERELEASE (RFC 4865); false switches it off.",
    )
    deliver_by: Choice[timedelta | None] = rule(
        DURATION,
        Context.MAIL,
        default=_when_logged_in("15d"),
        doc="Longest time a client may set as deadline, DELIVERBY (RFC 2852); false switches it off.",
    )
    mt_priority: Choice[str | None] = rule(
        MT_PRIORITY,
        Context.MAIL,
        default=_when_logged_in("mixer"),
        doc="Priority policy advertised by MT-PRIORITY (RFC 6710): mixer, stanag4406 or nsep; false switches it off.",
    )
    vrfy: Choice[bool] = rule(boolean(False), Context.MAIL, default=_LOGGED_IN, doc="Answer VRFY.")
    expn: Choice[bool] = rule(boolean(False), Context.MAIL, default=_LOGGED_IN, doc="Answer EXPN.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthErrorSettings:
    """What failed logins cost."""

    total: Choice[int] = rule(
        INTEGER.fallback(3), Context.EHLO, default=3, doc="Failed logins after which the connection is closed."
    )
    wait: Choice[timedelta] = rule(
        DURATION.fallback(timedelta(seconds=30)),
        Context.EHLO,
        default="5s",
        doc="Time to wait before a failed login is answered.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """SMTP AUTH."""

    mechanisms: Choice[tuple[str, ...]] = rule(
        MECHANISMS,
        Context.EHLO,
        default=[{"if": "listener != 'smtp' && is_tls", "then": "[plain, login]"}, {"else": False}],
        doc="SASL mechanisms offered: plain, login.",
    )
    directory: Choice[str | None] = rule(
        NAME("directory"),
        Context.EHLO,
        default=[{"if": _NOT_PORT_25, "then": "'*'"}, {"else": False}],
        doc="Directory that passwords are checked in; `'*'` is the default one, false switches AUTH off.",
    )
    require: Choice[bool] = rule(
        boolean(False).deciding(lets_pass=False, refuses=True),
        Context.EHLO,
        default=_NOT_PORT_25,
        doc="Refuse MAIL before a login.",
    )
    must_match_sender: Choice[bool] = rule(
        boolean(True).deciding(lets_pass=False, refuses=True),
        Context.MAIL,
        default=True,
        doc="Refuse senders that are not the login or an address of its account.",
    )
    errors: AuthErrorSettings = table(AuthErrorSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """The MAIL stage."""

    is_allowed: Choice[bool] = rule(
        boolean(True).deciding(lets_pass=True, refuses=False),
        Context.MAIL,
        default="!is_empty(authenticated_as) || !key_exists('blocked-domains', sender_domain)",
        doc="Accept the sender.",
    )
    rewrite: Choice[str | None] = rule(
        STRING,
        Context.MAIL,
        default=False,
        doc="New sender address; the empty text makes it the null sender, a text without @ changes nothing.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RcptErrorSettings:
    """What refused recipients cost."""

    total: Choice[int] = rule(
        INTEGER.fallback(10),
        Context.MAIL,
        default=5,
        doc="Refused recipients of a session after which the connection is closed.",
    )
    wait: Choice[timedelta] = rule(
        DURATION.fallback(timedelta(seconds=30)),
        Context.MAIL,
        default="5s",
        doc="Time to wait before a refused recipient is answered.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RcptSettings:
    """The RCPT stage."""

    directory: Choice[str | None] = rule(
        NAME("directory"),
        Context.RCPT,
        default="'*'",
        doc="Directory that recipients of local domains must be in; false asks none.",
    )
    relay: Choice[bool] = rule(
        boolean(False).deciding(lets_pass=True, refuses=False),
        Context.RCPT,
        default=_LOGGED_IN,
        doc="Accept recipients of other domains.",
    )
    rewrite: Choice[str | None] = rule(
        STRING, Context.RCPT, default=False, doc="New recipient address; a text without @ changes nothing."
    )
    max_recipients: Choice[int] = rule(
        INTEGER.fallback(100), Context.MAIL, default=100, doc="Recipients of one message."
    )
    errors: RcptErrorSettings = table(RcptErrorSettings)
    sub_addressing: Choice[bool | str] = rule(
        STRING_OR_TRUTH,
        Context.ADDR,
        default=True,
        synonyms=("subaddressing",),
        doc="Look `user+detail@domain` up as `user@domain`; a text is looked up in place of the address.",
    )
    catch_all: Choice[bool | str] = rule(
        STRING_OR_TRUTH,
        Context.ADDR,
        default=True,
        doc="Look `@domain` up when an address does not exist; a text is looked up instead.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataLimitSettings:
    """Limits of messages."""

    messages: Choice[int] = rule(
        INTEGER.fallback(10),
        Context.RCPT,
        default=10,
        synonyms=("message",),
        doc="Messages in one session.",
    )
    size: Choice[int] = rule(
        SIZE.fallback(25 * _MIB), Context.RCPT, default=104857600, unit="bytes", doc="Size of a message."
    )
    received_headers: Choice[int] = rule(
        INTEGER.fallback(50), Context.RCPT, default=50, doc="Received fields a message may have: more are a loop."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AddHeaderSettings:
    """Header fields that are added to a message."""

    received: Choice[bool] = rule(boolean(True), Context.RCPT, default=_PORT_25, doc="Add Received.")
    message_id: Choice[bool] = rule(
        boolean(True), Context.RCPT, default=_NOT_PORT_25, doc="Add Message-ID where there is none."
    )
    date: Choice[bool] = rule(boolean(True), Context.RCPT, default=_NOT_PORT_25, doc="Add Date where there is none.")
    return_path: Choice[bool] = rule(boolean(True), Context.RCPT, default=_PORT_25, doc="Add Return-Path.")
    delivered_to: bool = key(
        BOOLEAN, default=True, doc="Add Delivered-To to what a local route delivers; no expression."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """DATA and BDAT."""

    limits: DataLimitSettings = table(DataLimitSettings)
    add_headers: AddHeaderSettings = table(AddHeaderSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """The session as a whole."""

    timeout: Choice[timedelta] = rule(
        DURATION.fallback(5 * _MINUTE),
        Context.CONN,
        default="5m",
        doc="Time without a word from the client after which the session ends.",
    )
    duration: Choice[timedelta] = rule(
        DURATION.fallback(15 * _MINUTE), Context.CONN, default="10m", doc="Longest duration of a session."
    )
    transfer_limit: Choice[int] = rule(
        SIZE.fallback(250 * _MIB),
        Context.CONN,
        default=262144000,
        unit="bytes",
        doc="Octets that may be received in a session, commands included.",
    )
    bare_newline: Choice[str] = rule(
        WORD("reject", "normalize").fallback("reject"),
        Context.CONN,
        default="'reject'",
        doc="What becomes of a message with a bare CR or LF: reject refuses it, normalize stores CRLF.",
    )
    connect: ConnectSettings = table(ConnectSettings)
    ehlo: EhloSettings = table(EhloSettings)
    extensions: ExtensionSettings = table(ExtensionSettings)
    auth: AuthSettings = table(AuthSettings)
    mail: MailSettings = table(MailSettings)
    rcpt: RcptSettings = table(RcptSettings)
    data: DataSettings = table(DataSettings)
