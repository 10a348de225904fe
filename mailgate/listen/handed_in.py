"""One drop of the maildrop, spoken to the driver of live sessions as a client on a socket would.

EHLO, MAIL, RCPT, DATA through the same protocol core, stages and acceptance as
on any listener; the client is authenticated, as the user the file belongs to.
What one session cannot take (too many recipients, too many errors) is left for
the next one. The content is read in blocks: memory stays bounded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

from twisted.internet.defer import CancelledError, Deferred

from mailgate.config.schema.server import HANDED_IN
from mailgate.mail import replies
from mailgate.mail.path import Path
from mailgate.mail.reply import Reply
from mailgate.mail.session import Identity, Session
from mailgate.mail.status import RemoteReply
from mailgate.mail.transaction import Transaction
from mailgate.mail.verdict import Refuse
from mailgate.queue.drop import DropRecipient, NotADrop
from mailgate.queue.item import NewMessage
from mailgate.queue.maildrop import Drop
from mailgate.queue.spool import RunBlocking
from mailgate.queue.store import Spool
from mailgate.session.accept import Acceptance
from mailgate.session.context import MessageContext
from mailgate.session.driver import Driver
from mailgate.session.site import Site
from mailgate.session.step import Step, Then
from mailgate.session.trace_id import new_trace_id
from mailgate.wire.smtp.command import Pending
from mailgate.wire.smtp.server import ServerConnection

BLOCK_OCTETS = 262_144
LOOPBACK = "127.0.0.1"
_REPLY = re.compile(rb"([2-5][0-9]{2})[ -](?:([245]\.[0-9]{1,3}\.[0-9]{1,3}) )?([^\r\n]*)")


class Judged(Enum):
    """What a session has said about a recipient."""

    KEPT = "kept"
    """The message is in the queue, or the policy has thrown it away."""
    LATER = "later"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one recipient, and the reply that says so."""

    judged: Judged
    command: str
    """What was answered."""
    reply: RemoteReply

    @property
    def refuses_sender(self) -> bool:
        """Whether the sender was refused, not this recipient or the message."""
        return self.judged is Judged.REFUSED and self.command.startswith("MAIL ")


class HandedInAcceptance(Acceptance):
    """Puts a message into the queue together with the record of what it settles of its drop."""

    drops: tuple[str, ...] = ()

    async def prepare(self, context: MessageContext, transaction: Transaction, spool: Spool) -> NewMessage | Refuse:
        """As for any session; the names go into the same transaction."""
        message = await super().prepare(context, transaction, spool)
        return message if isinstance(message, Refuse) else replace(message, drops=self.drops)


class _Closed(Exception):
    """The session is over; its last reply is the argument."""


