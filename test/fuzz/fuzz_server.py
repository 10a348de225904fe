"""Invariant: whatever a client sends, however it is cut, the server core raises nothing and says the same.

Seeded: `PYTHONPATH=.:test python test/fuzz/fuzz_server.py [seconds] [seed]`
mutates sessions for so long (60 seconds if not told) and prints the seed and,
should the invariant break, the octets as a Python literal. Where atheris is
importable and no seconds are given, it drives instead and takes its own
arguments.
"""

from __future__ import annotations

import random
import sys
import time

from fuzz.drive import drive
from support.smtp_core import play, yes

from mailgate.mail import replies
from mailgate.mail.reply import Reply
from mailgate.wire.smtp.command import Event, StartTls
from mailgate.wire.smtp.data import BareNewline
from mailgate.wire.smtp.server import ServerConnection

SEEDS = (
    b"EHLO a.test\r\nMAIL FROM:<a@b.test> SIZE=100 BODY=8BITMIME\r\nRCPT TO:<c@d.test>\r\n",
    b"DATA\r\nA: b\r\n\r\n..x\r\n.\r\nQUIT\r\n",
    b"MAIL FROM:<> BODY=BINARYMIME\r\nRCPT TO:<c@d.test>\r\nBDAT 8\r\nA: b\r\n\r\nBDAT 4 LAST\r\n\nx\r\rRSET\r\n",
    b'LHLO [192.0.2.1]\r\nMAIL FROM:<@x,@y:"q " q"@[IPv6:::1]> RET=HDRS ENVID=a+20b BY=-3;NT\r\n',
    b'AUTH PLAIN\r\nAGpvaG4Ac2VjcmV0\r\nAUTH LOGIN\r\namFuZQ==\r\n*\r\nSTARTTLS\r\nVRFY <a>\r\nEXPN "b c"\r\n',
    b"MAIL FROM:<a@b.test> AUTH=<> SOLICIT=a:b TRANSID=<x@y> MTRK=c:1 HOLDFOR=10 MT-PRIORITY=-6\r\n",
    b"MAIL FROM:<a@b.test> HOLDUNTIL=2001-09-09T01:46:40Z SMTPUTF8 REQUIRETLS CONPERM\r\n",
    b"RCPT TO:<a@b.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@c.test RRVS=2014-04-03T23:01:00Z;C CONNEG\r\n",
    "MAIL FROM:<jörg@bücher.test>\r\nRCPT TO:<用户@例え.test>\r\nDATA\r\nä\r\n.\r\nETRN x\r\nNOOP\r\n".encode(),
)
PARTS = (
    *(
        b"\r\n",
        b"\r",
        b"\n",
        b".",
        b"..",
        b"\r\n.\r\n",
        b"\n.\n",
        b"\r\n.\n",
        b"\r.\r",
        b" ",
        b"\t",
        b"\0",
        b"\xff",
        b"\xc3",
    ),
    *(
        b"<",
        b">",
        b"@",
        b'"',
        b"\\",
        b":",
        b";",
        b"+",
        b"=",
        b"[",
        b"]",
        b"DATA\r\n",
        b"BDAT 3\r\n",
        b"BDAT 2 LAST\r\n",
    ),
    *(b"AUTH PLAIN\r\n", b"RSET\r\n", b"9" * 25, b"x" * 4096, b"a." * 2100),
)


def in_clear(event: Event) -> Reply:
    # What comes after a handshake depends on when it is over: no invariant there.
    return replies.TLS_NOT_OFFERED if isinstance(event, StartTls) else yes(event)


def check(octets: bytes, choose: random.Random) -> None:
    """Play the octets whole and cut, in both modes; raises when the invariant is broken."""
    for mode in BareNewline:
        cuts = sorted(choose.randrange(len(octets) + 1) for _ in range(choose.randrange(6)))
        pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
        if len(octets) < 400 and choose.random() < 0.2:
            pieces = [octets[i : i + 1] for i in range(len(octets))]
        whole, cut = ServerConnection(), ServerConnection()
        whole.bare_newline = cut.bare_newline = mode
        assert play(whole, [octets], in_clear) == play(cut, pieces, in_clear), "cut differently, understood differently"
        assert whole.state is cut.state
        assert len(cut._buffer.octets) <= 4096


def mutated(choose: random.Random) -> bytes:
    """A session with some octets replaced, dropped, doubled, or put in."""
    octets = bytearray(b"".join(choose.choice(SEEDS) for _ in range(choose.randint(1, 3))))
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
