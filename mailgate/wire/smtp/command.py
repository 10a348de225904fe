"""One frozen class per SMTP verb, and the events around them (RFC 5321 4.1.1).

The same values serve both directions: `server.py` makes them from octets,
`client.py` turns them into octets. What is only an event (`DataChunk`,
`DataEnd`, `ChunkEnd`, `Rejected`) stands at the end.

Every event needs exactly one answer (`ServerConnection.reply`), except
`DataChunk` and `Bdat`, which need none and never pause the connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from mailgate.mail.envelope import NO_MAIL_PARAMETERS, NO_RCPT_PARAMETERS, MailParameters, RcptParameters
from mailgate.mail.path import Path
from mailgate.mail.reply import Reply


@dataclass(frozen=True, slots=True)
class Ehlo:
    """EHLO, HELO or LHLO (`verb`, upper case) with the name as given.

    `name` is empty where none was given; the EHLO stage says whether that is
    allowed. It holds no spaces and no control characters, and at most 255 octets.
    """

    verb: str
    name: str


@dataclass(frozen=True, slots=True)
class StartTls:
    """STARTTLS (RFC 3207)."""


@dataclass(frozen=True, slots=True)
class Auth:
    """AUTH (RFC 4954): the mechanism in upper case and the initial response.

    `initial` is as it came, still in base64 (`b"="` is the empty response);
    None when there was none.
    """

    mechanism: str
    initial: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AuthResponse:
    """A line of a SASL exchange as it came, still in base64, without CRLF.

    `too_long` says that it exceeded the line limit and was discarded.
    """

    line: bytes = field(repr=False)
    too_long: bool = False


@dataclass(frozen=True, slots=True)
class Mail:
    """MAIL FROM with what was understood of its path and parameters."""

    path: Path
    parameters: MailParameters = NO_MAIL_PARAMETERS


@dataclass(frozen=True, slots=True)
class Rcpt:
    """RCPT TO. A path with local part `postmaster` and no domain is `<postmaster>` (RFC 5321 4.1.1.3)."""

    path: Path
    parameters: RcptParameters = NO_RCPT_PARAMETERS


@dataclass(frozen=True, slots=True)
class Data:
    """DATA; answered with 354 the message text follows."""


@dataclass(frozen=True, slots=True)
class Bdat:
    """BDAT (RFC 3030): `size` octets follow, as `DataChunk`s and a `ChunkEnd`; no reply is due yet."""

    size: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class Rset:
    """RSET."""


@dataclass(frozen=True, slots=True)
class Noop:
    """NOOP, whatever its argument."""


@dataclass(frozen=True, slots=True)
class Help:
    """HELP, whatever its argument."""


@dataclass(frozen=True, slots=True)
class Vrfy:
    """VRFY: what to verify, quotes, angle brackets and SMTPUTF8 taken off."""

    text: str


@dataclass(frozen=True, slots=True)
class Expn:
    """EXPN: what to expand, quotes, angle brackets and SMTPUTF8 taken off."""

    text: str


@dataclass(frozen=True, slots=True)
class Quit:
    """QUIT."""


Command = Ehlo | StartTls | Auth | AuthResponse | Mail | Rcpt | Data | Bdat | Rset | Noop | Help | Vrfy | Expn | Quit


@dataclass(frozen=True, slots=True)
class DataChunk:
    """Octets of the message as they are to be stored: never empty, dots taken off, normalised if asked."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class DataEnd:
    """The end of DATA: the final reply is due.

    `bare_newline`: the text held a bare CR or LF and is to be refused; never
    true where bare newlines are normalised.
    """

    bare_newline: bool = False


@dataclass(frozen=True, slots=True)
class ChunkEnd:
    """All octets of a BDAT have come: a reply is due, the final one after the last chunk.

    `bare_newline` as in `DataEnd`, for all chunks of the transaction so far.
    """

    last: bool = False
    bare_newline: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line the core refuses for its syntax: answer with `reply`, and close if `close`.

    `verb` is the known verb of the line, or empty: a refused MAIL has a trace
    id of its own. `unknown_verb` counts against scanners.
    """

    reply: Reply
    unknown_verb: bool = False
    close: bool = False
    verb: str = ""


Event = Command | DataChunk | DataEnd | ChunkEnd | Rejected


class Pending(Enum):
    """What `next_event` says when it has no event."""

    NEED_DATA = "need-data"
    """Everything received has been understood; read on."""
    PAUSED = "paused"
    """A reply is owed; nothing further is interpreted, and nothing need be read, before it is given."""