class Conversation:
    """One session about some of the recipients of a drop."""

    def __init__(
        self, site: Site, acceptance: HandedInAcceptance, drop: Drop, hostname: str, run_blocking: RunBlocking
    ) -> None:
        """`hostname` is the domain of addresses that have none."""
        self._drop = drop
        self._hostname = hostname
        self._acceptance = acceptance
        self._run_blocking = run_blocking
        listener = site.listener
        session = Session(
            id=new_trace_id(),
            listener=HANDED_IN,
            protocol=listener.protocol,
            remote_ip=LOOPBACK,
            remote_port=0,
            local_ip=LOOPBACK,
            local_port=0,
            hostname=hostname,
        )
        self._core = ServerConnection()
        self._driver = Driver(replace(site, acceptance=acceptance), self._core, session)
        self._driver.identified(Identity.of_user(drop.login, hostname))
        self._waiting: Deferred[Step] | None = None
        self._stopping = False
        self.verdicts: dict[int, Verdict] = {}
        """By the number of the recipient in its drop."""

    def stop(self) -> None:
        """End as soon as nothing is lost by it: a commit that is under way is waited for."""
        self._stopping = True
        if self._waiting is not None and not self._driver.committing:
            self._driver.give_up()
            self._waiting.cancel()

    async def run(self, wanted: Sequence[int], settled: bool) -> dict[int, Verdict]:
        """Play the session; what comes back are verdicts of at least one of the `wanted` recipients, by number.

        `settled` says that the others are settled already. Raises `NotADrop`
        when the file turns out to be none, and `CancelledError` after `stop`.
        """
        try:
            await self._play(wanted, settled)
        except _Closed:
            # Whoever was not judged will be by the next session.
            pass
        finally:
            self._driver.lost()
        return self.verdicts

    async def _play(self, wanted: Sequence[int], settled: bool) -> None:
        envelope = self._drop.envelope
        if not await self._all("connect", wanted, await self._step(self._driver.open())):
            return
        greeting = await self._exchange(f"EHLO {self._driver.session.hostname}")
        if not await self._all("EHLO", wanted, greeting):
            return
        offered = {line[4:].split(b" ")[0].upper() for line in greeting.octets.split(b"\r\n")}
        sender = qualified(envelope.sender, self._hostname)
        mail = f"MAIL FROM:{sender.wire}"
        if not await self._all(mail, wanted, await self._exchange(mail + self._parameters(b"DSN" in offered))):
            return
        accepted: list[int] = []
        try:
            for number in wanted:
                if not await self._recipient(number, envelope.recipients[number], b"DSN" in offered, accepted):
                    break
        except _Closed:
            # The transaction is gone with the session: nobody has been accepted.
            return
        if accepted:
            # All that is left is settled with this message, unless somebody was refused: that is told on its own.
            self._acceptance.drops = drop_names(self._drop, accepted, settled and len(accepted) == len(wanted))
            await self._message(accepted)

    def _parameters(self, dsn: bool) -> str:
        drop = self._drop
        envelope = drop.envelope
        words = [f" SIZE={drop.size_octets}"]
        if drop.eight_bit:
            words.append(" BODY=8BITMIME")
        if envelope.smtputf8:
            words.append(" SMTPUTF8")
        if dsn and envelope.ret:
            words.append(f" RET={envelope.ret}")
        if dsn and envelope.envid:
            words.append(f" ENVID={_xtext(envelope.envid)}")
        return "".join(words)

    async def _recipient(self, number: int, recipient: DropRecipient, dsn: bool, accepted: list[int]) -> bool:
        """Name one recipient; False when this transaction takes no more."""
        command = f"RCPT TO:{qualified(recipient.address, self._hostname).wire}"
        words = ""
        if dsn and recipient.notify:
            words += f" NOTIFY={recipient.notify}"
        if dsn and recipient.orcpt:
            words += f" ORCPT=rfc822;{_xtext(recipient.orcpt)}"
        step = await self._exchange(command + words)
        reply = _reply(step)
        if step.then is Then.CLOSE:
            if not self.verdicts:
                # The next session must have less to do than this one.
                self._judge(command, (number,), reply)
            raise _Closed(reply)
        if reply.code < 400:
            accepted.append(number)
        elif accepted and (reply.code, reply.enhanced) == _TOO_MANY:
            return False
        else:
            self._judge(command, (number,), reply)
        return True

    async def _message(self, accepted: Sequence[int]) -> None:
        step = await self._exchange("DATA")
        if not step.octets.startswith(b"354"):
            self._judge("DATA", accepted, _reply(step))
            return
        at, half, at_line_start = 0, b"", True
        while at < self._drop.size_octets:
            block = await self._run_blocking(partial(self._drop.read, at, BLOCK_OCTETS))
            at += len(block)
            block = half + block
            half = b"\r" if block.endswith(b"\r") and at < self._drop.size_octets else b""
            if half:
                block = block[:-1]
            await self._say((b"." if at_line_start and block.startswith(b".") else b"") + _stuffed(block))
            at_line_start = block.endswith(b"\r\n") if block else at_line_start
        step = await self._say(b".\r\n" if at_line_start else b"\r\n.\r\n")
        self._judge("end of data", accepted, _reply(step))

    # --- one command --------------------------------------------------------------

    async def _all(self, command: str, wanted: Sequence[int], step: Step) -> bool:
        """Whether a command was answered with 2xx; otherwise that is what becomes of every recipient."""
        reply = _reply(step)
        if reply.code < 400:
            return True
        self._judge(command, wanted, reply)
        return False

    def _judge(self, command: str, numbers: Sequence[int], reply: RemoteReply) -> None:
        judged = Judged.KEPT if reply.code < 400 else Judged.LATER if reply.code < 500 else Judged.REFUSED
        for number in numbers:
            self.verdicts[number] = Verdict(judged, command, reply)

    async def _exchange(self, command: str) -> Step:
        return await self._say(command.encode("utf-8") + b"\r\n")

    async def _say(self, octets: bytes) -> Step:
        """Hand octets to the core and answer every event they hold."""
        core, driver = self._core, self._driver
        core.receive(octets)
        out = b""
        while not isinstance(event := core.next_event(), Pending):
            step = await self._step(driver.take(event))
            out += step.octets
            if step.wait is not None:
                await step.wait
            if step.then is not Then.GO_ON:
                return Step(out, step.then)
        if self._stopping:
            raise CancelledError()
        return Step(out)

    async def _step(self, step: Step | Deferred[Step]) -> Step:
        if not isinstance(step, Deferred):
            return step
        self._waiting = step
        try:
            return await step
        finally:
            self._waiting = None


_TOO_MANY = (replies.TOO_MANY_RECIPIENTS.code, replies.TOO_MANY_RECIPIENTS.enhanced)


def qualified(address: str, hostname: str) -> Path:
    """An address of an envelope; a name alone is one of this host."""
    if not address:
        return Path.parse("")
    return Path.parse(address if "@" in address else f"{address}@{hostname}")


def drop_names(drop: Drop, numbers: Sequence[int], whole: bool) -> tuple[str, ...]:
    """What is recorded when these recipients of a drop are settled; `whole`: and with them the drop."""
    return (drop.name,) if whole else tuple(f"{drop.name}#{number}" for number in numbers)


def settled_numbers(drop: Drop, recorded: frozenset[str]) -> set[int]:
    """The recipients of a drop that are settled according to the record."""
    if drop.name in recorded:
        return set(range(len(drop.envelope.recipients)))
    return {int(number) for _, _, number in (name.partition("#") for name in recorded) if number.isdecimal()}


def _stuffed(block: bytes) -> bytes:
    # RFC 5321 4.5.2.
    return block.replace(b"\r\n.", b"\r\n..")


def _xtext(text: str) -> str:
    """RFC 3461 4; what is no ASCII goes as its UTF-8 octets."""
    octets = text.encode("utf-8", "replace")
    return "".join(chr(each) if 33 <= each <= 126 and each not in b"+=" else f"+{each:02X}" for each in octets)


def _reply(step: Step) -> RemoteReply:
    found = _REPLY.match(step.octets)
    if found is None:
        # Only a mistake of ours leaves a command without an answer: nothing is lost by asking again.
        reply: Reply = replies.TRY_LATER
        return RemoteReply(reply.code, reply.enhanced, reply.text)
    code, enhanced, text = found.groups()
    return RemoteReply(int(code), (enhanced or b"").decode("ascii") or "0.0.0", text.decode("utf-8", "replace"))


__all__ = [
    "Conversation",
    "HandedInAcceptance",
    "Judged",
    "NotADrop",
    "Verdict",
    "drop_names",
    "qualified",
    "settled_numbers",
]
