"""One policy test: the driver of live sessions, spoken to without a socket.

The same `Driver`, protocol core, stages and acceptance as on a listener; only
what lies outside is another: ports that answer from the test's table, a store
that keeps nothing, and a clock that goes on when somebody waits for it. A shell
like `listen`: the Deferreds of the driver are waited for here.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mailgate.config.schema.server import HANDED_IN
from mailgate.config.schema.settings import Settings
from mailgate.decisions.entry import ALL_POLICIES, Kind, Step, Trail, plain
from mailgate.deliver.plan import schedule_table
from mailgate.mail.reply import Reply
from mailgate.mail.session import Identity, Session, Tls
from mailgate.queue.enqueue import Schedules
from mailgate.queue.item import NewMessage
from mailgate.queue.quota import Quotas
from mailgate.rehearsal.case import Case, Command
from mailgate.rehearsal.ports import Configured, Questions, ports
from mailgate.rehearsal.store import NoStore
from mailgate.session.accept import Acceptance
from mailgate.session.driver import Driver
from mailgate.session.site import listener_site
from mailgate.session.step import Step as Answered
from mailgate.session.step import Then
from mailgate.session.trace_id import new_trace_id
from mailgate.wire.smtp.command import Pending
from mailgate.wire.smtp.server import ServerConnection

_REPLY = re.compile(rb"([2-5][0-9]{2})[ -](?:([245]\.[0-9]{1,3}\.[0-9]{1,3}) )?([^\r\n]*)")
_VERB = re.compile(r"(?i)(EHLO|HELO|LHLO)(?: |$)")
_TLS = Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384")
_CLIENT_PORT = 40000
_PASSWORD = "rehearsal"
_USER = "root"
"""Who hands in mail where a test does not say."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a stage answered, and what was decided for it."""

    stage: str
    about: str
    """The recipient, for RCPT."""
    code: int
    enhanced: str
    text: str
    steps: tuple[Step, ...]

    @property
    def verdict(self) -> str:
        """`accept`, `discard`, `tempfail` or `reject`."""
        if self.code >= 500:
            return "reject"
        if self.code >= 400:
            return "tempfail"
        decisive = self.decisive
        return "discard" if decisive is not None and decisive.said.startswith("discard") else "accept"

    @property
    def decisive(self) -> Step | None:
        """The decision that the answer follows from; None where nothing had to be decided.

        For what passed it is the last rule that was evaluated.
        """
        steps = self.steps
        if not steps or self.code >= 400 or steps[-1].said.startswith("discard"):
            return steps[-1] if steps else None
        for number in range(len(steps) - 1, -1, -1):
            # What is evaluated behind the last chain is no part of its verdict.
            if steps[number].rule == ALL_POLICIES:
                rules = [step for step in steps[:number] if step.rule != ALL_POLICIES]
                return rules[-1] if rules else steps[number]
        return steps[-1]


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What came of a test's session."""

    stages: Mapping[str, tuple[Said, ...]]
    queued: NewMessage | None
    missing: tuple[str, ...]
    """Questions of the policy that the test has no answer for."""
    ended: str
    """Why no further command was sent; "" where all were."""

    @property
    def header(self) -> tuple[str, ...]:
        """The fields that were put above the message."""
        if self.queued is None:
            return ()
        names = (line.partition(b":")[0] for line in self.queued.prefix.split(b"\r\n") if line[:1].strip())
        return tuple(name.decode("ascii", "replace") for name in names)


def rehearse(settings: Settings, case: Case, configured: Configured) -> Rehearsed:
    """Play one test. Its listener has to be one of the settings'."""
    return _Session(settings, case, configured).run()


class _Ended(Exception):
    """The client has nothing more to say."""


