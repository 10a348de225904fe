"""Invariant: whatever a server sends, however it is cut, the client core raises only MalformedReply and reads the same.

Seeded: `PYTHONPATH=.:test python test/fuzz/fuzz_client.py [seconds] [seed]`
mutates the replies of servers for so long (60 seconds if not told) and prints
the seed and, should the invariant break, the octets as a Python literal. Where
atheris is importable and no seconds are given, it drives instead and takes its
own arguments.
"""

from __future__ import annotations

import random
import sys
import time

from fuzz.drive import drive

from mailgate.mail.path import Path
from mailgate.wire.smtp.answer import REPLY_OCTETS, MalformedReply
from mailgate.wire.smtp.client import Answered, ClientConnection, Phase
from mailgate.wire.smtp.command import Auth, AuthResponse, Bdat, Data, Ehlo, Mail, Quit, Rcpt, Rset, StartTls

SEEDS = (
    b"220 mx ESMTP\r\n250-mx\r\n250-PIPELINING\r\n250-SIZE 1000000\r\n250 8BITMIME\r\n250 ok\r\n250 ok\r\n250 ok\r\n"
    b"354 go\r\n250 2.0.0 queued\r\n250 ok\r\n221 bye\r\n",
    b"220-mx\r\n220 ESMTP\r\n250-mx\r\n250-CHUNKING\r\n250-DSN\r\n250 AUTH PLAIN LOGIN\r\n235 ok\r\n250 2.1.0 ok\r\n"
    b"550 5.1.1 no\r\n250 2.1.5 ok\r\n250 2.0.0 one\r\n452 4.2.2 two\r\n250 ok\r\n221 bye\r\n",
    b"220 x\n250 mx\n250 ok\n450 4.2.1 later\n421 4.3.2 bye\n",
    b"554 5.7.1 no\r\n",
    b"220 x\r\n250-mx\r\n250-STARTTLS\r\n250-AUTH=LOGIN\r\n250 REQUIRETLS\r\n334 VXNlcm5hbWU6\r\n535 5.7.8 bad\r\n",
    b"220 x\r\n502 what\r\n250 mx\r\n550 5.7.1 no\r\n503 x\r\n503 x\r\n",
    b"220 x\r\n250-mx\r\n250-BINARYMIME\r\n250 DELIVERBY 10\r\n250 ok\r\n550 a\r\n550 b\r\n354 go\r\n250 y\r\n",
)
PARTS = (
    *(b"\r\n", b"\r", b"\n", b"-", b" ", b"\0", b"\xff", b"\xc3", b"5.1.1", b"999.1.1 ", b"250", b"25", b"2500"),
    *(b"250-", b"250-x\r\n", b"250 ok\r\n", b"354 go\r\n", b"421 bye\r\n", b"334 %%%\r\n", b"550-a\r\n550 b\r\n"),
    *(b"x" * 2000, b"250-y\r\n" * 513, b"250-" + b"z" * 5000 + b"\r\n", b"SIZE 99999999999999999999999"),
)
SENDER, RECIPIENTS = Path("a", "b.test"), (Path("c", "d.test"), Path("e", "d.test"))


def begin(core: ClientConnection, state: dict[str, int]) -> None:
    """Say the next thing there is a place for."""
    offered = core.extensions
    if core.phase is Phase.LOGIN:
        core.send(AuthResponse(b"eA=="))
    elif core.phase is Phase.START:
        core.send(Ehlo("LHLO" if core.lmtp else "EHLO", "gw.test"))
    elif core.phase is Phase.CONTENT:
        core.content(b"Subject: x\r\n.\r\n")
        core.end_of_content()
    elif core.phase is Phase.TRANSACTION:
        state["rcpt"] += 1
        if state["rcpt"] <= len(RECIPIENTS):
            core.send(Rcpt(RECIPIENTS[state["rcpt"] - 1]))
        elif state["rcpt"] == len(RECIPIENTS) + 1:
            core.send(Bdat(5, True) if offered.chunking else Data())
        else:
            core.send(Rset())
    elif core.phase is Phase.READY:
        state["turn"] += 1
        if state["turn"] == 1 and offered.auth:
            core.send(Auth(offered.auth[0], b"eA=="))
        elif state["turn"] <= 4:
            state["rcpt"] = 0
            core.send(Mail(SENDER))
            if offered.pipelining:
                for recipient in RECIPIENTS:
                    core.send(Rcpt(recipient))
                state["rcpt"] = len(RECIPIENTS)
        elif state["turn"] == 5 and offered.starttls:
            core.send(StartTls())
        else:
            core.send(Quit())


def play(pieces: list[bytes], lmtp: bool) -> list[object]:
    """A client that goes on as long as the server lets it; everything it understood."""
    core = ClientConnection(lmtp=lmtp)
    state = {"turn": 0, "rcpt": 0}
    seen: list[object] = []
    for piece in pieces:
        core.receive(piece)
        while True:
            try:
                event = core.next_event()
            except MalformedReply:
                return [*seen, "malformed"]
            if event is None:
                break
            assert isinstance(event, Answered)
            seen.append((event.line, event.answer, event.place, core.phase))
            if core.phase in (Phase.OVER, Phase.STARTING_TLS) and not core.replies_due:
                return seen
            if core.phase is not Phase.OVER and not core.replies_due and len(seen) < 500:
                begin(core, state)
        assert len(core._reader._buffer) <= REPLY_OCTETS + len(piece)
    return seen


def check(octets: bytes, choose: random.Random) -> None:
    """Play the octets whole and cut, as SMTP and as LMTP; raises when the invariant is broken."""
    for lmtp in (False, True):
        cuts = sorted(choose.randrange(len(octets) + 1) for _ in range(choose.randrange(6)))
        pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
        if len(octets) < 400 and choose.random() < 0.2:
            pieces = [octets[i : i + 1] for i in range(len(octets))]
        whole, cut = play([octets], lmtp), play(pieces, lmtp)
        if whole and cut and "malformed" in (whole[-1], cut[-1]):
            # A reply that grows too long is noticed when it arrives, which may be before its end.
            shorter = min(len(whole), len(cut)) - 1
            whole, cut = whole[:shorter], cut[:shorter]
        assert whole == cut, "cut differently, understood differently"


def mutated(choose: random.Random) -> bytes:
    """A server's side of a session with some octets replaced, dropped, doubled, or put in."""
    octets = bytearray(b"".join(choose.choice(SEEDS) for _ in range(choose.randint(1, 2))))
    for _ in range(choose.randint(0, 8)):
        at = choose.randrange(len(octets) + 1)
        match choose.randrange(4):
            case 0:
                octets[at : at + 1] = bytes([choose.randrange(256)])
            case 1:
                del octets[at : at + choose.randint(1, 12)]
            case 2:
                octets[at:at] = octets[at : at + choose.randint(1, 60)]
            case 3:
                octets[at:at] = choose.choice(PARTS)
    return bytes(octets)


def run(seconds: float, seed: int) -> int:
    """Mutate for so long; the number of sessions played."""
    choose = random.Random(seed)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        octets = mutated(choose)
        try:
            check(octets, choose)
        except Exception:
            print(f"broken by seed {seed}, session {count}:\n{octets!r}", file=sys.stderr)
            raise
        count += 1
    return count


if __name__ == "__main__":
    drive(run, lambda octets: check(octets, random.Random(octets)), SEEDS, PARTS)
