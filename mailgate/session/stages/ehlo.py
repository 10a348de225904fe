"""The EHLO stage: `[session.ehlo]`, `[session.extensions]`; RFC 5321 4.1.1.1, RFC 2033 4.1."""

from __future__ import annotations

from mailgate.mail import replies
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import PROCEED, Reason, Refuse, Verdict
from mailgate.session.chain import Policy
from mailgate.session.context import EhloContext
from mailgate.session.unanswered import unanswered
from mailgate.wire.smtp.extension import Capabilities
from mailgate.wire.smtp.sasl import MECHANISMS

# RFC 1035 2.3.4: a label has at most 63 octets.
LABEL_OCTETS = 63


def protocol_is_right(context: EhloContext) -> Verdict:
    """LHLO on LMTP listeners, EHLO and HELO on the others (RFC 2033 4.1)."""
    if context.session.is_lmtp:
        return PROCEED if context.verb == "LHLO" else Refuse(replies.NOT_SMTP_HERE, Reason.WRONG_PROTOCOL)
    return Refuse(replies.NOT_LMTP_HERE, Reason.WRONG_PROTOCOL) if context.verb == "LHLO" else PROCEED


def name_is_given(context: EhloContext) -> Verdict:
    """Refuse a greeting without a name; a bare EHLO passes where any name would."""
    if context.name:
        return PROCEED
    wanted = context.connection.reject_non_fqdn
    if isinstance(wanted, Unknown):
        return unanswered(wanted, context.cause(context.rules.ehlo.reject_non_fqdn))
    if wanted or context.verb != "EHLO":
        cause = context.cause(context.rules.ehlo.reject_non_fqdn) if context.verb == "EHLO" else None
        return Refuse(replies.SYNTAX, Reason.HELO_MISSING, cause=cause)
    return PROCEED


def name_is_qualified(context: EhloContext) -> Verdict:
    """Refuse a name that is not fully qualified (`session.ehlo.reject-non-fqdn`)."""
    if context.name == context.session.helo:
        return PROCEED
    wanted = context.connection.reject_non_fqdn
    if isinstance(wanted, Unknown):
        return unanswered(wanted, context.cause(context.rules.ehlo.reject_non_fqdn))
    if wanted and not is_qualified(context.name):
        cause = context.cause(context.rules.ehlo.reject_non_fqdn, ("name", context.name))
        return Refuse(replies.NAME_NOT_QUALIFIED, Reason.HELO_NOT_QUALIFIED, cause=cause)
    return PROCEED


def is_qualified(name: str) -> bool:
    """Whether a name counts as fully qualified: a dot, a letter or digit, no label over 63 octets.

    Address literals pass: this only keeps out what cannot be a host's name.
    """
    return (
        "." in name
        and any(character.isalnum() for character in name)
        and all(len(label) <= LABEL_OCTETS for label in name.split("."))
    )


async def capabilities(context: EhloContext) -> Capabilities | Refuse:
    """What this session may use, as the rules say now; one unknown key refuses the greeting."""
    rules = context.rules.extensions
    session = context.session
    size = await context.rules.data.limits.size.value(context)
    if isinstance(size, Unknown):
        return unanswered(size, context.cause(context.rules.data.limits.size))
    switches: dict[str, bool] = {"vrfy": False, "expn": False}
    for name, kept, rule in (
        ("vrfy", context.connection.vrfy, rules.vrfy),
        ("expn", context.connection.expn, rules.expn),
    ):
        if isinstance(kept, Unknown):
            return unanswered(kept, context.cause(rule))
        switches[name] = kept
    for name, switch in (
        ("pipelining", rules.pipelining),
        ("chunking", rules.chunking),
        ("requiretls", rules.requiretls),
        ("dsn", rules.dsn),
    ):
        on = await switch.value(context)
        if isinstance(on, Unknown):
            return unanswered(on, context.cause(switch))
        switches[name] = on
    no_soliciting = await rules.no_soliciting.value(context)
    if isinstance(no_soliciting, Unknown):
        return unanswered(no_soliciting, context.cause(rules.no_soliciting))
    mt_priority = await rules.mt_priority.value(context)
    if isinstance(mt_priority, Unknown):
        return unanswered(mt_priority, context.cause(rules.mt_priority))
    future_release = await rules.future_release.value(context)
    if isinstance(future_release, Unknown):
        return unanswered(future_release, context.cause(rules.future_release))
    deliver_by = await rules.deliver_by.value(context)
    if isinstance(deliver_by, Unknown):
        return unanswered(deliver_by, context.cause(rules.deliver_by))
    mechanisms = await offered_mechanisms(context)
    if isinstance(mechanisms, Refuse):
        return mechanisms
    return Capabilities(
        size=size,
        starttls=session.tls_offered and session.tls is None,
        no_soliciting=no_soliciting,
        mt_priority=mt_priority,
        future_release=future_release,
        deliver_by=deliver_by,
        auth=mechanisms,
        **switches,
    )


async def offered_mechanisms(context: EhloContext) -> tuple[str, ...] | Refuse:
    """The mechanisms of the AUTH line, in their fixed order; none once authenticated or without a directory."""
    if context.session.identity is not None:
        return ()
    name = context.connection.auth_directory
    if isinstance(name, Unknown):
        return unanswered(name, context.cause(context.rules.auth.directory))
    if name is None or context.ports.directories.find(name) is None:
        return ()
    offered = await context.rules.auth.mechanisms.value(context)
    if isinstance(offered, Unknown):
        return unanswered(offered, context.cause(context.rules.auth.mechanisms))
    return tuple(mechanism for mechanism in MECHANISMS if mechanism in offered)


POLICIES: tuple[Policy[EhloContext], ...] = (protocol_is_right, name_is_given, name_is_qualified)
