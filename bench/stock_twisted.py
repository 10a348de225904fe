"""Stock `twisted.mail.smtp.ESMTP`, as Twisted's own examples put it together.

Each message becomes a file: write, fsync, rename, fsync of the directory, in
the reactor's thread pool, before its 250.
"""

from __future__ import annotations

import argparse
import itertools
import os

from twisted.internet import protocol, reactor, threads
from twisted.mail import smtp
from zope.interface import implementer

DOMAIN = b"relay.test"


@implementer(smtp.IMessage)
class Message:
    """Collects lines, then a file."""

    numbers = itertools.count()

    def __init__(self, folder):
        self._folder = folder
        self._lines = []

    def lineReceived(self, line):
        self._lines.append(line)

    def eomReceived(self):
        return threads.deferToThread(self._store)

    def connectionLost(self):
        self._lines = []

    def _store(self):
        number = next(self.numbers)
        path = f"{self._folder}/{os.getpid()}.{number}"
        with open(path + ".tmp", "xb") as file:
            file.write(b"\n".join(self._lines) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + ".tmp", path)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@implementer(smtp.IMessageDelivery)
class Delivery:
    """Takes mail for one domain."""

    def __init__(self, folder):
        self._folder = folder

    def receivedHeader(self, helo, origin, recipients):
        return b"Received: by bench.test"

    def validateFrom(self, helo, origin):
        return origin

    def validateTo(self, user):
        if user.dest.domain.lower() != DOMAIN:
            raise smtp.SMTPBadRcpt(user)
        return lambda: Message(self._folder)


class Factory(protocol.ServerFactory):
    """One ESMTP per connection."""

    noisy = False

    def __init__(self, folder):
        self._delivery = Delivery(folder)

    def buildProtocol(self, addr):
        server = smtp.ESMTP()
        server.factory = self
        server.delivery = self._delivery
        server.host = b"bench.test"
        server.timeout = 600
        return server


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dir", required=True)
    arguments = parser.parse_args()
    os.makedirs(arguments.dir, exist_ok=True)
    reactor.listenTCP(arguments.port, Factory(arguments.dir), backlog=4096, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
