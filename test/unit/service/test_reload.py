"""From one generation to the next: what changes, what stays, and what is left alone when something is wrong."""

import itertools
from types import SimpleNamespace

import pytest
from support.listener import ListenerInMemory
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from mailgate.config.kind import SocketAddress
from mailgate.config.load import load, load_text
from mailgate.listen.sockets import CannotListen
from mailgate.service import listeners as listeners_module
from mailgate.service import reload as reload_module
from mailgate.service.build import Renewal, Unbuildable
from mailgate.service.listeners import Listeners
from mailgate.service.reload import Refused, Reloader, restart_only

SMTP = (
    "[server]\nhostname = 'mx.test'\n[server.listener.smtp]\nprotocol = 'smtp'\nbind = ['127.0.0.1:1', '127.0.0.1:2']\n"
)


def listener(id, *ports, protocol="smtp", more=""):
    binds = ", ".join(f"'127.0.0.1:{port}'" for port in ports)
    return f"[server.listener.{id}]\nprotocol = '{protocol}'\nbind = [{binds}]\n{more}\n"


def config(*tables):
    return "[server]\nhostname = 'mx.test'\n" + "".join(tables)


def factories(text):
    return tuple(ListenerInMemory(text).factories.values())


def at(port):
    return SocketAddress("127.0.0.1", port)


class System(Clock):
    """Sockets and their ports, as the listeners see them."""

    def __init__(self):
        super().__init__()
        self.numbers = itertools.count(100)
        self.open = {}
        self.serving = {}
        self.taken = set()
        self.full = False

    # As a socket is opened.
    def listening_socket(self, id, address, options):
        if address in self.taken or address in self.open.values():
            raise CannotListen(f"server.listener.{id}.bind: cannot listen on {address}: Address already in use")
        number = next(self.numbers)
        self.open[number] = address
        return SimpleNamespace(
            fileno=lambda: number, family=2, close=lambda: self.open.pop(number, None), options=options
        )

    # As a reactor.
    def adoptStreamPort(self, number, family, factory):
        if self.full:
            raise OSError(24, "Too many open files")
        key = next(self.numbers)
        self.serving[key] = (self.open[number], factory)
        return SimpleNamespace(stopListening=lambda: self.serving.pop(key) and None)

    def who(self):
        """Which factory answers at each address; each has exactly one."""
        found = {}
        for address, factory in self.serving.values():
            assert address not in found
            found[address] = factory
        assert sorted(self.open.values()) == sorted(found)
        return found


@pytest.fixture
def system(monkeypatch):
    made = System()
    monkeypatch.setattr(listeners_module, "listening_socket", made.listening_socket)
    return made


@pytest.fixture
def serving(system):
    """Listeners that take connections."""

    def serve(text):
        found = Listeners(system, system)
        found.open(factories(text))
        found.serve()
        return found

    return serve


# --- listeners -------------------------------------------------------------------
def test_a_listener_that_stays_keeps_its_factory_and_takes_the_new_rules(system, serving):
    listeners = serving(config(listener("smtp", 1, 2)))
    (factory,) = listeners.factories
    old = factory.site
    new = factories(config(listener("smtp", 1, 2, more="max-connections = 7")))
    listeners.change(new)
    assert listeners.factories == (factory,)
    assert factory.site is new[0].site is not old
    assert factory.tls is new[0].tls
    assert system.who() == {at(1): factory, at(2): factory}


def test_addresses_come_and_go(system, serving):
    listeners = serving(config(listener("smtp", 1, 2)))
    (factory,) = listeners.factories
    listeners.change(factories(config(listener("smtp", 2, 3), listener("lmtp", 4, protocol="lmtp"))))
    kept, added = listeners.factories
    assert kept is factory
    assert system.who() == {at(2): factory, at(3): factory, at(4): added}
    listeners.change(factories(config(listener("smtp", 2))))
    assert system.who() == {at(2): factory}
    assert [each.id for each in listeners.report()] == ["smtp"]


def test_an_address_changes_hands_without_being_closed(system, serving):
    listeners = serving(config(listener("smtp", 1), listener("other", 2)))
    before = dict(system.open)
    listeners.change(factories(config(listener("other", 1), listener("smtp", 2))))
    assert system.open == before
    assert {address.port: factory.listener_id for address, factory in system.who().items()} == {1: "other", 2: "smtp"}


def test_another_protocol_is_another_factory_on_the_same_socket(system, serving):
    listeners = serving(config(listener("in", 1)))
    (old,) = listeners.factories
    before = dict(system.open)
    listeners.change(factories(config(listener("in", 1, protocol="lmtp"))))
    (new,) = listeners.factories
    assert type(new) is not type(old)
    assert system.open == before
    assert system.who() == {at(1): new}


