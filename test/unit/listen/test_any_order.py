"""Whatever the client, the disk and the directories do in which order: each command has its reply, and nothing stays.

The connections are real ones over loopback, with buffers so small that replies
wait; the order is drawn from a seed.
"""

import random
import ssl

import pytest
from support.baseline import baseline
from support.listener import ListenerInMemory
from support.loopback import Line, TlsPeer
from support.slow import SlowStore, SlowZone

LISTENERS = """
[server.listener.smtp]
bind = "127.0.0.1:2525"
protocol = "smtp"
[server.listener.submissions]
bind = "127.0.0.1:4465"
protocol = "smtp"
tls.implicit = true
[session.mail]
is-allowed = "dns_query('slow.test', 'txt') = 'yes'"
"""
ENVELOPE = b"RSET\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<jane@foobar.org>\r\n"
# So many that their replies are more than a transport holds before it has somebody wait.
HELLOS = b"EHLO client.test\r\n" * 400
MODES = ["clear", "starttls", "implicit"]
SEEDS = range(5)


def spoken(chance):
    """What a client says, and how many replies it is due."""
    octets, due = b"EHLO client.test\r\n", 1
    for _ in range(chance.randrange(3, 12)):
        text = b"Subject: x\r\n\r\n" + b"y" * chance.randrange(90_000) + b"\r\n"
        cut = chance.randrange(len(text))
        chunks = b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (cut, text[:cut], len(text) - cut, text[cut:])
        said, count = chance.choice(
            [
                (HELLOS, 400),
                (b"NOOP\r\n" * 300, 300),
                (b"NONSENSE\r\n", 1),
                (b"HELP " + b"x" * 5000 + b"\r\n", 1),
                (ENVELOPE + b"DATA\r\n" + text + b".\r\n", 5),
                (ENVELOPE + chunks, 5),
            ]
        )
        octets += said
        due += count
    return octets, due


class World:
    """A client, a listener, and what decisions wait for."""

    def __init__(self, chance, mode):
        self.chance = chance
        self.zone = SlowZone()
        slow = [chance.random() < 0.5 for _ in range(3)]
        self.store = SlowStore(slow_writes=slow[0], slow_finish=slow[1], slow_commit=slow[2])
        listener = ListenerInMemory(baseline("B0", LISTENERS), zone=self.zone, store=self.store)
        self.clock = listener.clock
        self.factory = listener.factories["submissions" if mode == "implicit" else "smtp"]
        self.shell = self.factory.buildProtocol(None)
        self.line = Line()
        self.peer = self.line.accepted(self.shell, buffer_octets=4096)
        if mode != "clear":
            self._secure(mode)
        # TLS begins anew without a greeting.
        self.greetings = 0 if mode == "starttls" else 1

    def _secure(self, mode):
        if mode == "starttls":
            self.peer.send(b"EHLO client.test\r\nSTARTTLS\r\n")
            self.line.until(lambda: b"\r\n220 " in self.peer.got)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.peer = self.line.secure(self.peer, context)
        self.line.until(lambda: self.peer.is_secured)

    def say(self, octets):
        if isinstance(self.peer, TlsPeer):
            self.peer.say(octets)
        else:
            self.peer.send(octets)

    def replies(self):
        return sum(line[3:4] == b" " for line in self.peer.got.split(b"\r\n"))

    def end_a_wait(self):
        """Let one of the things that are waited for happen."""
        waits = [
            (self.zone.held, self.zone.answer),
            (self.store.writing, lambda: self.store.writing.pop(0).callback(None)),
            (self.store.finishing, lambda: self.store.finishing.pop(0).callback(None)),
            (self.store.committing, self.store.end_commit),
        ]
        there = [end for held, end in waits if held]
        if there:
            self.chance.choice(there)()

    def act(self, octets):
        """One thing happens; answers what is still to be said."""
        what = self.chance.randrange(10)
        if what < 3 and octets and not self.peer.unsent:
            count = self.chance.choice([1, 7, 100, 5000, 70_000])
            self.say(octets[:count])
            return octets[count:]
        if what < 5:
            self.end_a_wait()
        elif what == 5:
            self.peer.is_reading = not self.peer.is_reading
        elif what == 6:
            self.clock.advance(0)
        else:
            self.line.turn(0)
        return octets

    def settles(self):
        """Whatever is waited for happens from now on; answers whether anything is left."""
        self.end_a_wait()
        self.clock.advance(0)
        return not self.factory.connections


@pytest.fixture(params=MODES)
def begun(request):
    """A world with its client's words, some of which have been said."""
    worlds = []

    def begin(seed, steps):
        chance = random.Random(seed)
        world = World(chance, request.param)
        worlds.append(world)
        octets, due = spoken(chance)
        for _ in range(chance.randrange(steps)):
            octets = world.act(octets)
        return world, octets, due + world.greetings

    yield begin
    for world in worlds:
        world.line.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_that_reads_in_the_end_has_a_reply_to_each_command(begun, seed):
    world, octets, due = begun(seed, 600)
    world.say(octets)
    world.peer.is_reading = True
    world.line.until(lambda: world.settles() or world.replies() >= due)
    world.line.settle()
    assert world.replies() == due
    world.say(b"QUIT\r\n")
    world.line.until(world.settles)
    assert world.clock.getDelayedCalls() == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("end", ["quit", "shutdown", "close", "reset", "silence"])
def test_a_connection_that_ends_in_any_state_leaves_nothing(begun, seed, end):
    world, octets, _ = begun(seed, 300)
    if end == "quit":
        world.peer.is_reading = True
        world.say(octets + b"QUIT\r\n")
    elif end == "shutdown":
        world.shell.shut_down()
    elif end == "close":
        world.peer.close()
    elif end == "reset":
        world.peer.reset()

    def ends():
        # The longest time limit is that of a silent client; who does not read is cut off some seconds later.
        world.clock.advance(20)
        return world.settles()

    world.line.until(ends)
    while world.zone.held or world.store.writing or world.store.finishing or world.store.committing:
        world.end_a_wait()
    world.clock.advance(0)
    assert world.clock.getDelayedCalls() == []
    assert all(spool.discarded or spool.finished for spool in world.store.spools)
