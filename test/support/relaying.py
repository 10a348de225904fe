"""A daemon that relays everything that is not local to one next hop, and looks for due mail twice a second."""

from __future__ import annotations

import smtplib

CHANGES = """
[session.rcpt]
relay = true

[queue]
poll = "500ms"

[queue.strategy]
route = [ { if = "is_local_domain('*', rcpt_domain)", then = "'local'" }, { else = "'hop'" } ]
schedule = "'quick'"

[queue.schedule.quick]
queue-name = "remote"
retry = "1s"
expire = "1h"
"""


def relay(hop):
    """Everything that is not local goes to this next hop."""
    return f'[queue.route.hop]\ntype = "relay"\naddress = "127.0.0.1"\nport = {hop.port}\ntls.implicit = false\n'


def send(gateway, *recipients, subject="x", body="hi\r\n"):
    """Hand in a message."""
    with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
        client.sendmail("john@foobar.org", recipients, f"Subject: {subject}\r\n\r\n{body}")
