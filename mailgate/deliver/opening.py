"""From a next hop's address to a connection that can take mail: connect, TLS, greeting, EHLO, STARTTLS, AUTH.

Each failure becomes a `Stop`: the status it means and how far it leads (next
address, next host, or a decision for the whole group). Nothing of a message
has been sent by then.
"""

from __future__ import annotations

import ipaddress
from enum import Enum
from typing import Protocol

from mailgate.deliver import security as tls
from mailgate.deliver.conversation import UNPARSEABLE, Broken, Conversation, broke_down, refused, remote_reply
from mailgate.deliver.events import Emit
from mailgate.deliver.nexthop import LOOPS_BACK, Credentials, Need, NextHop
from mailgate.deliver.security import Security, Step, Verify
from mailgate.mail.status import Delayed, ErrorKind, Failed, RecipientStatus
from mailgate.net.connect import ConnectFailed
from mailgate.net.stream import HandshakeFailed, Stream, StreamTimeout
from mailgate.net.tls import ClientTls, TlsConfigError
from mailgate.wire.smtp import login
from mailgate.wire.smtp.answer import Answer
from mailgate.wire.smtp.client import Answered, Command, Phase
from mailgate.wire.smtp.command import Auth, AuthResponse, Ehlo, StartTls


class Scope(Enum):
    """How far a failure before MAIL leads."""

    ADDRESS = "address"
    """The host's next address."""
    HOST = "host"
    """The next host."""
    LIST = "list"
    """No further host is tried; failures of those before count."""
    GROUP = "group"
    """Every recipient of the group is decided."""


class Stop(Exception):
    """No transaction on this connection."""

    def __init__(self, outcome: Delayed | Failed, scope: Scope) -> None:
        super().__init__(outcome, scope)
        self.outcome = outcome
        self.scope = scope


class Dial(Protocol):
    """Connects to an address (`net/connect.py`)."""

    async def connect(self, address: str, port: int, *, source_ip: str | None, seconds: float) -> Stream:
        """Raises `ConnectFailed`."""
        ...


# RFC 5321 4.1.1.1, 4.2.4: what a server says that does not know EHLO.
_EHLO_UNKNOWN = frozenset({500, 501, 502, 504, 550})
_CHALLENGES = 3


class Opener:
    """Opens connections; one for all attempts."""

    def __init__(self, dial: Dial, client_tls: ClientTls, emit: Emit) -> None:
        self._dial = dial
        self._client_tls = client_tls
        self._emit = emit

    async def open(
        self, hop: NextHop, address: str, source_ip: str | None, ehlo_name: str, security: Security, queue_id: str
    ) -> Conversation:
        """Connect and introduce ourselves. Raises `Stop`; then the connection is closed.

        `queue_id` is that of the message the connection is opened for; the log
        has it in every event.
        """
        where: dict[str, object] = {
            "queueId": queue_id,
            "hostname": hop.host,
            "remoteIp": address,
            "remotePort": hop.port,
        }
        seconds = hop.timeouts.connect.total_seconds()
        try:
            stream = await self._dial.connect(address, hop.port, source_ip=source_ip, seconds=seconds)
        except ConnectFailed as error:
            self._emit("delivery.connect-error", **where, localIp=source_ip, details=str(error))
            raise Stop(broke_down(hop.host, str(error)), Scope.ADDRESS) from error
        self._emit("delivery.connect", **where, localIp=source_ip)
        conversation = Conversation(stream, hop.host, security, lmtp=hop.protocol == "lmtp")
        opening = _Opening(conversation, hop, ehlo_name, self._client_tls, self._emit, where)
        try:
            await opening.run()
        except Stop:
            conversation.leave()
            raise
        except BaseException:
            stream.abort()
            raise
        return conversation


