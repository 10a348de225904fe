"""One transaction on an open connection: MAIL, RCPT for each recipient, the content, an outcome each.

With PIPELINING the envelope is one write. On a connection whose server has
taken a message before, the content joins it: with CHUNKING all of a small
message, else DATA, so that the next message needs one or two round trips.
Every reply is read and judged all the same (RFC 2920 3.1), and what becomes of
a recipient never depends on how the commands were sent.

Before the octets that end the message are written, `Watch.transmitting` has
answered whom it may still be for; what could fail before has been done by then.
When somebody has dropped out the message does not end: the rest get a new
transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from mailgate.crash.point import ARMED, passed
from mailgate.deliver.conversation import UNPARSEABLE, Broken, Conversation, broke_down, refused, remote_reply
from mailgate.deliver.events import Emit
from mailgate.deliver.nexthop import Timeouts
from mailgate.deliver.outgoing import Outgoing, mail_for, rcpt_for
from mailgate.deliver.watch import Watch
from mailgate.mail.status import Delayed, Delivered, ErrorKind, Outcome, RecipientStatus, RemoteReply
from mailgate.net.stream import StreamLost, StreamTimeout
from mailgate.queue.item import Phase, QueuedRecipient
from mailgate.queue.store import StoreFailed
from mailgate.wire.smtp.answer import Answer
from mailgate.wire.smtp.client import Answered, Command
from mailgate.wire.smtp.command import Bdat, Data, Rset


class Stale(Exception):
    """A kept connection turned out to be dead before it answered anything: nothing was handed over, try a new one."""


UNREADABLE = Delayed(RecipientStatus("localhost", ErrorKind.IO, "Queue system error."))


class _Over(Exception):
    """Everything still undecided has this outcome; the connection is of no more use."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Transaction:
    """One transaction; made for it, used once."""

    def __init__(
        self,
        conversation: Conversation,
        outgoing: Outgoing,
        recipients: Sequence[QueuedRecipient],
        timeouts: Timeouts,
        emit: Emit,
        watch: Watch,
        route: str,
    ) -> None:
        self._conversation = conversation
        self._outgoing = outgoing
        self._recipients = recipients
        self._timeouts = timeouts
        self._emit = emit
        self._watch = watch
        self._route = route
        self._phase = Phase.CONNECTED
        self.outcomes: dict[int, Outcome] = {}
        """What is decided so far, by the index of the recipient."""
        self.dropped: set[int] = set()
        """Recipients nothing must be sent to any more; they have no outcome."""
        self._accepted: dict[int, RemoteReply] = {}
        """Place of each accepted recipient and the reply to its RCPT."""

    async def run(self, head: bytes, now_ms: int) -> dict[int, Outcome]:
        """Hand over the message; the outcome of each recipient by its index.

        Those without one, unless they were `dropped`, are still to be sent to.
        `head` is what `Outgoing.head` answered. Raises `Stale`. On any other
        failure the undecided recipients are delayed, and the connection is
        aborted where it is of no more use.
        """
        conversation = self._conversation
        try:
            if conversation.needs_reset:
                await self._reset()
            conversation.transactions += 1
            await self._converse(head, now_ms)
        except _Over as over:
            self._decide_rest(over.outcome)
            conversation.leave()
        return self.outcomes

    async def _reset(self) -> None:
        conversation = self._conversation
        try:
            event = await conversation.ask(Rset(), self._timeouts.mail_from.total_seconds())
        except (Broken, StreamTimeout) as error:
            raise Stale from error
        if not event.answer.is_positive:
            raise Stale
        conversation.needs_reset = False

    async def _converse(self, head: bytes, now_ms: int) -> None:
        conversation = self._conversation
        core, stream = conversation.core, conversation.stream
        offered = core.extensions
        together = offered.pipelining
        at_once = together and conversation.proven
        content: Data | Bdat = Bdat(self._outgoing.item.size_octets, True) if offered.chunking else Data()
        content_sent = False
        if at_once and offered.chunking and self._outgoing.is_whole:
            await self._mark(self._recipients)
            self._recipients = [one for one in self._recipients if one.index not in self.dropped]
            if not self._recipients:
                return
        mail = mail_for(self._outgoing, head, now_ms)
        try:
            octets = conversation.send(mail)
        except Broken as error:
            if conversation.is_reused:
                raise Stale from error
            raise self._broke(UNPARSEABLE)
        if together:
            parts = [octets, *[core.send(rcpt_for(recipient)) for recipient in self._recipients]]
            if at_once and isinstance(content, Data):
                parts.append(core.send(content))
                content_sent = True
            elif at_once and self._outgoing.is_whole:
                parts += (core.send(content), head)
                content_sent = True
            octets = b"".join(parts)
        conversation.needs_reset = True
        stream.write(octets)
        mail_taken = await self._mail_reply()
        if together or mail_taken:
            await self._rcpt_replies(together, mail_taken)
            self._demand_step()
        if not self._accepted:
            if content_sent:
                await self._nobody_wants_it(content)
            return
        if ARMED:
            passed("D2")
        if not content_sent or isinstance(content, Data):
            self._watch.reached(Phase.ENVELOPE, self._route, conversation.host, stream.remote_ip)
        if isinstance(content, Bdat):
            await self._chunk(content, content_sent, head)
        else:
            await self._data(content, content_sent, head)

    # --- the envelope ------------------------------------------------------------------------

    async def _mail_reply(self) -> bool:
        """True when MAIL was taken; else the whole group has its answer."""
        conversation = self._conversation
        try:
            event = await conversation.reply(conversation.stream.now() + self._timeouts.mail_from.total_seconds())
        except StreamTimeout:
            raise self._broke("Timeout while reading MAIL response")
        except Broken as error:
            if conversation.is_reused:
                raise Stale from error
            raise self._broke(UNPARSEABLE)
        answer = event.answer
        if answer.is_positive:
            return True
        if answer.code == 421 and conversation.is_reused:
            raise Stale
        self._tell("delivery.mail-from-rejected", answer)
        outcome = refused(conversation.host, event.line, answer)
        if answer.code == 421:
            raise _Over(outcome)
        self._decide_rest(outcome)
        return False

    async def _rcpt_replies(self, together: bool, mail_taken: bool) -> None:
        conversation = self._conversation
        stream = conversation.stream
        seconds = self._timeouts.rcpt_to.total_seconds()
        for place, recipient in enumerate(self._recipients):
            if not together:
                stream.write(self._send(rcpt_for(recipient)))
            event = await self._reply(stream.now() + seconds, "Timeout while reading RCPT response")
            answer = event.answer
            if place:
                # A slow host with many recipients is not stuck.
                self._watch.reached(self._phase, self._route, conversation.host, stream.remote_ip)
            if answer.code == 421:
                self._tell("delivery.rcpt-to-failed", answer, recipient)
                raise _Over(refused(conversation.host, event.line, answer))
            if not mail_taken:
                continue
            if answer.is_positive:
                self._accepted[place] = remote_reply(answer)
            else:
                self._tell("delivery.rcpt-to-rejected", answer, recipient)
                self.outcomes[recipient.index] = refused(conversation.host, event.line, answer)

    async def _nobody_wants_it(self, content: Data | Bdat) -> None:
        """DATA or a chunk was on its way when the last recipient was refused: see that no message comes of it."""
        conversation = self._conversation
        event = await self._reply(self._data_deadline(), UNPARSEABLE)
        self._demand_step()
        code = event.answer.code
        if code == 354 and isinstance(content, Data):
            # RFC 2920 3.1: end it at once; its reply does not matter.
            conversation.stream.write(conversation.core.end_of_content())
            conversation.leave()
        elif code < 400 or code == 421:
            conversation.leave()

    # --- the content --------------------------------------------------------------------------

    async def _data(self, command: Data, sent: bool, head: bytes) -> None:
        conversation = self._conversation
        core, stream = conversation.core, conversation.stream
        is_whole = self._outgoing.is_whole
        # Before DATA a transaction can be taken back; after it only the connection can be closed.
        if is_whole and not sent and not await self._mark_accepted():
            return
        deadline = self._data_deadline()
        if not sent:
            stream.write(self._send(command))
        event = await self._reply(deadline, "Timeout while reading DATA response")
        if event.answer.code != 354:
            self._demand_step()
            self._rejected(event)
            return
        if is_whole:
            if sent and not await self._mark_accepted():
                stream.abort()
                return
            if core.has_input or stream.has_input:
                await self._early_reply(deadline)
            stuffed = core.content(head)
            stream.write(stuffed + core.end_of_content())
        else:
            if core.has_input or stream.has_input:
                await self._early_reply(deadline)
            last = await self._stream_content(deadline)
            if not await self._mark_accepted():
                stream.abort()
                return
            if stream.has_input:
                await self._early_reply(deadline)
            stream.write(core.content(last) + core.end_of_content())
        await self._final_replies()

    async def _chunk(self, command: Bdat, sent: bool, head: bytes) -> None:
        conversation = self._conversation
        stream = conversation.stream
        if not sent:
            if self._outgoing.is_whole:
                if not await self._mark_accepted():
                    return
                stream.write(self._send(command) + head)
            else:
                stream.write(self._send(command))
                deadline = self._data_deadline()
                last = await self._stream_content(deadline)
                if not await self._mark_accepted():
                    stream.abort()
                    return
                if stream.has_input:
                    await self._early_reply(deadline)
                stream.write(last)
        await self._final_replies(is_sure=not sent)

    async def _mark_accepted(self) -> bool:
        """True when the message may end: for everybody who was accepted."""
        count = len(self.dropped)
        await self._mark([self._recipients[place] for place in self._accepted])
        return len(self.dropped) == count

    async def _mark(self, recipients: Sequence[QueuedRecipient]) -> None:
        conversation = self._conversation
        indexes = [recipient.index for recipient in recipients]
        try:
            left = await self._watch.transmitting(
                self._route, conversation.host, conversation.stream.remote_ip, indexes
            )
        except StoreFailed as fault:
            # Without the mark nobody would know after a crash that this message may have been taken.
            raise _Over(Delayed(RecipientStatus("queue", ErrorKind.DEPENDENCY, str(fault))))
        self.dropped.update(index for index in indexes if index not in left)
        self._phase = Phase.TRANSMITTING
        if ARMED:
            passed("D4")

    async def _stream_content(self, deadline: float) -> bytes:
        """Send a large content but its last block, one block ahead of the transport, which says when it has room."""
        conversation = self._conversation
        core, stream = conversation.core, conversation.stream
        stuff = not core.replies_due
        last = b""
        try:
            async for block in self._outgoing.blocks():
                if last:
                    stream.write(core.content(last) if stuff else last)
                    if ARMED:
                        passed("D3")
                last = block
                # The block before this one is on its way while this one was read.
                await stream.drain(deadline)
                if stream.has_input:
                    await self._early_reply(deadline)
        except StoreFailed as error:
            if ARMED:
                passed("X7")
            stream.abort()
            self._emit("queue.content-not-found", queueId=self._outgoing.item.id_text, details=str(error))
            raise _Over(UNREADABLE)
        except StreamTimeout:
            raise self._broke("Timeout while sending message")
        except StreamLost as error:
            raise self._broke(f"The connection was lost while the message was sent: {error}")
        return last

    async def _early_reply(self, deadline: float) -> None:
        """The server answers before it has seen all: whatever it says, the message was not taken."""
        event = await self._reply(deadline, "Timeout while sending message")
        self._tell("delivery.message-rejected", event.answer)
        line = event.line or "DATA"
        outcome = refused(self._conversation.host, line, event.answer)
        self._conversation.stream.abort()
        raise _Over(outcome)

    async def _final_replies(self, is_sure: bool = True) -> None:
        """Take the replies that decide; `is_sure` unless the content left before any reply to the envelope had come."""
        if ARMED:
            # Not before: what is written leaves with the reactor's next turn.
            await self._conversation.stream.arrival(self._data_deadline())
            passed("D5")
        conversation = self._conversation
        kind = "LMTP" if conversation.core.lmtp else "SMTP"
        timeout_text = f"Timeout while reading {kind} DATA response"
        if not conversation.core.lmtp:
            event = await self._reply(self._data_deadline(), timeout_text, in_doubt=True)
            if ARMED:
                passed("D6")
            if not is_sure:
                self._demand_step(in_doubt=True)
            self._finished(event.answer)
            if not event.answer.is_positive:
                self._rejected(event)
                return
            for place, reply in self._accepted.items():
                self.outcomes[self._recipients[place].index] = self._delivered(reply)
            self._told(event.answer)
            return
        fresh: dict[int, Outcome] = {}
        for count in range(len(self._accepted), 0, -1):
            event = await self._reply(self._data_deadline(), timeout_text, in_doubt=True)
            recipient = self._recipients[event.place]
            if count == 1 and not is_sure:
                self._demand_step(in_doubt=True)
            if event.answer.is_positive:
                fresh[recipient.index] = self._delivered(remote_reply(event.answer))
                self._told(event.answer, recipient)
            else:
                self._tell("delivery.message-rejected", event.answer, recipient)
                outcome = refused(conversation.host, event.line, event.answer)
                if not event.answer.is_last:
                    raise _Over(outcome)
                fresh[recipient.index] = outcome
            self.outcomes[recipient.index] = fresh[recipient.index]
            if count > 1 and not conversation.core.has_input and not conversation.stream.has_input:
                # The next reply may take its time, or never come: these recipients have theirs.
                await self._watch.settle(fresh, False)
                fresh = {}
                if ARMED:
                    passed("D8")
        self._finished(event.answer)

    def _delivered(self, reply: RemoteReply) -> Delivered:
        by = self._outgoing.item.deliver_by
        # RFC 2852 4.1.4.2: from here on nobody keeps the time.
        relayed = by is not None and by.mode == "R" and not self._conversation.core.extensions.deliver_by
        return Delivered(RecipientStatus(self._conversation.host, reply=reply, relayed=relayed))

    def _finished(self, answer: Answer) -> None:
        """The transaction is over on both sides."""
        self._conversation.needs_reset = False
        if answer.is_positive:
            self._conversation.proven = True

    def _rejected(self, event: Answered) -> None:
        self._tell("delivery.message-rejected", event.answer)
        outcome = refused(self._conversation.host, event.line, event.answer)
        self._decide_rest(outcome)
        if not event.answer.is_last:
            # What the server takes for a command from here on nobody knows.
            raise _Over(outcome)

    # --- common to all steps ----------------------------------------------------------------------

    def _send(self, command: Command) -> bytes:
        """The octets of a command; `_Over` where the server has said what nobody asked for."""
        try:
            return self._conversation.send(command)
        except Broken:
            raise self._broke(UNPARSEABLE)

    def _demand_step(self, in_doubt: bool = False) -> None:
        """`_Over` where there was one reply too many among those to commands that went out together.

        Nobody knows which it was: no recipient has an answer, not even one that is for good.
        """
        if self._conversation.is_in_step or (in_doubt and self._conversation.takes_leave()):
            return
        self.outcomes.clear()
        if in_doubt:
            self._tell_doubt()
        raise self._broke(UNPARSEABLE)

    def _data_deadline(self) -> float:
        return self._conversation.stream.now() + self._timeouts.data.total_seconds()

    async def _reply(self, deadline: float, timeout_text: str, in_doubt: bool = False) -> Answered:
        """The next reply; `_Over` when there is none."""
        try:
            return await self._conversation.reply(deadline)
        except StreamTimeout:
            text = timeout_text
        except Broken:
            text = UNPARSEABLE
        if in_doubt:
            self._tell_doubt()
        raise self._broke(text)

    def _tell_doubt(self) -> None:
        doubtful = [self._recipients[place] for place in self._accepted]
        self._emit(
            "delivery.in-doubt",
            queueId=self._outgoing.item.id_text,
            to=[one.address for one in doubtful if one.index not in self.outcomes],
            host=self._conversation.host,
        )

    def _broke(self, detail: str) -> _Over:
        self._conversation.stream.abort()
        return _Over(broke_down(self._conversation.host, detail))

    def _decide_rest(self, outcome: Outcome) -> None:
        for recipient in self._recipients:
            if recipient.index not in self.dropped:
                self.outcomes.setdefault(recipient.index, outcome)

    def _tell(self, event: str, answer: Answer, recipient: QueuedRecipient | None = None) -> None:
        self._emit(
            event,
            queueId=self._outgoing.item.id_text,
            hostname=self._conversation.host,
            to=recipient.address if recipient is not None else None,
            code=answer.code,
            details=answer.text,
        )

    def _told(self, answer: Answer, recipient: QueuedRecipient | None = None) -> None:
        to = (
            [recipient.address]
            if recipient is not None
            else [self._recipients[place].address for place in self._accepted]
        )
        self._emit(
            "delivery.delivered",
            queueId=self._outgoing.item.id_text,
            hostname=self._conversation.host,
            to=to,
            code=answer.code,
            details=answer.text,
        )
