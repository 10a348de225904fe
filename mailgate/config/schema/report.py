"""`report.*`: the notifications mailgate writes itself."""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.config.key import key, rule, table
from mailgate.config.kind import HOSTNAME, SIZE
from mailgate.config.system import PARENT_DOMAIN
from mailgate.expr.choice import Choice
from mailgate.expr.kind import STRING
from mailgate.expr.scope import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class DsnSettings:
    """Delivery status notifications (RFC 3464)."""

    from_name: Choice[str | None] = rule(
        STRING, Context.RECIPIENT, default="'Mail Delivery Subsystem'", doc="Display name in From."
    )
    from_address: Choice[str | None] = rule(
        STRING,
        Context.RECIPIENT,
        default="'MAILER-DAEMON@' + config_get('report.domain')",
        doc="Address in From.",
    )
    max_size: int = key(
        SIZE,
        default=1048576,
        unit="bytes",
        doc="A message up to this size comes back whole where RET=FULL was asked for, a larger one without its body.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """Who mailgate is when it writes."""

    domain: str = key(
        HOSTNAME, default=PARENT_DOMAIN, doc="Domain of mail that mailgate writes, and of `<postmaster>`."
    )
    submitter: Choice[str | None] = rule(
        STRING,
        Context.RECIPIENT,
        default="config_get('server.hostname')",
        doc="Host name in the Message-ID of mail that mailgate writes.",
    )
    dsn: DsnSettings = table(DsnSettings)