class _Session:
    """A client that says what the test gives, one command after the other."""

    def __init__(self, settings: Settings, case: Case, configured: Configured) -> None:
        self._case = case
        self._given = case.given
        self._questions = Questions()
        self._clock = Clock()
        self._record = _Record()
        self._store = NoStore(self._given.answers.quotas)
        self._stages: dict[str, list[Said]] = {}
        self._known: dict[int, tuple[Trail, int]] = {}
        answers = self._given.answers
        found, _ = ports(settings, answers, configured, self._questions)
        begin = answers.epoch_seconds
        for id in sorted(answers.quotas.keys() - settings.queue.quota):
            self._questions.unknown(f"answers.quotas.{id}", f'no quota "{id}" is configured')

        def wall() -> float:
            return begin + self._clock.seconds()

        schedules = Schedules(settings.queue.strategy.schedule, schedule_table(settings.queue.schedule), found.outside)
        quotas = Quotas(settings.queue.quota, found.outside)
        self._site = listener_site(
            settings,
            case.listener,
            ports=found,
            store=self._store,
            acceptance=Acceptance(self._store, schedules, quotas, wall, _nothing),
            ring=self._record,
            clock=self._clock,
            wall=wall,
        )
        listener = self._site.listener
        local = self._given.local
        handed_in = case.listener == HANDED_IN
        self._hostname = settings.server.hostname
        session = Session(
            id=new_trace_id(),
            listener=case.listener,
            protocol=listener.protocol,
            remote_ip=self._given.peer or ("127.0.0.1" if handed_in else "192.0.2.1"),
            remote_port=0 if handed_in else _CLIENT_PORT,
            local_ip=local.host if local is not None else listener.bind[0].host,
            local_port=(local.port if local is not None else 0) or (0 if handed_in else listener.bind[0].port),
            hostname=listener.hostname or "localhost",
            tls_offered=listener.tls.enable or listener.tls.implicit,
        )
        self._core = ServerConnection(lmtp=session.is_lmtp)
        self._driver = Driver(self._site, self._core, session)

    def run(self) -> Rehearsed:
        ended = ""
        try:
            self._play()
        except _Ended as end:
            ended = str(end)
        self._driver.lost()
        stages = {stage: tuple(said) for stage, said in self._stages.items()}
        return Rehearsed(stages, self._store.queued, tuple(self._questions.missing), ended)

    def _play(self) -> None:
        given = self._given
        implicit = self._site.listener.tls.implicit
        if implicit:
            self._driver.secured(_TLS)
        if self._case.listener == HANDED_IN:
            self._driver.identified(Identity.of_user(given.login or _USER, self._hostname))
        self._go_on(self._heard("connect", "", self._waited(self._driver.open())))
        name = given.helo.name if given.helo is not None else None
        if name is None and self._case.listener == HANDED_IN:
            name = self._hostname
        if name is not None:
            self._greet(name)
            if given.tls and not implicit:
                self._start_tls()
                self._greet(name)
        if given.login is not None and self._case.listener != HANDED_IN:
            token = base64.b64encode(f"\0{given.login}\0{_PASSWORD}".encode()).decode("ascii")
            self._go_on(self._say("auth", f"AUTH PLAIN {token}"))
        if given.mail is not None:
            self._go_on(self._say("mail", f"MAIL FROM:{_argument(given.mail)}"))
        accepted = [
            self._say("rcpt", f"RCPT TO:{_argument(recipient)}", recipient.path).code < 400
            for recipient in given.rcpt or ()
        ]
        if given.message is None:
            return
        if accepted and not any(accepted):
            raise _Ended("no recipient was accepted")
        self._message(given.message.octets)

    def _greet(self, name: str) -> None:
        verb = "LHLO" if self._driver.session.is_lmtp else "EHLO"
        self._stages.pop("ehlo", None)
        self._go_on(self._say("ehlo", name if _VERB.match(name) else f"{verb} {name}"))

    def _start_tls(self) -> None:
        self._go_on(self._say("starttls", "STARTTLS"))
        self._core.tls_started()
        step = self._waited(self._driver.tls_started(_TLS))
        if step.octets:
            self._go_on(self._heard("starttls", "", step))

    def _message(self, octets: bytes) -> None:
        before = self._exchange(b"DATA\r\n")
        if not before.octets.startswith(b"354"):
            self._heard("data", "", before)
            return
        stuffed = re.sub(rb"(?m)^\.", b"..", octets)
        self._heard("data", "", self._exchange(stuffed + b".\r\n"))

    # --- one command --------------------------------------------------------------

    def _say(self, stage: str, command: str, about: str = "") -> Said:
        return self._heard(stage, about, self._exchange(command.encode("utf-8", "surrogateescape") + b"\r\n"))

    def _exchange(self, octets: bytes) -> Answered:
        """Hand octets to the core and answer every event they hold."""
        core, driver = self._core, self._driver
        core.receive(octets)
        out = b""
        while not isinstance(event := core.next_event(), Pending):
            step = self._waited(driver.take(event))
            out += step.octets
            if step.then is not Then.GO_ON:
                return Answered(out, step.then)
        return Answered(out)

    def _waited(self, step: Answered | Deferred[Answered]) -> Answered:
        """Let time pass until the driver has its answer."""
        if not isinstance(step, Deferred):
            return step
        found: list[Answered | Failure] = []
        step.addBoth(found.append)
        while not found:
            # Nothing outside is ever waited for: the next timer leads on.
            due = min(call.getTime() for call in self._clock.getDelayedCalls())
            self._clock.advance(max(due - self._clock.seconds(), 0))
        answer = found[0]
        if isinstance(answer, Failure):
            answer.raiseException()
            raise AssertionError
        return answer

    def _heard(self, stage: str, about: str, step: Answered) -> Said:
        reply = _REPLY.match(step.octets)
        if reply is None:
            raise _Ended(f"{stage} was not answered")
        code, enhanced, text = reply.groups()
        said = Said(
            stage, about, int(code), (enhanced or b"").decode(), text.decode("utf-8", "replace"), self._decided()
        )
        self._stages.setdefault(stage, []).append(said)
        if step.then is Then.CLOSE:
            raise _Ended(f"{stage} was answered {said.code} and the connection closed")
        return said

    def _go_on(self, said: Said) -> None:
        """A client that is refused before its transaction has begun gives up."""
        if said.code >= 400:
            raise _Ended(f"{said.stage} was answered {said.code}")

    def _decided(self) -> tuple[Step, ...]:
        """What was decided since the last command."""
        steps: list[Step] = []
        for trail in dict.fromkeys((*self._record.taken(), *self._driver.trails)):
            _, known = self._known.get(id(trail), (trail, 0))
            steps += (_read_back(*step) for step in trail.steps[known:])
            self._known[id(trail)] = trail, len(trail.steps)
        return tuple(steps)


def _read_back(
    stage: str, rule: str, place: str, reads: tuple[tuple[str, object], ...], said: str, micros: int
) -> Step:
    return Step(stage, rule, place, tuple((name, plain(value)) for name, value in reads), said, micros)


def _argument(command: Command) -> str:
    path = command.path if command.path.startswith("<") else f"<{command.path}>"
    return f"{path} {command.parameters}".rstrip()


def _nothing() -> None:
    """Nothing is ever delivered."""


class _Record:
    """Hands finished trails on instead of writing them."""

    def __init__(self) -> None:
        self._trails: list[Trail] = []

    def record(
        self,
        kind: Kind,
        trail: Trail,
        session: Session,
        *,
        replies: Sequence[Reply],
        reason: str = "",
        queue_id: int | None = None,
        size_octets: int | None = None,
    ) -> None:
        self._trails.append(trail)

    def taken(self) -> list[Trail]:
        taken, self._trails = self._trails, []
        return taken
