"""The notification about mail that was handed in on this host and that the policy has refused.

There was no client to hear the 5xx: the sender is told as of any failure (RFC 3461 4.1, 6.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mailgate.mail.envelope import NOTIFY_DEFAULT, Notify
from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.mail.unknown import Unknown
from mailgate.queue.enqueue import Schedules
from mailgate.queue.item import ExpiresBy, Expiry, NewMessage, QueuedRecipient, QueueItem, Source, State
from mailgate.queue.scope import MessageFacts, RecipientScope
from mailgate.queue.store import QueueStore
from mailgate.reports.dsn import Kind, header_block, is_wanted
from mailgate.reports.submit import DsnRules, Notifier


class RefusedRecipient:
    """One recipient, and what was said about it."""

    def __init__(self, address: str, command: str, reply: RemoteReply, notify: str = "", orcpt: str = "") -> None:
        """`notify` are the words of NOTIFY, empty where none were given."""
        self.address = address
        self.status = RecipientStatus("localhost", ErrorKind.UNEXPECTED_REPLY, "", command, reply)
        words = [Notify[word] for word in notify.split(",")] if notify else []
        self.notify = NOTIFY_DEFAULT
        if words:
            self.notify = Notify.NONE
            for word in words:
                self.notify |= word
        self.orcpt = orcpt or None


class RefusalNotifier:
    """Makes the notifications, for all drops of one generation. `wall_ms` is the time of day in milliseconds."""

    def __init__(self, store: QueueStore, rules: DsnRules, schedules: Schedules, wall_ms: Callable[[], int]) -> None:
        self._rules = rules
        self._schedules = schedules
        self._notifier = Notifier(store, wall_ms)

    async def notification(
        self,
        sender: str,
        refused: Sequence[RefusedRecipient],
        original: bytes,
        *,
        queue_id: int,
        created_ms: int,
        envid: str | None,
        drops: tuple[str, ...],
    ) -> NewMessage | Unknown | None:
        """The DSN to `sender`, ready to be committed with the record of `drops`; None when nobody wants to know.

        `queue_id` is what the refused message is called, `original` its octets,
        at least as far as the header goes. Raises `StoreFailed`.
        """
        recipients = tuple(
            QueuedRecipient(
                number,
                each.address,
                "default",
                None,
                None,
                Expiry(ExpiresBy.ATTEMPTS, 1),
                each.orcpt,
                each.notify,
                State.PERM_FAIL,
                each.status,
            )
            for number, each in enumerate(refused)
        )
        told = [(recipient, Kind.FAILURE) for recipient in recipients if is_wanted(recipient, Kind.FAILURE)]
        if not sender or not told:
            return None
        item = QueueItem(
            id=queue_id,
            created_ms=created_ms,
            size_octets=len(original),
            return_path=sender,
            source=Source.AUTHENTICATED,
            recipients=recipients,
            content_hash="",
            env_id=envid,
            smtputf8=not all(text.isascii() for text in (sender, *(each.address for each in recipients))),
        )
        facts = MessageFacts(
            created_ms,
            sender,
            tuple(recipient.address for recipient in recipients),
            0,
            item.from_ip,
            item.via_port,
            item.source,
            item.size_octets,
        )
        scope = RecipientScope(facts, recipients[0].address, self._schedules.outside, created_ms)
        dsn = await self._notifier.notification(item, told, self._rules, self._schedules, scope, header_block(original))
        return dsn if isinstance(dsn, Unknown) else replace(dsn, drops=drops)
