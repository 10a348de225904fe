"""Recipients of one group to the hosts that may take them: one outcome each.

Hosts are tried in their order, and the addresses of each; the first that
reaches MAIL decides the group. If none does, the group is delayed when any
failure was for now only. Nothing is remembered between attempts but idle
connections.

Whatever a next hop does becomes an outcome; what is our own fault delays.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from mailgate.crash.point import ARMED, passed
from mailgate.deliver.conversation import Conversation
from mailgate.deliver.events import Emit
from mailgate.deliver.nexthop import Candidate, HopFailure, NextHop
from mailgate.deliver.opening import Opener, Scope, Stop
from mailgate.deliver.outgoing import TOO_LATE, ContentSource, Outgoing, is_too_late, lacking, mail_for, too_big
from mailgate.deliver.reuse import IdleConnections, Place
from mailgate.deliver.security import required
from mailgate.deliver.transfer import UNREADABLE, Stale, Transaction
from mailgate.deliver.watch import UNWATCHED, Watch
from mailgate.mail.status import Delayed, ErrorKind, Failed, Outcome, RecipientStatus
from mailgate.queue.item import Phase, QueuedRecipient, QueueItem
from mailgate.queue.store import StoreFailed
from mailgate.wire.smtp.client import mail_line

Hops = Iterable[Candidate] | AsyncIterable[Candidate]


class Interrupted(CancelledError):
    """The attempt was cancelled; `outcomes` holds what was decided by then and must not be tried again."""

    def __init__(self, outcomes: dict[int, Outcome]) -> None:
        super().__init__()
        self.outcomes = outcomes


class Attempt:
    """Hands groups over to next hops; one object serves all groups, also at the same time."""

    def __init__(
        self,
        store: ContentSource,
        opener: Opener,
        idle: IdleConnections,
        wall_ms: Callable[[], int],
        choose: random.Random,
        emit: Emit,
    ) -> None:
        """`wall_ms` is milliseconds since the epoch; `choose` picks source addresses."""
        self.store = store
        self.opener = opener
        self.idle = idle
        self.wall_ms = wall_ms
        self.choose = choose
        self.emit = emit

    async def run(
        self, item: QueueItem, recipients: Sequence[QueuedRecipient], hops: Hops, watch: Watch = UNWATCHED
    ) -> dict[int, Outcome]:
        """Hand the message over for `recipients`, who have one domain, one route and one virtual queue.

        Answers the outcome of every one of them by its index, but for those
        `watch` had dropped; the next host is asked for only when the one before
        did not decide the group. A group of several transactions goes on after
        each when `watch` has settled it. Cancelling it aborts the connection
        and raises `Interrupted`, and so does a `CancelledError` of `watch`.
        """
        outgoing = Outgoing(self.store, item)
        group = _Group(self, outgoing, recipients, watch)
        try:
            return await group.run(hops)
        except CancelledError as cancelled:
            raise Interrupted(group.outcomes) from cancelled
        except StoreFailed as error:
            if ARMED:
                passed("X7")
            self.emit("queue.content-not-found", queueId=item.id_text, details=str(error))
            return group.rest(UNREADABLE)
        except Exception as error:
            # A fault of ours: the queue keeps the message, the log keeps the place.
            self.emit("delivery.internal-error", queueId=item.id_text, details=repr(error), log_failure=Failure())
            return group.rest(Delayed(RecipientStatus("localhost", ErrorKind.IO, "Internal error.")))
        finally:
            outgoing.close()

    def source_for(self, hop: NextHop, address: str) -> tuple[str | None, str]:
        """A source address, at random among those of the destination's family, and the EHLO name for it."""
        if hop.sources:
            version = ipaddress.ip_address(address).version
            fitting = [source for source in hop.sources if ipaddress.ip_address(source.ip).version == version]
            if fitting:
                chosen = self.choose.choice(fitting)
                return chosen.ip, chosen.ehlo_name
        return None, hop.ehlo_name


