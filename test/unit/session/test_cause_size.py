"""The evidence of a refusal stays as small however often the same rule refuses."""

from support.baseline import baseline
from support.listener import ListenerInMemory

CONFIG = """
[server.listener.smtp]
bind = "127.0.0.1:2525"
protocol = "smtp"

[session.rcpt]
max-recipients = [ { if = "listener = 'smtp'", then = 2 }, { else = 1 } ]
"""


def test_a_flood_of_refused_recipients():
    listener = ListenerInMemory(baseline("B0", CONFIG))
    client = listener.connect()
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n")
    for number in range(100):
        client.send(b"RCPT TO:<r%d@relay.test>\r\n" % number)
        listener.clock.advance(0)
    assert client.received().count(b"455 4.5.3") == 98
    sizes = {len(reads) for trail in client.protocol._driver.trails for _, _, _, reads, _, _ in trail.steps}
    assert max(sizes) < 8, sizes