@pytest.mark.parametrize("fault", ["taken", "full"])
def test_what_cannot_be_opened_leaves_everything_as_it_was(system, serving, fault):
    listeners = serving(config(listener("smtp", 1), listener("other", 2)))
    before, sites = system.who(), [each.site for each in listeners.factories]
    if fault == "taken":
        system.taken.add(at(4))
    else:
        system.full = True
    with pytest.raises(CannotListen):
        listeners.change(factories(config(listener("other", 5), listener("more", 3, 4), listener("smtp", 1))))
    assert system.who() == before
    assert [each.site for each in listeners.factories] == sites


def test_connections_of_a_listener_that_is_gone_are_told_and_said_goodbye_to(system, serving):
    listeners = serving(config(listener("smtp", 1), listener("other", 2)))
    other = listeners.factories[1]

    class Connection:
        def shut_down(self):
            other.gone(self)

    other.connections.add(Connection())
    listeners.change(factories(config(listener("smtp", 1))))
    assert [(each.id, each.addresses, each.connections) for each in listeners.report()] == [
        ("smtp", ("127.0.0.1:1",), 0),
        ("other", (), 1),
    ]
    listeners.change(factories(config(listener("smtp", 1))))
    assert len(listeners.report()) == 2
    ended = []
    Deferred.fromCoroutine(listeners.stop(1)).addCallback(ended.append)
    assert ended == [None]
    assert not other.connections
    assert not system.open
    assert not system.serving


def test_clients_that_do_not_go_have_one_time_limit_for_all_listeners(system, serving):
    listeners = serving(config(listener("smtp", 1), listener("other", 2)))
    for factory in listeners.factories:
        factory.connections.add(type("Stuck", (), {"shut_down": lambda self: None})())
    ended = []
    Deferred.fromCoroutine(listeners.stop(30)).addCallback(ended.append)
    system.advance(29)
    assert not ended
    system.advance(1)
    assert ended == [None]


def test_at_the_start_too_all_is_opened_or_nothing(system):
    system.taken.add(at(2))
    listeners = Listeners(system, system)
    with pytest.raises(CannotListen):
        listeners.open(factories(config(listener("smtp", 1, 2))))
    assert not system.open


# --- what needs a restart ----------------------------------------------------------
STORE = "[storage]\ndata = 'q'\n[store.q]\ntype = 'sqlite'\npath = '/a/queue.sqlite'\n"


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ("", "", []),
        ("", "[session.connect]\ngreeting = \"'x'\"\n[queue]\npoll = '1s'\n", []),
        (STORE, STORE.replace("q'", "r'").replace("store.q", "store.r"), []),
        (STORE, STORE.replace("/a/", "/b/"), ["store.q.path", "queue.spool", "queue.maildrop", "decisions.path"]),
        ("", STORE, ["storage.data", "queue.spool", "queue.maildrop", "decisions.path"]),
        ("", "[queue]\nspool = '/s'\nlease = '2m'\n", ["queue.spool", "queue.lease"]),
        ("", "[decisions]\npath = '/d'\n", ["decisions.path"]),
        ("", "[management]\nsocket = '/c'\n", ["management.socket"]),
        ("", "[server.listener.smtp.socket]\nbacklog = 5\n", ["server.listener.smtp.socket.backlog"] * 2),
        ("", "[server.socket]\nlinger = '5s'\n", ["server.listener.smtp.socket.linger"] * 2),
        ("", "[server.listener.more]\nprotocol='smtp'\nbind='127.0.0.1:9'\nsocket.backlog = 5\n", []),
    ],
)
def test_what_needs_a_restart(old, new, keys):
    old, new = load_text(SMTP + old).settings, load_text(SMTP + new).settings
    told = list(restart_only(old, new))
    assert [".".join(key) for key, _ in told] == keys
    assert all("needs a restart" in problem for _, problem in told)


def test_an_address_with_other_options_under_another_name_is_noticed():
    old = load_text(config(listener("smtp", 1))).settings
    new = load_text(config(listener("other", 1, more="socket.nodelay = false"))).settings
    ((key, problem),) = restart_only(old, new)
    assert key[2:] == ("other", "socket", "nodelay")
    assert "from true to false for 127.0.0.1:1" in problem


# --- the change itself --------------------------------------------------------------
class Ring:
    def __init__(self):
        self.calls = []

    def start(self):
        self.calls.append("start")

    def keep(self, *, size_octets, age, secrets):
        self.calls.append(size_octets)


