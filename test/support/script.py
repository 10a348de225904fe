"""Next hops played from text: what the client must say, what the server answers.

    S: 220 mx.example.net ready          the server sends this line
    C: EHLO gw.example.org               the client must send exactly this line
    C~ MAIL FROM:<.*>                    ... a line this pattern matches
    C* octets...                         the content up to the final dot is kept in `contents`
    C# 42                                so many octets (a chunk) are kept in `contents`
    S! close | abort | tls | deaf | inject TEXT | wait

`S: a | b | c` sends several lines in one segment. Lines that are not reached
are an error at the end of a test unless it says otherwise.
"""

from __future__ import annotations

import re

from support.pipe import Network
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol

from mailgate.net.connect import ConnectFailed
from mailgate.net.stream import Stream


class ScriptedServer(Protocol):
    """Plays one script."""

    def __init__(self, text, server_tls=None):
        self.steps = [line.strip() for line in text.strip().splitlines() if line.strip()]
        self.server_tls = server_tls
        self.buffer = b""
        self.heard = []
        self.contents = []
        self.problem = None
        self.lost = False

    def connectionMade(self):
        self.play()

    def dataReceived(self, octets):
        self.buffer += octets
        self.play()

    def connectionLost(self, reason):
        self.lost = True

    def play(self):
        while self.steps and self.problem is None and not self.lost:
            kind, _, text = self.steps[0].partition(" ")
            if not self.step(kind, text):
                return
            self.steps.pop(0)
        if not self.steps and self.buffer:
            self.heard += self.buffer.decode("latin-1").splitlines()
            self.buffer = b""

    def step(self, kind, text):
        if kind == "S:":
            self.transport.write("".join(part.strip() + "\r\n" for part in text.split(" | ")).encode())
        elif kind == "S!":
            return self.act(*text.split(" ", 1))
        elif kind in ("C:", "C~"):
            line, found, rest = self.buffer.partition(b"\r\n")
            if not found:
                return False
            self.buffer = rest
            said = line.decode()
            self.heard.append(said)
            if not (said == text if kind == "C:" else re.fullmatch(text, said)):
                self.problem = f"expected {text!r}, the client said {said!r}"
                self.transport.abortConnection()
        elif kind == "C*":
            whole = b"\r\n" + self.buffer
            end = whole.find(b"\r\n.\r\n")
            if end < 0:
                return False
            self.contents.append(self.buffer[:end])
            self.buffer = self.buffer[end + 3 :]
        elif kind == "C#":
            if len(self.buffer) < int(text):
                return False
            self.contents.append(self.buffer[: int(text)])
            self.buffer = self.buffer[int(text) :]
        else:
            raise ValueError(f"no such step: {kind} {text}")
        return True

    def act(self, what, text=""):
        if what == "close":
            self.transport.loseConnection()
        elif what == "abort":
            # What was said before is on its way already.
            self.transport.closing = "abort"
        elif what == "deaf":
            self.transport.pauseProducing()
        elif what == "tls":
            self.transport.startTLS(self.server_tls)
        elif what == "inject":
            self.transport.write(text.encode().decode("unicode_escape").encode("latin-1"))
        elif what == "wait":
            return False
        else:
            raise ValueError(f"no such act: {what}")
        return True


class Dial:
    """Connects to scripts instead of hosts: each address has a list of scripts, one per connection.

    A script may also be a `ConnectFailed` to raise, or None for an address that never answers.
    """

    def __init__(self, network=None, **scripts):
        self.network = network or Network()
        self.scripts = {}
        self.servers = []
        self.calls = []
        self.streams = []

    def at(self, address, *scripts, server_tls=None):
        """Add scripts for the next connections to an address."""
        self.scripts.setdefault(address, []).extend((script, server_tls) for script in scripts)
        return self

    async def connect(self, address, port, *, source_ip, seconds):
        self.calls.append((address, port, source_ip))
        waiting = self.scripts.get(address)
        if not waiting:
            raise ConnectFailed("Connection refused")
        script, server_tls = waiting.pop(0)
        if isinstance(script, ConnectFailed):
            raise script
        if script is None:
            await _sleep(self.network.clock, seconds)
            raise ConnectFailed("Connection timeout")
        stream = Stream(self.network.clock, address, port)
        server = ScriptedServer(script, server_tls)
        self.servers.append(server)
        self.streams.append(stream)
        self.network.connect(stream, server)
        return stream

    def check(self):
        """Every script was played to its end."""
        for server in self.servers:
            assert server.problem is None, server.problem
            assert not server.steps, f"not reached: {server.steps} (heard {server.heard})"
        assert not any(self.scripts.values()), "a connection was never made"


def _sleep(clock, seconds):
    done = Deferred()
    clock.callLater(seconds, done.callback, None)
    return done


def play(coroutine, network, until_seconds=3600.0):
    """Run a coroutine to its end, moving octets and, when nothing moves, the clock."""
    deferred = Deferred.fromCoroutine(coroutine)
    results, failures = [], []
    deferred.addCallbacks(results.append, failures.append)
    clock = network.clock
    limit = clock.seconds() + until_seconds
    while not results and not failures:
        network.pump()
        if results or failures:
            break
        calls = clock.getDelayedCalls()
        assert calls, "nothing happens any more"
        due = min(call.getTime() for call in calls)
        assert due <= limit, "it takes too long"
        clock.advance(max(0.0, due - clock.seconds()))
    if failures:
        failures[0].raiseException()
    return results[0]
