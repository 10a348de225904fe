"""Plays octets into the server side of the protocol core and collects the events."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mailgate.mail import replies
from mailgate.mail.reply import Reply
from mailgate.wire.smtp.command import (
    Auth,
    Bdat,
    Data,
    DataChunk,
    Event,
    Pending,
    Quit,
    Rejected,
)
from mailgate.wire.smtp.server import ServerConnection


def yes(event: Event) -> Reply:
    """The answer of a server that agrees to everything; a SASL exchange has one challenge."""
    match event:
        case Data():
            return replies.START_DATA
        case Auth(initial=None):
            return replies.challenge("")
        case Rejected(reply=reply):
            return reply
        case Quit():
            return replies.BYE
    return replies.OK


def pump(core: ServerConnection, answer: Callable[[Event], Reply] = yes) -> list[Event]:
    """Take and answer all events there are; neighbouring chunks become one."""
    found: list[Event] = []
    while not isinstance(event := core.next_event(), Pending):
        if isinstance(event, DataChunk):
            assert event.octets
            if found and isinstance(found[-1], DataChunk):
                found[-1] = DataChunk(found[-1].octets + event.octets)
                continue
        elif not isinstance(event, Bdat):
            assert core.next_event() is Pending.PAUSED
            core.reply(answer(event))
        found.append(event)
    return found


def play(core: ServerConnection, pieces: Iterable[bytes], answer: Callable[[Event], Reply] = yes) -> list[Event]:
    """Give the pieces one after the other; all events, neighbouring chunks as one."""
    found: list[Event] = []
    for piece in pieces:
        core.receive(piece)
        for event in pump(core, answer):
            if isinstance(event, DataChunk) and found and isinstance(found[-1], DataChunk):
                found[-1] = DataChunk(found[-1].octets + event.octets)
            else:
                found.append(event)
    return found


def ways(octets: bytes) -> Iterable[list[bytes]]:
    """The same octets whole, one by one, and cut in two at each position."""
    yield [octets]
    yield [octets[i : i + 1] for i in range(len(octets))]
    for cut in range(1, len(octets)):
        yield [octets[:cut], octets[cut:]]