class _Opening:
    """The steps of one opening."""

    def __init__(
        self,
        conversation: Conversation,
        hop: NextHop,
        ehlo_name: str,
        client_tls: ClientTls,
        emit: Emit,
        where: dict[str, object],
    ) -> None:
        self._conversation = conversation
        self._hop = hop
        self._ehlo_name = ehlo_name
        self._client_tls = client_tls
        self._emit = emit
        self._where = where

    async def run(self) -> None:
        """Go from connected to ready for MAIL. Raises `Stop`."""
        security = self._conversation.security
        if security.implicit:
            await self._handshake("delivery.implicit-tls-error")
        await self._greeting()
        await self._ehlo(Scope.HOST)
        if not security.implicit:
            await self._starttls(security)
        if self._hop.credentials is not None:
            await self._authenticate(self._hop.credentials)

    async def _greeting(self) -> None:
        event = await self._ask(None, self._hop.timeouts.greeting.total_seconds(), "greeting", Scope.HOST)
        if event.answer.code != 220:
            self._tell("delivery.greeting-failed", event.answer)
            raise Stop(refused(self._hop.host, "", event.answer), Scope.HOST)

    async def _ehlo(self, scope: Scope) -> None:
        verb = "LHLO" if self._conversation.core.lmtp else "EHLO"
        event = await self._hello(verb, scope)
        may_say_helo = verb == "EHLO" and scope is Scope.HOST and not self._conversation.security.strict
        if event.answer.code in _EHLO_UNKNOWN and may_say_helo:
            event = await self._hello("HELO", scope)
        if not event.answer.is_positive:
            self._tell("delivery.ehlo-rejected", event.answer)
            raise Stop(refused(self._hop.host, event.line, event.answer), scope)
        # RFC 5321 4.1.1.1: the reply begins with the server's name.
        name = event.answer.text.partition(" ")[0].partition("\n")[0].rstrip(".").lower()
        if "." in name and name in self._hop.own_names:
            self._emit("delivery.ehlo-rejected", **self._where, details=LOOPS_BACK)
            raise Stop(Failed(RecipientStatus(self._hop.host, ErrorKind.CONNECTION, LOOPS_BACK)), Scope.LIST)

    async def _hello(self, verb: str, scope: Scope) -> Answered:
        seconds = self._hop.timeouts.ehlo.total_seconds()
        return await self._ask(Ehlo(verb, self._ehlo_name), seconds, "EHLO response", scope)

    async def _starttls(self, security: Security) -> None:
        conversation, host = self._conversation, self._hop.host
        step = tls.after_ehlo(security, host, conversation.core.extensions.starttls)
        if isinstance(step, Failed):
            self._emit("delivery.start-tls-unavailable", **self._where, details=step.status.detail)
            raise Stop(step, Scope.HOST)
        if step is Step.PLAINTEXT:
            disabled = security.starttls is Need.DISABLE
            self._emit("delivery.start-tls-disabled" if disabled else "delivery.start-tls-unavailable", **self._where)
            return
        seconds = self._hop.timeouts.ehlo.total_seconds()
        event = await self._ask(StartTls(), seconds, "STARTTLS response", Scope.HOST)
        if event.answer.code != 220:
            self._tell("delivery.start-tls-unavailable", event.answer)
            if security.strict or event.answer.code == 421:
                raise Stop(refused(host, event.line, event.answer), Scope.HOST)
            return
        if conversation.core.has_input or conversation.stream.has_input:
            # RFC 3207 6, and response injection: nothing may stand between the reply and the handshake.
            self._emit("delivery.start-tls-error", **self._where, details="octets before the handshake")
            raise Stop(tls.handshake_failed(host, "the server sent octets before the handshake", False), Scope.HOST)
        await self._handshake("delivery.start-tls-error")
        await self._ehlo(Scope.GROUP)

    async def _handshake(self, event_on_failure: str) -> None:
        conversation, host = self._conversation, self._hop.host
        security = conversation.security
        failure: Delayed | Failed
        try:
            handshake = self._client_tls.handshake(
                host, verify=security.verify is Verify.PKI, trust_file=security.trust_file
            )
            deadline = conversation.stream.now() + self._hop.tls.timeout.total_seconds()
            agreed = await conversation.stream.start_tls(handshake, deadline)
        except ValueError:
            failure = tls.invalid_name(security, host)
        except TlsConfigError as error:
            # Ours to repair, not the destination's fault: its attempts are not used up.
            failure = Delayed(RecipientStatus(f"trust-file:{security.trust_file}", ErrorKind.DEPENDENCY, str(error)))
        except HandshakeFailed as error:
            failure = tls.handshake_failed(host, str(error), error.is_io)
        except StreamTimeout:
            failure = tls.handshake_timeout(host)
        else:
            conversation.core.tls_started()
            self._emit("delivery.start-tls", **self._where, version=agreed.version, details=agreed.cipher)
            return
        self._emit(event_on_failure, **self._where, details=failure.status.detail)
        raise Stop(failure, Scope.HOST)

    async def _authenticate(self, credentials: Credentials) -> None:
        """Log in with the strongest mechanism offered, then the next; 535 ends it (RFC 4954)."""
        offered = [name for name in login.MECHANISMS if name in self._conversation.core.extensions.auth]
        if not offered:
            raise self._no_login(Failed, "no common authentication mechanism")
        usable = [name for name in offered if name not in login.IN_CLEAR or self._may_show_secret()]
        if not usable:
            # TLS may be there again next time.
            raise self._no_login(Delayed, "the server takes passwords in clear text only, and TLS is not in use")
        failure = Stop(broke_down(self._hop.host, UNPARSEABLE), Scope.GROUP)
        for mechanism in usable:
            if mechanism in login.IN_CLEAR and self._conversation.stream.tls is None:
                self._emit("delivery.auth-in-clear", **self._where, details=f"{mechanism} without TLS")
            try:
                answer = await self._log_in(mechanism, credentials)
            except login.BadChallenge as error:
                failure = self._no_login(Failed, f"authentication by {mechanism}: {error}")
            else:
                if answer.code == 235:
                    self._emit("delivery.auth", **self._where, details=mechanism)
                    return
                failure = self._no_login(Delayed, f"authentication failed: {remote_reply(answer)}")
                if answer.code == 535:
                    break
            if self._conversation.core.phase is not Phase.READY:
                # It has said good-bye, or still asks for a response.
                break
        raise failure

    def _no_login(self, kind: type[Delayed] | type[Failed], detail: str) -> Stop:
        self._emit("delivery.auth-failed", **self._where, details=detail)
        return Stop(kind(RecipientStatus(self._hop.host, ErrorKind.CONNECTION, detail)), Scope.GROUP)

    def _may_show_secret(self) -> bool:
        if self._conversation.stream.tls is not None or self._hop.tls.starttls is Need.DISABLE:
            return True
        address = ipaddress.ip_address(self._conversation.stream.remote_ip)
        return address.is_loopback or address.is_private

    async def _log_in(self, mechanism: str, credentials: Credentials) -> Answer:
        """One exchange; the reply that ended it. Raises `BadChallenge` when we gave up."""
        exchange = login.begin(mechanism, credentials.username, credentials.secret)
        initial = exchange.initial
        auth = Auth(mechanism, None if initial is None else login.encode(initial))
        seconds = self._hop.timeouts.ehlo.total_seconds()
        event = await self._ask(auth, seconds, "AUTH response", Scope.GROUP)
        for _ in range(_CHALLENGES):
            if event.answer.code != 334:
                return event.answer
            try:
                response = login.encode(exchange.respond(login.decode(event.answer.text)))
            except login.BadChallenge:
                await self._give_up_login(seconds)
                raise
            event = await self._ask(AuthResponse(response), seconds, "AUTH response", Scope.GROUP)
        if event.answer.code == 334:
            await self._give_up_login(seconds)
            raise login.BadChallenge("more challenges than the mechanism has")
        return event.answer

    async def _give_up_login(self, seconds: float) -> None:
        # RFC 4954 4: a line of a single "*" cancels the exchange.
        await self._ask(AuthResponse(b"*"), seconds, "AUTH response", Scope.GROUP)

    async def _ask(self, command: Command | None, seconds: float, what: str, scope: Scope) -> Answered:
        """Send a command, unless the greeting is what is waited for, and take the reply. Raises `Stop`."""
        conversation = self._conversation
        try:
            if command is not None:
                return await conversation.ask(command, seconds)
            return await conversation.reply(conversation.stream.now() + seconds)
        except StreamTimeout as error:
            raise Stop(broke_down(self._hop.host, f"Timeout while reading {what}"), scope) from error
        except Broken as error:
            raise Stop(broke_down(self._hop.host, UNPARSEABLE), scope) from error

    def _tell(self, event: str, answer: Answer) -> None:
        self._emit(event, **self._where, code=answer.code, details=answer.text)
