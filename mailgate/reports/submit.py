"""Notifications into the queue as ordinary mail: null sender, source `dsn`, their own schedule.

The original's header (or the whole of it) is read from the store, the rules of
`report.dsn.*` are asked, and a message ready to be committed comes out: it is
stored in the same transaction as the flags that say who was told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twisted.logger import Logger

from mailgate.expr.choice import Choice
from mailgate.mail.envelope import Body, Notify, Recipient, Ret
from mailgate.mail.path import Path
from mailgate.mail.unknown import Unknown
from mailgate.queue.enqueue import Arrival, Schedules, queued_recipients
from mailgate.queue.item import NewMessage, QueuedRecipient, QueueItem, Source, queue_id_text
from mailgate.queue.scope import RecipientScope
from mailgate.queue.store import QueueStore, StoreFailed
from mailgate.reports.dsn import Kind, Reporter, compose, header_block

# A bare CR, a bare LF, NUL.
_NO_LINE_TEXT = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")

_log = Logger(namespace="mailgate.reports")


@dataclass(frozen=True, slots=True)
class DsnRules:
    """`report.submitter` and `report.dsn.*` of one generation; `max_size_octets` bounds a returned message."""

    submitter: Choice[str | None]
    from_name: Choice[str | None]
    from_address: Choice[str | None]
    max_size_octets: int


class Notifier:
    """Makes DSNs. `wall_ms` is the time in milliseconds since the epoch."""

    def __init__(self, store: QueueStore, wall_ms: Callable[[], int]) -> None:
        self._store = store
        self._wall_ms = wall_ms

    async def notification(
        self,
        item: QueueItem,
        told: Sequence[tuple[QueuedRecipient, Kind]],
        rules: DsnRules,
        schedules: Schedules,
        scope: RecipientScope,
        original: bytes | None = None,
    ) -> NewMessage | Unknown:
        """The DSN that tells the sender of `item` about `told`, ready for `QueueStore.record`.

        `original` is what it carries back of a message that is not in the queue.

        Raises `StoreFailed` when its content cannot be kept. A content of the
        original that is missing leaves the third part empty.
        """
        reporter = await _reporter(rules, scope)
        if isinstance(reporter, Unknown):
            return reporter
        queue_id = self._store.new_id()
        now_ms = self._wall_ms()
        whole = False
        if original is None:
            original, whole = await self._original(item, told, rules)
        dsn = compose(item, told, original, reporter, queue_id_text(queue_id), now_ms, whole)
        arrival = Arrival(now_ms, "", Source.DSN, len(dsn.octets))
        # No NOTIFY flag: nobody is ever told about a notification.
        addressee = Recipient(Path.parse(item.return_path), notify=Notify.NONE)
        recipients = await queued_recipients(arrival, (addressee,), schedules)
        spool = self._store.spool(queue_id)
        try:
            wait = spool.write(dsn.octets)
            if wait is not None:
                await wait
            content = await spool.finish()
        except BaseException:
            spool.discard()
            raise
        return NewMessage(
            id=queue_id,
            created_ms=now_ms,
            prefix=b"",
            content=content,
            return_path="",
            source=Source.DSN,
            recipients=recipients,
            trace=item.trace,
            smtputf8=dsn.smtputf8,
            # RFC 8689 5: the way back has to be as safe as the way there.
            requiretls=item.requiretls,
            body=Body.EIGHT_BIT if dsn.eight_bit else None,
        )

    async def _original(
        self, item: QueueItem, told: Sequence[tuple[QueuedRecipient, Kind]], rules: DsnRules
    ) -> tuple[bytes, bool]:
        """The third part: the header block, or all of the message where RFC 3461 6.2 and its size allow it (True)."""
        whole = (
            item.ret is Ret.FULL
            and item.size_octets <= rules.max_size_octets
            # Octets outside lines cannot be put into a multipart that travels as lines.
            and item.body is not Body.BINARY
            # RFC 8689 5: what must be encrypted on its way is not sent back in the clear.
            and not item.requiretls
            and any(kind is Kind.FAILURE for _, kind in told)
        )
        try:
            reader = await self._store.read(item)
            try:
                octets = await reader.read()
                while whole and (more := await reader.read()):
                    octets += more
            finally:
                reader.close()
        except StoreFailed as fault:
            _log.error(
                "{event}",
                event="queue.content-not-found",
                queueId=item.id_text,
                details=str(fault),
            )
            return b"", False
        if whole:
            return octets, True
        head = header_block(octets)
        # A header that came in a chunk of BINARYMIME may hold what cannot stand in a line of this report.
        return (_NO_LINE_TEXT.sub(b" ", head) if item.body is Body.BINARY else head), False


async def _reporter(rules: DsnRules, scope: RecipientScope) -> Reporter | Unknown:
    answers = []
    for rule in (rules.submitter, rules.from_name, rules.from_address):
        answer = await rule.value(scope)
        if isinstance(answer, Unknown):
            return answer
        answers.append(answer or "")
    submitter, from_name, from_address = answers
    # Rules that give nothing still leave a report somebody can answer for.
    return Reporter(submitter, from_name, from_address or f"MAILER-DAEMON@{submitter}")