class _Group:
    """One group on its way."""

    def __init__(
        self, attempt: Attempt, outgoing: Outgoing, recipients: Sequence[QueuedRecipient], watch: Watch
    ) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._attempt = attempt
        self._item = outgoing.item
        self._outgoing = outgoing
        self._recipients = recipients
        self._watch = watch
        self._dropped: set[int] = set()
        """Whom nothing must be sent to any more."""
        self._is_last = False
        """Whether no host after this one may be tried."""

    def rest(self, outcome: Outcome) -> dict[int, Outcome]:
        """Give everybody without an outcome this one."""
        for recipient in self._left():
            self.outcomes[recipient.index] = outcome
        return self.outcomes

    def _left(self) -> list[QueuedRecipient]:
        return [one for one in self._recipients if one.index not in self.outcomes and one.index not in self._dropped]

    async def run(self, hops: Hops) -> dict[int, Outcome]:
        """Try the hosts until one decides the group."""
        if is_too_late(self._item, self._attempt.wall_ms()):
            status = RecipientStatus("localhost", ErrorKind.UNEXPECTED_REPLY, reply=TOO_LATE)
            return self.rest(Failed(status))
        for_now: Delayed | None = None
        for_good: Failed | None = None
        async for candidate in _each(hops):
            failure = candidate.outcome if isinstance(candidate, HopFailure) else await self._host(candidate)
            if failure is None:
                return self.outcomes
            if isinstance(failure, Delayed):
                for_now = failure
            else:
                for_good = failure
            if self._is_last:
                break
        nobody = Delayed(RecipientStatus("localhost", ErrorKind.IO, "There is no host to deliver to."))
        return self.rest(for_now or for_good or nobody)

    async def _host(self, hop: NextHop) -> Delayed | Failed | None:
        """Try one host's addresses; None when the group is decided, else why this host did not."""
        for_now: Delayed | None = None
        for_good: Failed | None = None
        for address in hop.addresses:
            self._watch.reached(Phase.ROUTED, hop.route, hop.host, address)
            try:
                await self._address(hop, self._place(hop, address))
            except Stop as stop:
                if stop.scope is Scope.GROUP:
                    self.rest(stop.outcome)
                    return None
                if isinstance(stop.outcome, Delayed):
                    for_now = stop.outcome
                else:
                    for_good = stop.outcome
                self._is_last = stop.scope is Scope.LIST
                if stop.scope is not Scope.ADDRESS:
                    break
            else:
                return None
        none = Delayed(RecipientStatus(hop.host, ErrorKind.DNS, f'No IP addresses found for "{hop.host}".'))
        return for_now or for_good or none

    def _place(self, hop: NextHop, address: str) -> Place:
        source_ip, ehlo_name = self._attempt.source_for(hop, address)
        return Place(
            self._recipients[0].queue,
            hop.route,
            hop.host,
            address,
            hop.port,
            hop.protocol,
            source_ip,
            ehlo_name,
            hop.credentials,
            required(hop.tls, self._item.requiretls),
        )

    async def _address(self, hop: NextHop, place: Place) -> None:
        """Send the group to one address, in as many transactions as its size asks for.

        Raises `Stop` while no transaction has begun; afterwards everything is
        an outcome.
        """
        head = await self._outgoing.head()
        conversation = self._attempt.idle.take(place, hop.reuse)
        if conversation is None:
            conversation = await self._open(hop, place)
        else:
            self._attempt.emit(
                "delivery.connection-reused",
                queueId=self._item.id_text,
                hostname=hop.host,
                remoteIp=place.address,
                remotePort=hop.port,
            )
        if ARMED:
            passed("D1")
        self._watch.reached(Phase.CONNECTED, hop.route, hop.host, place.address)
        has_begun = False
        is_checked = False
        try:
            left = self._left()
            while left:
                if not is_checked:
                    self._check(hop, head, conversation)
                    is_checked = True
                transaction = Transaction(
                    conversation,
                    self._outgoing,
                    left[: hop.max_recipients],
                    hop.timeouts,
                    self._attempt.emit,
                    self._watch,
                    hop.route,
                )
                try:
                    made = await transaction.run(head, self._attempt.wall_ms())
                    self.outcomes.update(made)
                    self._dropped |= transaction.dropped
                    has_begun = True
                    left = self._left()
                    if left:
                        await self._watch.settle(made, True)
                except Stale:
                    conversation.stream.abort()
                except BaseException:
                    # Cancelled, or a fault of ours: what it knows by now must not be tried again.
                    self.outcomes.update(transaction.outcomes)
                    raise
                if left and not self._goes_on(conversation, hop):
                    conversation.leave()
                    conversation = await self._open(hop, place)
                    is_checked = False
        except Stop as stop:
            # The connection is as good as before; if it is not, it is not kept.
            self._attempt.idle.keep(place, conversation, hop.reuse)
            if not has_begun:
                raise
            self.rest(stop.outcome)
        except BaseException:
            # Cancelled, or a fault of ours: nobody knows in which state the dialogue is.
            conversation.stream.abort()
            raise
        else:
            self._attempt.idle.keep(place, conversation, hop.reuse)

    async def _open(self, hop: NextHop, place: Place) -> Conversation:
        return await self._attempt.opener.open(
            hop, place.address, place.source_ip, place.ehlo_name, place.security, self._item.id_text
        )

    @staticmethod
    def _goes_on(conversation: Conversation, hop: NextHop) -> bool:
        return conversation.is_usable and conversation.transactions < hop.reuse.messages

    def _check(self, hop: NextHop, head: bytes, conversation: Conversation) -> None:
        """Raise `Stop` when this host cannot take the message: another may, unless it is too big."""
        offered = conversation.core.extensions
        missing = lacking(self._item, self._recipients, head, offered)
        if missing is not None:
            status = RecipientStatus(hop.host, ErrorKind.UNEXPECTED_REPLY, reply=missing)
            raise Stop(Failed(status), Scope.HOST)
        answer = too_big(self._item, offered)
        if answer is not None:
            line = mail_line(mail_for(self._outgoing, head, self._attempt.wall_ms()), offered)
            status = RecipientStatus(hop.host, ErrorKind.UNEXPECTED_REPLY, command=line, reply=answer)
            raise Stop(Failed(status), Scope.GROUP)


async def _each(hops: Hops) -> AsyncIterator[Candidate]:
    if isinstance(hops, AsyncIterable):
        async for candidate in hops:
            yield candidate
    else:
        for candidate in hops:
            yield candidate
