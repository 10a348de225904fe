"""Delivery without a network: a configuration text, a zone, scripted hosts, a clock."""

from __future__ import annotations

from support.work_store import WorkStore
from support.zone import Zone
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from mailgate.config.load import load_text
from mailgate.deliver.fence import Fence
from mailgate.deliver.maildir import LocalDelivery
from mailgate.deliver.nexthop import HopFailure
from mailgate.deliver.plan import build_plan, schedule_table
from mailgate.deliver.results import Generation
from mailgate.deliver.sweep import Rounds, Sweeper
from mailgate.deliver.unit import Surroundings, UnitAttempt
from mailgate.deliver.wake import Pace, Wake, pause_with
from mailgate.mail.status import Delayed, Delivered, ErrorKind, Failed, RecipientStatus, RemoteReply
from mailgate.mail.unknown import Unknown
from mailgate.queue.enqueue import Schedules
from mailgate.reports.submit import DsnRules, Notifier

SERVER = '[server]\nhostname = "mx.example.net"\n'
OK = RemoteReply(250, "2.0.0", "OK")


def delivered(host="mx.example.org"):
    return Delivered(RecipientStatus(host, reply=OK))


def refused(code=550, enhanced="5.1.1", text="No such user", host="mx.example.org"):
    status = RecipientStatus(
        host, ErrorKind.UNEXPECTED_REPLY, command="RCPT TO:<x>", reply=RemoteReply(code, enhanced, text)
    )
    return Failed(status) if code >= 500 else Delayed(status)


def no_connection(text="Connection refused", host="mx.example.org"):
    return Delayed(RecipientStatus(host, ErrorKind.CONNECTION, text))


class Outside:
    """What expressions ask: local domains, keys; `unknown` names what does not answer."""

    def __init__(self, local=(), keys=None):
        self.local = set(local)
        self.keys = dict(keys or {})
        self.unknown = {}

    async def is_local_domain(self, directory, domain):
        return self.unknown.get("directory", domain in self.local)

    async def is_local_address(self, directory, address):
        return self.unknown.get("directory", False)

    async def key_get(self, store, key):
        return self.unknown["store"] if "store" in self.unknown else self.keys.get(key, "")

    async def key_exists(self, store, key):
        return self.unknown.get("store", key in self.keys)

    async def dns_query(self, name, type):
        return Unknown("dns", "not here")


class Remote:
    """Hosts by script: an outcome for each address, or for all; `slow` attempts wait for `finish`."""

    def __init__(self):
        self.outcomes = {}
        self.default = delivered()
        self.runs = []
        self.hops = []
        self.slow = None
        self.crash = None
        self.cancelled = 0

    async def run(self, item, recipients, hops, watch=None):
        self.runs.append((item, [one.address for one in recipients]))
        found = [hop async for hop in hops]
        self.hops.append(found)
        if self.slow is not None:
            waiting = Deferred()
            self.slow.append(waiting)
            try:
                await waiting
            except BaseException:
                self.cancelled += 1
                raise
        if self.crash is not None:
            raise self.crash
        failures = [hop.outcome for hop in found if isinstance(hop, HopFailure)]
        if len(failures) == len(found):
            return {one.index: failures[-1] for one in recipients}
        return {one.index: self.outcomes.get(one.address, self.default) for one in recipients}


class World:
    """Everything around an attempt."""

    def __init__(self, toml="", maildirs=None, pace=None, local=()):
        self.clock = Clock()
        self.store = WorkStore()
        self.zone = (
            Zone().a("example.org", "192.0.2.1").a("other.example", "192.0.2.2").a("sender.example", "192.0.2.3")
        )
        self.outside = Outside(local)
        self.remote = Remote()
        self.events = []
        self.chance = 0.0
        self.pace = pace or Pace()
        self.around = Surroundings(
            store=self.store,
            remote=self.remote,
            notifier=Notifier(self.store, self.wall_ms),
            wall_ms=self.wall_ms,
            chance=lambda: self.chance,
            pause=pause_with(self.clock),
        )
        self.configure(toml)

    def configure(self, toml):
        """Read another configuration; attempts made from now on use it."""
        self.settings = load_text(SERVER + toml).settings
        queue, report = self.settings.queue, self.settings.report
        schedules = Schedules(queue.strategy.schedule, schedule_table(queue.schedule), self.outside)

        async def run_blocking(work, *arguments):
            return work(*arguments)

        async def split(address):
            return address.rpartition("@")[0].partition("+")[::2]

        local = LocalDelivery(self.store, run_blocking, split, "mx.example.net")
        rules = DsnRules(report.submitter, report.dsn.from_name, report.dsn.from_address, report.dsn.max_size)
        self.generation = Generation(build_plan(self.settings, schedules), local, rules, self.outside, self.zone)
        return self

    def wall_ms(self):
        return round(self.clock.seconds() * 1000)

    def attempt(self, item, queue=None, fence=None):
        """Claim a unit and attempt it; what `run` answers or raises, None while it waits."""
        lease = self.store.lease(item, queue)
        made = UnitAttempt(lease, self.around, self.generation, fence or Fence())
        found = []
        self.last = maybeDeferred(lambda: Deferred.fromCoroutine(made.run())).addBoth(found.append)
        return found[0] if found else None

    def again(self, seconds, id=0x1234, queue=None):
        """Let time pass and attempt the message again."""
        self.clock.advance(seconds)
        return self.attempt(self.store.items[id], queue)

    def wake(self):
        return Wake(self.around, self.generation, self.clock, self.pace)

    def sweeper(self, wake=lambda: None, rounds=None):
        return Sweeper(self.around, self.generation, self.clock, wake, rounds or Rounds())

    def one(self, index=0, id=0x1234):
        """A recipient as the store has it."""
        return self.store.items[id].recipients[index]

    # --- events ---------------------------------------------------------------------------

    def __enter__(self):
        globalLogPublisher.addObserver(self._observe)
        return self

    def __exit__(self, *_):
        globalLogPublisher.removeObserver(self._observe)

    def _observe(self, event):
        if "event" in event:
            self.events.append(event)

    def told(self, name):
        """The events of this name."""
        return [event for event in self.events if event["event"] == name]
