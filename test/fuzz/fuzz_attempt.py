"""Invariant: whatever a next hop sends, every recipient has an outcome, and Delivered only after a final 2xx.

Seeded: `PYTHONPATH=.:test python test/fuzz/fuzz_attempt.py [seconds] [seed]`
plays two attempts, the second perhaps on a kept connection, against servers
whose replies are mutated and cut anywhere, for so long (60 seconds if not
told). Where atheris is importable and no seconds are given, it drives instead.
"""

from __future__ import annotations

import random
import sys
import time

from fuzz.drive import drive
from support.pipe import Network
from support.script import play
from support.work_store import Reader, message, recipient
from twisted.internet.protocol import Protocol

from mailgate.deliver.attempt import Attempt
from mailgate.deliver.nexthop import NextHop
from mailgate.deliver.opening import Opener
from mailgate.deliver.reuse import IdleConnections
from mailgate.mail.status import Delayed, Delivered, Failed
from mailgate.net.connect import ConnectFailed
from mailgate.net.stream import Stream
from mailgate.net.tls import ClientTls

HELLO = b"220 hi\r\n250-mx\r\n250-SIZE\r\n250-%b\r\n250 DSN\r\n"
OFFERS = (b"PIPELINING", b"CHUNKING", b"PIPELINING\r\n250-CHUNKING", b"HELP", b"STARTTLS")
LINES = (
    *(b"250 ok\r\n", b"250 2.1.5 ok\r\n", b"354 go\r\n", b"550 5.1.1 no\r\n", b"450 4.2.0 later\r\n"),
    *(b"421 4.3.2 bye\r\n", b"220 go\r\n", b"250-a\r\n250 b\r\n", b"334 \r\n", b"503 5.5.1 x\r\n", b"junk\r\n", b"25"),
)
CONTENTS = (b"Subject: x\r\n\r\nbody\r\n", b"Subject: y\r\n\r\n" + b".\r\n" * 100_000)
CLIENT_TLS = ClientTls()


class Server(Protocol):
    """Answers with the next prepared octets whenever it hears something; b"" in their place hangs up."""

    def __init__(self, replies: list[bytes]) -> None:
        self.replies = replies
        self.said = b""

    def connectionMade(self) -> None:
        self.answer()

    def dataReceived(self, octets: bytes) -> None:
        self.answer()

    def answer(self) -> None:
        if not self.replies:
            return
        octets = self.replies.pop(0)
        if octets:
            self.said += octets
            self.transport.write(octets)
        else:
            self.transport.loseConnection()


class Nets:
    """One server per connection, as prepared."""

    def __init__(self, network: Network, servers: list[list[bytes]]) -> None:
        self.network = network
        self.waiting = servers
        self.servers: list[Server] = []

    async def connect(self, address: str, port: int, *, source_ip: str | None, seconds: float) -> Stream:
        if not self.waiting:
            raise ConnectFailed("Connection refused")
        server = Server(self.waiting.pop(0))
        self.servers.append(server)
        stream = Stream(self.network.clock, address, port)
        self.network.connect(stream, server)
        return stream


class Store:
    def __init__(self) -> None:
        self.octets = b""

    async def read(self, item: object) -> Reader:
        return Reader(self.octets, 50_000)


def session(choose: random.Random) -> list[bytes]:
    """What one connection's server will say, piece by piece."""
    hello = HELLO % choose.choice(OFFERS)
    at = hello.index(b"\r\n") + 2
    pieces = [hello[:at], hello[at:]] if choose.random() < 0.9 else [hello]
    likely = (LINES[0], LINES[0] * 2, LINES[0] * 3, LINES[2], LINES[0] * 2 + LINES[2])
    for _ in range(choose.randint(0, 12)):
        if choose.random() < 0.7:
            pieces.append(choose.choice(likely))
        elif choose.random() < 0.1:
            pieces.append(b"")
        else:
            pieces.append(b"".join(choose.choice(LINES) for _ in range(choose.randint(1, 3))))
    return pieces


def check(choose: random.Random) -> None:
    """Play one case; raises when the invariant is broken."""
    network = Network(segment=choose.choice((0, 0, 0, 1, 7, 100)))
    nets = Nets(network, [session(choose) for _ in range(choose.randint(0, 4))])
    store = Store()
    broken: list[object] = []

    def emit(event: str, /, **fields: object) -> None:
        if event == "delivery.internal-error":
            broken.append(fields["details"])

    idle = IdleConnections(network.clock, lambda queue: 3)
    attempt = Attempt(store, Opener(nets, CLIENT_TLS, emit), idle, lambda: 0, random.Random(1), emit)
    protocol = choose.choice(("smtp", "lmtp"))
    hop = NextHop("r", "mx.test", ("192.0.2.1",), 25, protocol, "gw.test", True, max_recipients=choose.choice((2, 100)))
    for _ in range(2):
        store.octets = CONTENTS[choose.random() < 0.1]
        names = [recipient(f"{name}@x.test") for name in "abc"[: choose.randint(1, 3)]]
        item, _ = message(*names, octets=store.octets)
        outcomes = play(attempt.run(item, item.recipients, [hop]), network, until_seconds=1e6)
        assert not broken, broken
        assert sorted(outcomes) == [one.index for one in item.recipients]
        assert all(isinstance(outcome, Delivered | Delayed | Failed) for outcome in outcomes.values())
        for outcome in outcomes.values():
            if isinstance(outcome, Delivered):
                assert outcome.status.reply is not None
                assert 200 <= outcome.status.reply.code < 300
                assert any(server.said.count(b"250") >= 4 for server in nets.servers)
    idle.stop()
    network.clock.advance(1e6)
    network.pump()
    assert not any(end.connected for end in network.ends if end.is_client), "a connection was forgotten"
    assert not network.clock.getDelayedCalls(), "a timer was forgotten"


def run(seconds: float, seed: int) -> int:
    """Play cases for so long; their number."""
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        try:
            check(random.Random(f"{seed}/{count}"))
        except Exception:
            print(f"broken by seed {seed}, case {count}", file=sys.stderr)
            raise
        count += 1
    return count


if __name__ == "__main__":
    drive(run, lambda octets: check(random.Random(octets)))
