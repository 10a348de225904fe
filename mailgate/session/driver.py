"""One session: events from the protocol core become stages, verdicts become replies.

The only place where a `Session` or `Transaction` is replaced; the message that
is coming in is kept by `incoming.py`, the turns of AUTH by `login.py`, and what
is said, logged and recorded goes through `telling.py`. `take` answers
each event with a `Step` (octets to send, and what to do then), at once while
nothing waits, else by a Deferred. While an event is not answered the core
gives no further one, so replies leave in the order of their commands (I2).

What goes wrong in a stage without being a verdict becomes 451 4.3.0 here, is
logged with the session's id, and leaves the transaction as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import deferLater

from mailgate.decisions.entry import ALL_POLICIES, QUEUED, Kind, Trail
from mailgate.dns.budget import Budget
from mailgate.expr.choice import Rule
from mailgate.mail import replies
from mailgate.mail.envelope import NO_MAIL_PARAMETERS
from mailgate.mail.header import Header
from mailgate.mail.path import Path
from mailgate.mail.reply import Reply
from mailgate.mail.session import Identity, Session, Stage, Tls
from mailgate.mail.transaction import Transaction
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import PROCEED, Cause, Discard, Proceed, Reason, Refuse, Verdict
from mailgate.session import apply, login
from mailgate.session.chain import VERDICTS, Policy, run, settle
from mailgate.session.context import (
    AuthContext,
    ConnectContext,
    Context,
    DataContext,
    EhloContext,
    MailContext,
    MessageContext,
    RcptContext,
    VrfyContext,
    decided,
)
from mailgate.session.incoming import Incoming
from mailgate.session.login import Login, NotLoggedIn
from mailgate.session.parameters import (
    ConnectionParameters,
    TransactionParameters,
    Unanswered,
    authenticated_parameters,
    connection_parameters,
    transaction_parameters,
)
from mailgate.session.prepared import Prepared
from mailgate.session.site import Site
from mailgate.session.stages import auth, connect, data, ehlo, rcpt, vrfy
from mailgate.session.step import NOTHING, Step, Then
from mailgate.session.telling import Telling
from mailgate.session.unanswered import unanswered
from mailgate.wire.smtp.command import (
    Auth,
    AuthResponse,
    Bdat,
    ChunkEnd,
    Data,
    DataChunk,
    DataEnd,
    Ehlo,
    Event,
    Expn,
    Help,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Rejected,
    Rset,
    StartTls,
    Vrfy,
)
from mailgate.wire.smtp.extension import ehlo_reply, helo_reply
from mailgate.wire.smtp.sasl import Challenge
from mailgate.wire.smtp.sasl import Step as Turn
from mailgate.wire.smtp.server import BareNewline, ServerConnection

C = TypeVar("C", bound=Context)


_REPLIES_KEPT = 64


class Driver:
    """The decisions of one connection, in order."""

    def __init__(self, site: Site, core: ServerConnection, session: Session) -> None:
        self._site = site
        self._budget = Budget()
        self._ports = site.ports.for_session(self._budget)
        self._core = core
        self.session = session
        self.parameters: ConnectionParameters | None = None
        """Known once `open` has answered with a greeting."""
        self.committing = False
        """A message is on its way into the queue: its outcome must be awaited."""
        self._given_up = False
        self._prepared: Prepared | None = site.in_clear
        """None once the client has logged in."""
        self._rules = site.in_clear.rules
        self._chains = site.in_clear.chains
        self._messages = 0
        self._transaction: Transaction | None = None
        self._limits: TransactionParameters | None = None
        self._login = Login()
        self._incoming = Incoming(site.store)
        self._tell = Telling(site, core, self._incoming, session.id)
        self._farewell: tuple[Reply, Reason] | None = None
        """The last reply to a client whose transaction ends with it."""

    # --- what the shell calls ---------------------------------------------------

    def open(self) -> Step | Deferred[Step]:
        """The connection is there (and in TLS, where TLS is implicit): the greeting, or a refusal and the end."""
        return settle(self._connect(), self._cannot_go_on)

    def take(self, event: Event) -> Step | Deferred[Step]:
        """Answer one event of the core."""
        if type(event) is DataChunk:
            return self._chunk(event.octets)
        if type(event) is Bdat:
            return self._bdat(event)
        return settle(_TAKERS[type(event)](self, event), self._unexpected)

    def identified(self, identity: Identity) -> None:
        """The client is known: by AUTH, or before the greeting where the system itself says who it is."""
        self.session = replace(self.session, identity=identity)
        self._prepared = None
        self._rules = self._site.rules
        self._chains = self._site.chains

    def secured(self, tls: Tls) -> None:
        """TLS is on before the greeting (implicit TLS)."""
        self.session = replace(self.session, tls=tls)
        self._use(self._site.in_tls)

    def tls_started(self, tls: Tls) -> Step | Deferred[Step]:
        """TLS is on after STARTTLS: what the client said before is forgotten (RFC 3207 4.2)."""
        self._end_transaction("starttls")
        self._login.end()
        self.session = self.session.secured(tls)
        self._use(self._site.in_tls)
        return settle(self._after_tls(), self._cannot_go_on)

    def _use(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._rules = prepared.rules
        self._chains = prepared.chains

    def farewell(self, reply: Reply, reason: Reason) -> bytes:
        """A last reply outside the order of commands: time-outs, limits, shutdown."""
        trail = self._tell.open_trail
        refusal = Refuse(reply, reason, cause=self._limit_reached(reason))
        decided(trail, "session", "farewell", refusal)
        self._tell.log_refusal(self.session, "session", reply, reason.value, "", trail.trace_id)
        if trail is self._tell.tx_trail:
            self._farewell = reply, reason
        elif not reply.is_positive:
            # Only a refusal has an id that somebody may ask for.
            self._tell.record(self.session, Kind.SESSION, trail, (reply,), reason.value)
        return reply.wire(trail.trace_id)

    def _limit_reached(self, reason: Reason) -> Cause | None:
        """Which key ends a session that has lasted too long, sent too much or said nothing."""
        rules = self._rules
        limits: dict[Reason, Rule] = {
            Reason.INACTIVE: rules.timeout,
            Reason.TIME_LIMIT: rules.duration,
            Reason.TRANSFER_LIMIT: rules.transfer_limit,
        }
        rule = limits.get(reason)
        if rule is None:
            return None
        return self._session_context(Stage.CONNECT).cause(rule)

    @property
    def trails(self) -> tuple[Trail, ...]:
        """What has been decided and is not recorded yet: of the session, and of an open transaction."""
        return self._tell.trails

    def give_up(self) -> None:
        """What is being decided will be cancelled, and its answer would not be sent any more."""
        self._given_up = True

    def lost(self) -> None:
        """The connection is gone: an unfinished transaction leaves nothing behind."""
        self._given_up = True
        self._end_transaction("connection lost")
        self._login.end()

    # --- judging ----------------------------------------------------------------

    def _unexpected(self, failure: Exception, close: bool = False) -> Step:
        """Turn what nobody foresaw, and is being treated, into 451 (I4, I5); raise it on where nobody listens."""
        if self._given_up:
            raise failure
        self._tell.log_unexpected()
        reply = replies.CANNOT_SERVE if close else replies.TRY_LATER
        trail = self._tell.open_trail
        # A stage that takes longer than the client would wait.
        cause = self._limit_reached(Reason.INACTIVE) if isinstance(failure, TimeoutError) else None
        detail = type(failure).__name__
        decided(trail, "session", "unexpected", Refuse(reply, Reason.UNEXPECTED, detail=detail, cause=cause))
        if trail is self._tell.trail:
            self._tell.record(self.session, Kind.SESSION, trail, (reply,), Reason.UNEXPECTED.value)
        return self._tell.say(reply, Then.CLOSE if close else Then.GO_ON)

    def _cannot_go_on(self, failure: Exception) -> Step:
        """The same where there is no session without an answer: 421."""
        return self._unexpected(failure, close=True)

    def _judge(self, policies: tuple[Policy[C], ...], context: C) -> Verdict | Deferred[Verdict]:
        """Run a stage's chain and add what it cost to the trail."""
        context.trail.resume()
        parameters = self.parameters
        assert parameters is not None
        verdict = run(policies, context, parameters.timeout, self._site.clock)
        if verdict is PROCEED:
            context.trail.decided(context.stage._value_, ALL_POLICIES, "", (), "proceed")
        elif not isinstance(verdict, Refuse):
            return self._judged(verdict, context)
        return verdict

    def _judged(self, verdict: Verdict | Deferred[Verdict], context: C) -> Verdict | Deferred[Verdict]:
        """The same for a chain that changes something, or waits."""
        if isinstance(verdict, VERDICTS):
            if type(verdict) is Proceed:
                context.trail.decided(context.stage._value_, ALL_POLICIES, "", (), "proceed")
            return verdict
        return verdict.addCallback(self._judged, context)

    def _session_context(self, stage: Stage) -> ConnectContext:
        return ConnectContext(self.session, self._rules, self._ports, self._tell.trail, stage)

    # --- connect ----------------------------------------------------------------

    async def _connect(self) -> Step:
        self._tell.trail.resume()
        refusal = await self._evaluate_parameters()
        if refusal is not None:
            return self._tell.refuse(self.session, refusal, "connect", self._tell.trail, by="limits_are_known")
        context = self._session_context(Stage.CONNECT)
        name = await connect.hostname(context, self._site.listener.hostname)
        if isinstance(name, Refuse):
            return self._tell.refuse(self.session, name, "connect", self._tell.trail, by="hostname")
        if name != self.session.hostname:
            self.session = replace(self.session, hostname=name)
            context = replace(context, session=self.session)
        greeting = await self._greet(context)
        if isinstance(greeting, Refuse):
            return self._tell.refuse(self.session, greeting, "connect", self._tell.trail, by="greeting")
        return Step(greeting.wire())

    async def _greet(self, context: ConnectContext) -> Reply | Refuse:
        """The greeting; the one made before where it depends on nothing but the host name."""
        prepared, configured = self._prepared, self._site.listener.greeting
        fixed = prepared is not None and (bool(configured) or self._rules.connect.greeting.fixed is not None)
        if prepared is None or not fixed:
            return await connect.greeting(context, configured)
        kept = prepared.greetings.get(self.session.hostname)
        if kept is not None:
            return kept
        made = await connect.greeting(context, configured)
        if isinstance(made, Reply) and len(prepared.greetings) < _REPLIES_KEPT:
            prepared.greetings[self.session.hostname] = made
        return made

    async def _evaluate_parameters(self) -> Refuse | None:
        """Evaluate the session's parameters, at connect and again after STARTTLS."""
        parameters = self._prepared.connection if self._prepared is not None else None
        if parameters is None:
            context = self._session_context(Stage.CONNECT)
            evaluated = await connection_parameters(self._rules, context)
            if isinstance(evaluated, Unanswered):
                return connect.cannot_serve(evaluated.unknown, context.cause(evaluated.rule))
            parameters = evaluated
        self.parameters = parameters
        self._core.bare_newline = BareNewline.NORMALIZE if parameters.normalize_newlines else BareNewline.REJECT
        return None

    # --- EHLO, STARTTLS ---------------------------------------------------------

    async def _ehlo(self, event: Ehlo) -> Step:
        assert self.parameters is not None
        context = EhloContext(
            self.session,
            self._rules,
            self._ports,
            self._tell.trail,
            Stage.EHLO,
            self.parameters,
            event.verb,
            event.name,
        )
        judged = self._judge(ehlo.POLICIES, context)
        verdict = judged if isinstance(judged, VERDICTS) else await judged
        if not isinstance(verdict, Proceed):
            return self._tell.refuse(self.session, verdict, "ehlo", self._tell.trail, event.name)
        greeted = self.session.greeted(event.name or "null", event.verb != "HELO")
        if event.verb == "HELO":
            answer = self._answer_helo()
        else:
            offered = await self._offer(context, greeted)
            if isinstance(offered, Refuse):
                return self._tell.refuse(self.session, offered, "ehlo", self._tell.trail, event.name, by="capabilities")
            answer = offered
        self._end_transaction("ehlo")
        self.session = greeted
        return self._tell.say(answer)

    def _answer_helo(self) -> Reply:
        hostname, prepared = self.session.hostname, self._prepared
        kept = prepared.helo_replies.get(hostname) if prepared is not None else None
        if kept is not None:
            return kept
        answer = helo_reply(hostname)
        if prepared is not None and len(prepared.helo_replies) < _REPLIES_KEPT:
            prepared.helo_replies[hostname] = answer
        return answer

    async def _offer(self, context: EhloContext, greeted: Session) -> Reply | Refuse:
        """The reply that lists the capabilities; the one made before where it is always the same."""
        prepared, hostname = self._prepared, self.session.hostname
        if prepared is not None and (kept := prepared.ehlo_replies.get(hostname)) is not None:
            return kept
        offered = await ehlo.capabilities(replace(context, session=greeted))
        if isinstance(offered, Refuse):
            return offered
        answer = ehlo_reply(hostname, offered, int(self._site.wall()))
        # FUTURERELEASE tells a moment: it is never the same.
        fixed = prepared is not None and prepared.ehlo_is_fixed and offered.future_release is None
        # A host name may be made of the client's address: there is no end of those.
        if fixed and prepared is not None and len(prepared.ehlo_replies) < _REPLIES_KEPT:
            prepared.ehlo_replies[hostname] = answer
        return answer

    async def _start_tls(self, event: StartTls) -> Step:
        if self.session.tls is not None:
            refusal = Refuse(replies.TLS_ALREADY, Reason.SEQUENCE)
            return self._tell.refuse(self.session, refusal, "starttls", self._tell.trail, by="tls_is_off")
        if not self.session.tls_offered:
            refusal = Refuse(replies.TLS_NOT_OFFERED, Reason.SEQUENCE)
            return self._tell.refuse(self.session, refusal, "starttls", self._tell.trail, by="tls_is_offered")
        return self._tell.say(replies.TLS_READY, Then.START_TLS)

    async def _after_tls(self) -> Step:
        self._tell.trail.resume()
        refusal = await self._evaluate_parameters()
        if refusal is None:
            return NOTHING
        return self._tell.refuse(self.session, refusal, "starttls", self._tell.trail, by="limits_are_known")

    # --- AUTH -------------------------------------------------------------------

    async def _auth(self, event: Auth) -> Step:
        assert self.parameters is not None
        context = AuthContext(
            self.session,
            self._rules,
            self._ports,
            self._tell.trail,
            Stage.AUTH,
            self.parameters,
            event.mechanism,
            self._transaction is not None,
        )
        judged = self._judge(auth.POLICIES, context)
        verdict = judged if isinstance(judged, VERDICTS) else await judged
        if not isinstance(verdict, Proceed):
            return self._tell.refuse(self.session, verdict, "auth", self._tell.trail, event.mechanism)
        turn = self._login.begin(event)
        if turn is None:
            refusal = Refuse(replies.AUTH_UNKNOWN_MECHANISM, Reason.AUTH_NOT_AVAILABLE)
            return self._tell.refuse(
                self.session, refusal, "auth", self._tell.trail, event.mechanism, by="mechanism_is_known"
            )
        return await self._auth_turn(turn)

    async def _auth_response(self, event: AuthResponse) -> Step:
        return await self._auth_turn(self._login.go_on(event))

    async def _auth_turn(self, turn: Turn) -> Step:
        """One turn of a SASL exchange: ask on, let the client in, or give up."""
        if isinstance(turn, Challenge):
            return self._tell.say(replies.challenge(turn.text))
        self._login.end()
        self._tell.trail.resume()
        assert self.parameters is not None
        outcome = await login.outcome(turn, self._session_context(Stage.AUTH), self.parameters)
        if isinstance(outcome, NotLoggedIn):
            if outcome.is_error:
                return await self._auth_error(outcome)
            return self._tell.refuse(
                self.session, outcome.refusal, "auth", self._tell.trail, outcome.login, by=outcome.check
            )
        identity, cause = outcome.identity, outcome.cause
        session, rules = replace(self.session, identity=identity), self._site.rules
        context = ConnectContext(session, rules, self._ports, self._tell.trail, Stage.AUTH)
        # Asked first: a client that is told 451 must not be logged in.
        parameters = await authenticated_parameters(rules, context, self.parameters)
        self.identified(identity)
        self.parameters = parameters
        self._tell.trail.decided(Stage.AUTH.value, cause.rule, cause.place, (("login", identity.login),), "accepted")
        self._tell.log_login(self.session, identity.login)
        return self._tell.say(replies.AUTH_OK)

    async def _auth_error(self, failed: NotLoggedIn) -> Step:
        """An error that counts: wait, answer, and after too many of them close."""
        assert self.parameters is not None
        context = self._session_context(Stage.AUTH)
        allowed = login.errors_allowed(context, self.parameters)
        if isinstance(allowed, Refuse):
            return self._tell.refuse(self.session, allowed, "auth", self._tell.trail, by="errors")
        wait, total = allowed
        trail = self._tell.trail
        decided(trail, Stage.AUTH.value, failed.check, failed.refusal)
        await self._pause(wait.total_seconds())
        self.session = replace(self.session, auth_errors=self.session.auth_errors + 1)
        if self.session.auth_errors < total:
            return self._tell.refuse(self.session, failed.refusal, "auth", trail, failed.login)
        last = login.too_many_errors(context, self.session.auth_errors, total)
        decided(trail, Stage.AUTH.value, "errors", last)
        step = self._tell.refuse(self.session, failed.refusal, "auth", trail, failed.login)
        return Step(step.octets + last.reply.wire(self.session.id), Then.CLOSE)

    async def _pause(self, seconds: float) -> None:
        await deferLater(self._site.clock, seconds)

    # --- MAIL, RCPT -------------------------------------------------------------

    async def _mail(self, event: Mail) -> Step:
        self._budget.renew()
        assert self.parameters is not None
        open_transaction = self._transaction
        now = self._site.wall()
        if open_transaction is not None and self._tell.tx_trail is not None:
            # It will be refused, and that is part of what happened in the open one.
            trail = self._tell.tx_trail
        else:
            trail = Trail(self._site.trace_ids.new(), int(now * 1000))
            trail.sender = event.path.text
        parameters = event.parameters
        hold_seconds = 0
        if parameters.hold_seconds is not None:
            hold_seconds = parameters.hold_seconds
        elif parameters.hold_until is not None:
            hold_seconds = max(0, int(parameters.hold_until.epoch_seconds - now))
        context = MailContext(
            self.session,
            self._rules,
            self._ports,
            trail,
            Stage.MAIL,
            open_transaction,
            self.parameters,
            event.path,
            parameters,
            hold_seconds,
        )
        policies = self._chains.plain_mail if parameters is NO_MAIL_PARAMETERS else self._chains.mail
        judged = self._judge(policies, context)
        verdict = judged if isinstance(judged, VERDICTS) else await judged
        if not isinstance(verdict, Proceed):
            return self._tell.refuse(self.session, verdict, "mail", trail, event.path.text or "<>")
        path = event.path
        if verdict.changes:
            path = apply.reverse_path(path, verdict.changes)
            context = context.changed(verdict.changes)
        limits = self._prepared.transaction if self._prepared is not None else None
        self._limits = limits if limits is not None else await transaction_parameters(self._rules, context)
        self._transaction = Transaction(trail.trace_id, path, parameters, hold_seconds=hold_seconds)
        self._tell.tx_trail = trail
        return Step(self._core.reply(replies.SENDER_OK))

    async def _rcpt(self, event: Rcpt) -> Step:
        self._budget.add_recipient()
        transaction = self._transaction
        trail = self._tell.open_trail
        path = event.path
        if not path.domain:
            path = Path(path.local, self._site.default_domain)
        context = RcptContext(
            self.session,
            self._rules,
            self._ports,
            trail,
            Stage.RCPT,
            transaction,
            self._limits,
            path,
            event.parameters,
        )
        judged = self._judge(self._chains.rcpt, context)
        verdict = judged if isinstance(judged, VERDICTS) else await judged
        if isinstance(verdict, Proceed) and transaction is not None:
            self._transaction = apply.with_recipient(transaction, path, event.parameters, verdict.changes)
            trail.add_recipient(path.text, "250 2.1.5")
            return Step(self._core.reply(replies.RECIPIENT_OK))
        if isinstance(verdict, Discard) and transaction is not None:
            # There already: answered like the first, not added again.
            self._transaction = replace(transaction, replies_due=transaction.replies_due + 1)
            return Step(self._core.reply(replies.RECIPIENT_OK))
        if not isinstance(verdict, Refuse):
            verdict = rcpt.NO_TRANSACTION
        trail.add_recipient(path.text, f"{verdict.reply.code} {verdict.reply.enhanced}")
        if verdict.reason in (Reason.MAILBOX_UNKNOWN, Reason.RELAY_DENIED):
            return await self._rcpt_error(verdict, context)
        return self._tell.refuse(self.session, verdict, "rcpt", trail, path.text)

    async def _rcpt_error(self, refusal: Refuse, context: RcptContext) -> Step:
        """A bad recipient: wait, count, and after too many of them close."""
        limits, trail, asked = self._limits, context.trail, context.path.text
        errors = context.rules.rcpt.errors
        wait = limits.errors_wait if limits is not None else None
        total = limits.errors_total if limits is not None else None
        for value, rule in ((wait, errors.wait), (total, errors.total)):
            if isinstance(value, Unknown):
                return self._tell.refuse(
                    self.session, unanswered(value, context.cause(rule)), "rcpt", trail, asked, by="errors"
                )
        if wait is None or total is None or isinstance(wait, Unknown) or isinstance(total, Unknown):
            return self._tell.refuse(self.session, refusal, "rcpt", trail, asked)
        await self._pause(wait.total_seconds())
        self.session = replace(self.session, rcpt_errors=self.session.rcpt_errors + 1)
        if self.session.rcpt_errors < total:
            return self._tell.refuse(self.session, refusal, "rcpt", trail, asked)
        cause = context.cause(errors.total, ("errors", self.session.rcpt_errors), ("limit", total))
        refusal = Refuse(replies.TOO_MANY_ERRORS, Reason.TOO_MANY_ERRORS, close=True, cause=cause)
        return self._tell.refuse(self.session, refusal, "rcpt", trail, asked, by="errors")

    # --- DATA, BDAT -------------------------------------------------------------

    def _data_context(self, chunking: bool) -> DataContext:
        return DataContext(
            self.session,
            self._rules,
            self._ports,
            self._tell.open_trail,
            Stage.DATA,
            self._transaction,
            self._limits,
            self._messages,
            chunking,
            self._incoming.chunked,
        )

    async def _data(self, event: Data) -> Step:
        context = self._data_context(chunking=False)
        judged = self._judge(self._chains.before_data, context)
        verdict = judged if isinstance(judged, VERDICTS) else await judged
        if not isinstance(verdict, Proceed):
            return self._tell.refuse(self.session, verdict, "data", context.trail)
        assert self._limits is not None
        if isinstance(self._limits.size, Unknown):
            refusal = unanswered(self._limits.size, context.cause(self._rules.data.limits.size))
            return self._tell.refuse(self.session, refusal, "data", context.trail, by="size_is_known")
        self._incoming.begin(self._limits.size)
        return Step(self._core.reply(replies.START_DATA))

    def _chunk(self, octets: bytes) -> Step:
        """Message octets, of DATA or BDAT alike."""
        wait = self._incoming.write(octets)
        return NOTHING if wait is None else Step(b"", Then.GO_ON, wait)

    def _data_end(self, event: DataEnd) -> Coroutine[Deferred[object], None, Step]:
        return self._complete(event.bare_newline)

    def _bdat(self, event: Bdat) -> Step:
        """A chunk is announced: it will be read to its end, kept or not."""
        self._incoming.chunk_begins(self._why_chunk_is_refused(event))
        return NOTHING

    def _why_chunk_is_refused(self, event: Bdat) -> Refuse | None:
        """Decide what is known before a chunk comes; one that is let in finds room for its message."""
        incoming = self._incoming
        limit = self._limits.size if self._limits is not None else None
        if incoming.chunks_refused is not None:
            return incoming.chunks_refused
        if self._transaction is None or not self._transaction.recipients or limit is None:
            return data.NO_RECIPIENT
        if isinstance(limit, Unknown):
            return unanswered(limit, self._data_context(chunking=True).cause(self._rules.data.limits.size))
        if incoming.size_octets + event.size > limit:
            return data.too_big(self._data_context(chunking=True), ("chunk", event.size))
        if incoming.spool is None:
            try:
                incoming.begin(limit)
            except Exception:
                self._tell.log_unexpected()
                return Refuse(replies.TRY_LATER, Reason.UNEXPECTED)
        return None

    async def _chunk_end(self, event: ChunkEnd) -> Step:
        refusal = self._incoming.chunk_ends()
        context = self._data_context(chunking=True)
        try:
            judged = self._judge(self._chains.before_chunk, context)
            verdict = judged if isinstance(judged, VERDICTS) else await judged
        except Exception:
            if self._given_up:
                raise
            self._tell.log_unexpected()
            verdict = Refuse(replies.TRY_LATER, Reason.UNEXPECTED)
            decided(context.trail, "data", "unexpected", verdict)
        if refusal is None and self._incoming.too_big:
            # Normalised newlines take more room than the client announced.
            refusal = data.too_big(context)
        if isinstance(verdict, Refuse) and (refusal is None or verdict.reason is Reason.PARAMETER_NOT_OFFERED):
            refusal = verdict
        elif refusal is not None:
            decided(context.trail, "data", "chunk_is_kept", refusal)
        if refusal is not None:
            return self._refuse_chunk(refusal, event.last, context.trail)
        self._incoming.chunked = True
        if not event.last:
            return Step(self._core.reply(replies.CHUNK_OK))
        return await self._complete(event.bare_newline)

    def _refuse_chunk(self, refusal: Refuse, last: bool, trail: Trail) -> Step:
        """Refuse a chunk, and with it the message: what of it was stored is dropped."""
        self._incoming.discard()
        if self._transaction is None:
            return self._tell.refuse(self.session, refusal, "data", trail)
        self._incoming.chunk_was_refused(refusal, last)
        if not last:
            return self._tell.refuse(self.session, refusal, "data", trail)
        if refusal.reply is replies.MESSAGE_TOO_BIG:
            return self._finish(refusal, trail)
        # RFC 2033 4.2: LMTP ends a message, refused or not, with as many replies as it has recipients.
        return self._tell.refuse(self.session, refusal, "data", trail, times=self._final_replies())

    async def _complete(self, bare_newline: bool) -> Step:
        """The message is whole: judge it, keep it, and answer its final reply."""
        transaction, trail, incoming = self._transaction, self._tell.tx_trail, self._incoming
        assert transaction is not None
        assert trail is not None
        spool, size_octets = incoming.spool, incoming.size_octets
        try:
            context = MessageContext(
                self.session,
                self._rules,
                self._ports,
                trail,
                Stage.DATA,
                transaction,
                self._limits,
                self._messages,
                incoming.chunked,
                incoming.chunked,
                incoming.queue_id,
                size_octets,
                Header(spool.head()) if spool is not None else Header(b""),
                bare_newline,
                incoming.too_big,
            )
            judged = self._judge(self._chains.message, context)
            verdict = judged if isinstance(judged, VERDICTS) else await judged
            if not isinstance(verdict, Proceed):
                incoming.discard()
                return self._finish(verdict, trail, size_octets)
            if spool is None:
                return self._finish(data.too_big(context), trail, size_octets, by="size_is_within_limit")
            message = await self._site.acceptance.prepare(context, transaction, spool)
            if self._given_up:
                # Whoever was asked last did not pass the cancellation on.
                raise CancelledError()
            if isinstance(message, Refuse):
                incoming.discard()
                return self._finish(message, trail, size_octets, by="message_is_kept")
        except Exception:
            incoming.discard()
            if self._given_up:
                raise
            self._tell.log_unexpected()
            return self._finish(Refuse(replies.TRY_LATER, Reason.UNEXPECTED), trail, size_octets, by="unexpected")
        # From here on the content is the store's, and what it says is what the client is told.
        incoming.hand_over()
        self.committing = True
        try:
            outcome = await self._site.acceptance.keep(message, self.session)
        except Exception:
            self._tell.log_unexpected()
            outcome = Refuse(replies.TRY_LATER, Reason.UNEXPECTED)
        finally:
            self.committing = False
        return self._finish(outcome, trail, size_octets, by="message_is_kept")

    def _final_replies(self) -> int:
        """How many replies end the message: on LMTP one for each RCPT that was accepted, if any was."""
        if self._transaction is None or not self.session.is_lmtp:
            return 1
        return max(1, self._transaction.replies_due)

    def _finish(
        self, outcome: Reply | Refuse | Discard, trail: Trail, size_octets: int | None = None, *, by: str = ""
    ) -> Step:
        """Give the final reply (on LMTP one for each accepted RCPT) and end the transaction; `by` as for a refusal."""
        transaction = self._transaction
        assert transaction is not None
        if isinstance(outcome, Reply):
            reply, reason, close = outcome, QUEUED, False
            self._messages += 1
        else:
            reply, reason = outcome.reply or replies.OK, outcome.reason.value
            close = isinstance(outcome, Refuse) and outcome.close
            if by:
                decided(trail, "data", by, outcome)
            if isinstance(outcome, Refuse):
                self._incoming.queue_id = 0
                self._tell.log_refusal(self.session, "data", reply, reason, outcome.detail, transaction.trace_id)
            else:
                self._messages += 1
        octets = self._core.reply(*(reply,) * self._final_replies(), trace_id=transaction.trace_id)
        self._tell.record(self.session, Kind.TRANSACTION, trail, (reply,), reason, size_octets)
        self._forget_transaction()
        return Step(octets, Then.CLOSE if close else Then.GO_ON)

    # --- the end of a transaction -----------------------------------------------

    def _end_transaction(self, why: str) -> None:
        """Drop a transaction that has no final reply, and record it when something was decided in it."""
        self._incoming.discard()
        if self._transaction is not None and self._tell.tx_trail is not None and not self.committing:
            self._incoming.queue_id = 0
            said, reason = self._farewell or (None, None)
            said_all = () if said is None else (said,)
            why = why if reason is None else reason.value
            self._tell.record(self.session, Kind.TRANSACTION, self._tell.tx_trail, said_all, why)
            self._forget_transaction()

    def _forget_transaction(self) -> None:
        self._transaction = None
        self._limits = None
        self._tell.tx_trail = None
        self._incoming.forget()
        self._core.transaction_ended()

    # --- the rest ---------------------------------------------------------------

    async def _rset(self, event: Rset) -> Step:
        self._end_transaction("rset")
        return self._tell.say(replies.RSET_OK)

    async def _noop(self, event: Noop) -> Step:
        return self._tell.say(replies.NOOP_OK)

    async def _help(self, event: Help) -> Step:
        return self._tell.say(replies.HELP)

    async def _quit(self, event: Quit) -> Step:
        self._end_transaction("quit")
        return self._tell.say(replies.BYE, Then.CLOSE)

    async def _vrfy(self, event: Vrfy) -> Step:
        return await self._look_up(event.text, expand=False)

    async def _expn(self, event: Expn) -> Step:
        return await self._look_up(event.text, expand=True)

    async def _look_up(self, text: str, expand: bool) -> Step:
        assert self.parameters is not None
        trail = self._tell.open_trail
        trail.resume()
        context = VrfyContext(
            self.session, self._rules, self._ports, trail, Stage.VRFY, self.parameters, text.lower(), expand
        )
        answer = await vrfy.answer(context)
        if isinstance(answer, Refuse):
            return self._tell.refuse(self.session, answer, "vrfy", trail, text, by="address_is_known")
        return self._tell.say(answer)

    async def _rejected(self, event: Rejected) -> Step:
        """The core could not accept a line."""
        refusal = Refuse(event.reply, Reason.UNKNOWN_COMMAND if event.unknown_verb else Reason.SYNTAX, event.close)
        if self._transaction is not None and self._tell.tx_trail is not None:
            trail = self._tell.tx_trail
        elif event.verb == "MAIL":
            # A refused MAIL has an id of its own.
            trail = Trail(self._site.trace_ids.new(), self._tell.now_ms())
        else:
            trail = self._tell.trail
        return self._tell.refuse(self.session, refusal, "command", trail, by="syntax")


_TAKERS: dict[type[object], Callable[..., Coroutine[Deferred[object], None, Step]]] = {
    Ehlo: Driver._ehlo,
    StartTls: Driver._start_tls,
    Auth: Driver._auth,
    AuthResponse: Driver._auth_response,
    Mail: Driver._mail,
    Rcpt: Driver._rcpt,
    Data: Driver._data,
    DataEnd: Driver._data_end,
    ChunkEnd: Driver._chunk_end,
    Rset: Driver._rset,
    Noop: Driver._noop,
    Help: Driver._help,
    Vrfy: Driver._vrfy,
    Expn: Driver._expn,
    Quit: Driver._quit,
    Rejected: Driver._rejected,
}