class World:
    """A reloader over a program of recorders; the file is read when `turn` is called."""

    def __init__(self, path, monkeypatch):
        self.path = path
        self.calls = []
        self.problems = ()
        self.cannot = None
        self.ring = None
        self.waiting = []
        monkeypatch.setattr(reload_module, "blocking", lambda reactor: self.run)
        monkeypatch.setattr(reload_module, "renew", self.renew)
        monkeypatch.setattr(reload_module, "settle_memory", lambda: None)
        record = self.calls.append
        self.program = SimpleNamespace(
            reactor=None,
            ring=None,
            store=SimpleNamespace(adjust=lambda inline, free, synced: record(("store", inline, synced))),
            client_tls=SimpleNamespace(forget=lambda: record(("trust",))),
            wake=SimpleNamespace(use=lambda generation, pace: record(("wake", generation))),
            sweeper=SimpleNamespace(use=lambda generation, rounds: record(("sweeper", generation, rounds))),
            pickup=SimpleNamespace(use=lambda rules: record(("pickup", rules))),
        )
        self.write("")
        self.reloader = Reloader(
            self.program, SimpleNamespace(change=self.change), load(str(path)), str(path), wall=lambda: 5.0
        )

    def write(self, text):
        self.path.write_text(SMTP + text)

    def run(self, work):
        waiting = Deferred()
        self.waiting.append((waiting, work))
        return waiting

    def turn(self):
        waiting, work = self.waiting.pop(0)
        maybeDeferred(work).chainDeferred(waiting)

    def renew(self, program, settings, secrets):
        if self.problems:
            raise Unbuildable(self.problems)
        return Renewal("factories", settings.server.hostname, "rules", "pace", "rounds", self.ring)

    def change(self, factories):
        if self.cannot:
            raise CannotListen(self.cannot)
        self.calls.append(("listeners", factories))

    def ask(self):
        ended = []
        Deferred.fromCoroutine(self.reloader.reload("test")).addBoth(ended.append)
        return ended

    def refused(self):
        """What a refused reload says; nothing was touched by it."""
        before, in_use = list(self.calls), self.reloader.in_use
        ended = self.ask()
        self.turn()
        assert ended[0].check(Refused)
        assert self.calls == before
        assert self.reloader.in_use is in_use
        return ended[0].value.problems


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path / "m.toml", monkeypatch)


def test_everything_takes_the_new_generation_at_once(world):
    world.write("[queue]\ninline-size = 1000\n")
    ended = world.ask()
    assert world.calls == []
    world.turn()
    assert world.calls == [
        ("listeners", "factories"),
        ("store", 1000, True),
        ("trust",),
        ("wake", "mx.test"),
        ("sweeper", "mx.test", "rounds"),
        ("pickup", "rules"),
    ]
    assert ended[0] is world.reloader.in_use
    assert (ended[0].number, ended[0].since) == (2, 5.0)
    assert ended[0].settings.queue.inline_size == 1000


def test_every_error_of_a_broken_file_is_told(world):
    world.write("nosuch = 1\n[queue]\nspol = 'x'\npoll = true\n")
    problems = world.refused()
    assert len(problems) == 3
    assert all(problem.startswith(f"{world.path}:") for problem in problems)


def test_a_file_that_cannot_be_read_is_refused(world):
    world.path.unlink()
    assert "cannot be read" in world.refused()[0]


def test_what_cannot_be_built_or_opened_is_refused(world):
    world.problems = ("directory.x: bad", "store.y: bad")
    assert world.refused() == (f"{world.path}: directory.x: bad", f"{world.path}: store.y: bad")
    world.problems, world.cannot = (), "server.listener.smtp.bind: no"
    assert world.refused() == (f"{world.path}: server.listener.smtp.bind: no",)


def test_what_needs_a_restart_is_refused_with_its_line(world):
    world.write("[queue]\nspool = '/s'\n")
    (problem,) = world.refused()
    assert problem.startswith(f"{world.path}:7: queue.spool: changed from ")
    assert "restart mailgate" in problem


def test_reloads_have_their_turns_and_a_refused_one_does_not_stop_the_next(world):
    world.write("nosuch = 1\n")
    first, second = world.ask(), world.ask()
    assert len(world.waiting) == 1
    world.turn()
    assert first[0].check(Refused)
    assert not second
    world.write("")
    world.turn()
    assert second[0].number == 2


def test_a_reload_that_is_under_way_when_mailgate_stops_changes_nothing(world):
    ended = world.ask()
    world.reloader.close()
    world.turn()
    assert "stopping" in str(ended[0].value)
    assert world.calls == []


def test_the_record_of_decisions_is_begun_once_and_goes_on(world):
    world.ring = Ring()
    world.write("[decisions]\nmax-size = '1mb'\n")
    world.ask()
    world.turn()
    assert world.program.ring is world.ring
    assert world.ring.calls == ["start", 1 << 20]
    world.ring = None
    world.ask()
    world.turn()
    assert world.program.ring.calls == ["start", 1 << 20]


def test_a_mistake_of_ours_gives_the_turn_back(world, monkeypatch):
    monkeypatch.setattr(reload_module, "load", lambda file: 1 / 0)
    ended = world.ask()
    world.turn()
    assert ended[0].check(ZeroDivisionError)
    monkeypatch.undo()
    assert not world.reloader._turn.locked
