"""One factory per listener: `ESMTPFactory` for SMTP and submission, `LMTPFactory` for LMTP.

Several addresses of a listener share its factory, and with it the limit of
simultaneous connections.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from mailgate.listen.smtp import SmtpShell
from mailgate.net.tls import ServerTls
from mailgate.session.site import Site

_log = Logger(namespace="mailgate.listen")


class ListenerFactory(ServerFactory):
    """Makes the connections of one listener and knows which are open."""

    noisy = False

    def __init__(self, site: Site, tls: ServerTls | None) -> None:
        """`tls` is None where the listener speaks none."""
        self.site = site
        self.tls = tls
        self.connections: set[SmtpShell] = set()
        self._emptied: Deferred[None] | None = None

    @property
    def listener_id(self) -> str:
        """The listener's id in the configuration."""
        return self.site.listener_id

    def buildProtocol(self, addr: IAddress | None) -> SmtpShell | None:
        """Take a connection; None at the listener's limit closes it without a byte."""
        if len(self.connections) >= self.site.listener.max_connections:
            _log.info("{event}", event="listener.limit-reached", listener=self.listener_id)
            return None
        shell = SmtpShell(self.site, self.tls, self)
        self.connections.add(shell)
        return shell

    def use(self, site: Site, tls: ServerTls | None) -> None:
        """Give connections from now on another generation's rules; those that are open keep theirs."""
        self.site = site
        self.tls = tls

    def gone(self, shell: SmtpShell) -> None:
        """A connection has ended."""
        self.connections.discard(shell)
        if not self.connections and self._emptied is not None:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    def shut_down(self) -> Deferred[None]:
        """Say goodbye to every client; fires when the last connection is gone."""
        for shell in tuple(self.connections):
            shell.shut_down()
        if not self.connections:
            return succeed(None)
        self._emptied = Deferred()
        return self._emptied


class ESMTPFactory(ListenerFactory):
    """An SMTP or submission listener (RFC 5321, RFC 6409)."""


class LMTPFactory(ListenerFactory):
    """An LMTP listener (RFC 2033)."""
