"""Mail whose next host is the daemon itself comes back to its sender in place of going round."""

import smtplib

from support.daemon import Gateway
from support.dns_server import DnsServer
from support.ports import free_port, wait_until
from support.zone import Zone

CHANGES = """
[session.rcpt]
relay = true

[queue]
poll = "200ms"

[queue.strategy]
route = [ {{ if = "rcpt_domain = 'foobar.org'", then = "'local'" }}, {{ else = "'out'" }} ]

[queue.route.out]
type = "mx"
port = {port}
allow-loopback = true

[resolver]
type = "custom"
custom = ["udp://127.0.0.1:{dns}"]
"""


def test_a_domain_whose_mail_host_is_this_daemon(tmp_path):
    zone = Zone().mx_set("round.test", (10, "mx.round.test")).a("mx.round.test", "127.0.0.1")
    with DnsServer(zone) as server:
        port = free_port()
        changes = CHANGES.format(port=port, dns=server.port)
        with Gateway(tmp_path, changes=(changes,), second_ports={"smtp": port}) as gateway:
            with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
                client.sendmail("john@foobar.org", ["jane@round.test"], "Subject: x\r\n\r\nhi\r\n")
            (report,) = gateway.wait_mail("john", "foobar.org")
            assert b"<jane@round.test> (connection to 'round.test' failed: mail loops back to this host)" in report
            gateway.wait_queue_empty()
            assert wait_until(lambda: gateway.log_text().count("queue.queue-message ") == 1, 5, "one message")
