"""A client over TCP that says exactly what a test wants."""

from __future__ import annotations

import socket

from support.ports import wait_until


class Client:
    """A client that says exactly what a test wants."""

    def __init__(self, gateway, listener="smtp"):
        self.socket = socket.create_connection(("127.0.0.1", gateway.port(listener)), timeout=20)
        self._lines = self.socket.makefile("rb")
        assert self.line().startswith(b"220")

    def line(self):
        """The next line from the server; empty at the end."""
        return self._lines.readline()

    def reply(self):
        """The last line of the next reply."""
        while (line := self.line())[3:4] == b"-":
            pass
        return line

    def say(self, octets):
        """Send octets and give the reply's last line."""
        self.socket.sendall(octets)
        return self.reply()

    def to_data(self):
        """Get as far as the 354."""
        assert self.say(b"EHLO client.test\r\n").startswith(b"250")
        assert self.say(b"MAIL FROM:<a@client.test>\r\n").startswith(b"250")
        assert self.say(b"RCPT TO:<jane@foobar.org>\r\n").startswith(b"250")
        assert self.say(b"DATA\r\n").startswith(b"354")

    def secure(self, context):
        """TLS from now on."""
        self._lines.close()
        self.socket = context.wrap_socket(self.socket)
        self._lines = self.socket.makefile("rb")

    def close(self):
        """Go away without a word."""
        self._lines.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def still_serves(gateway, subject=b"still here"):
    """A well-behaved client is served as ever."""
    with Client(gateway) as client:
        client.to_data()
        assert client.say(b"Subject: " + subject + b"\r\n\r\nhi\r\n.\r\n").startswith(b"250 2.0.0")
    wait_until(lambda: any(subject in m for m in gateway.maildir("jane", "foobar.org")), 20, "the message")
