"""The program `sendmail`: one message from standard input into the maildrop, as any user of the host.

It decides nothing about the message: the daemon takes it from the maildrop and
runs it through the rules as the listener `sendmail`; what they refuse comes
back as a notification. Status 0 means that the message is on disk for good,
whether or not the daemon runs. Statuses are those of sysexits.h. Programs of
every kind call this, so it starts fast: no Twisted, no schema.
"""

from __future__ import annotations

import os
import pwd
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from mailgate.admin.failure import Failed, Status
from mailgate.admin.sendmail import header, text
from mailgate.admin.sendmail.options import Mode, Options, Usage, read
from mailgate.config.outline import Illegible, Outline, outline
from mailgate.config.paths import DEFAULT_CONFIG
from mailgate.mail.address_list import BadAddress, addresses
from mailgate.queue.drop import ENVELOPE_OCTETS, DropEnvelope, DropRecipient
from mailgate.queue.handin import HandIn, NotNow

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; answers its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    name = os.path.basename(sys.argv[0])
    try:
        return run(read(name, given))
    except Usage as wrong:
        return _told(Status.USAGE, str(wrong))
    except Failed as failed:
        return _told(failed.status, failed.message)
    except Illegible as wrong:
        return _told(Status.CONFIG, str(wrong))
    except BadAddress as wrong:
        return _told(Status.DATA, str(wrong))
    except header.HeaderTooLong as wrong:
        return _told(Status.DATA, str(wrong))
    except NotNow as failure:
        return _told(Status.NOT_NOW, str(failure))


def _told(status: Status, message: str) -> int:
    print(f"sendmail: {message}", file=sys.stderr)
    return status


def run(options: Options) -> int:
    """Do what the options say. Raises what `main` turns into a status."""
    config = options.config or os.environ.get("MAILGATE_CONFIG") or DEFAULT_CONFIG
    if options.mode is Mode.ALIASES:
        # There is no database of aliases that could be old.
        return Status.OK
    if options.mode is Mode.LIST:
        _become("mailgate.admin.mailq", "--config", config)
    if options.mode is Mode.RETRY:
        _become("mailgate.admin.main", "--config", config, "queue", "retry", *options.retry)
    found = outline(config)
    if options.mode is Mode.SMTP:
        _become("mailgate.admin.sendmail.dialogue", found.maildrop, found.hostname)
    for number in _ENDING:
        signal.signal(number, _ended)
    return deliver(options, found)


def _become(module: str, *arguments: str) -> NoReturn:
    """Go on as another program of the package: what it needs is not loaded for the sake of every message."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def _ended(number: int, frame: FrameType | None) -> NoReturn:
    """Leave no half a file behind when the program is asked to end."""
    raise Failed(Status.NOT_NOW, f"ended by signal {number}, the message was not kept")


def deliver(options: Options, found: Outline) -> int:
    """Take the message and put it into the maildrop."""
    login, gecos = _user()
    sender = _sender(options, login)
    recipients = [address for given in options.recipients for address in _addresses(given)]
    if not recipients and not options.from_header:
        raise Failed(Status.DATA, "no recipient: name one, or write -t to take them from the header")
    blocks = text.lines(_read, dot_ends=options.dot_ends)
    fields, begun = header.split(blocks)
    if options.from_header:
        recipients += fields.recipients()
        if not recipients:
            raise BadAddress("no recipient in To, Cc and Bcc")
    name = _name(options, login, gecos)
    author = header.Author(name, _qualified(sender or "MAILER-DAEMON", found), found.hostname)
    envelope = DropEnvelope(
        sender,
        tuple(DropRecipient(address, options.notify) for address in dict.fromkeys(recipients)),
        options.ret,
        options.envid,
        not all(address.isascii() for address in (sender, *recipients)),
    )
    if len(envelope.octets) > ENVELOPE_OCTETS:
        raise Failed(Status.DATA, f"{len(recipients)} recipients are more than one message can have")
    drop = HandIn(found.maildrop)
    try:
        drop.begin(envelope)
        drop.write(fields.kept(author, time.time()) + b"\r\n" + begun)
        for block in blocks:
            drop.write(block)
        for number in _ENDING:
            # What is said about the message from here on has to be true.
            signal.signal(number, signal.SIG_IGN)
        drop.finish()
    finally:
        drop.discard()
    return Status.OK


def _read(octets: int) -> bytes:
    try:
        return os.read(0, octets)
    except OSError as failure:
        raise Failed(Status.NOT_NOW, f"standard input cannot be read: {failure.strerror}") from None


def _user() -> tuple[str, str]:
    """The login name of whoever runs this, and what the user database says about him."""
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return f"uid{os.getuid()}", ""
    return entry.pw_name, entry.pw_gecos


def _sender(options: Options, login: str) -> str:
    """The envelope's sender; empty for the null sender. The daemon adds the domain to a name alone."""
    if options.sender is None:
        return login
    if options.sender.strip() in ("", "<>"):
        return ""
    found = _addresses(options.sender)
    if len(found) != 1:
        raise BadAddress(f"the sender is not one address: {options.sender}")
    return found[0]


def _addresses(given: str) -> list[str]:
    # Octets of the command line that are no UTF-8 are surrogates here.
    if not given.isascii() and any("\ud800" <= character <= "\udfff" for character in given):
        raise BadAddress("an address is no UTF-8 text")
    found = addresses(given)
    if not found:
        raise BadAddress(f'no address: "{given}"')
    return found


def _name(options: Options, login: str, gecos: str) -> str:
    """The name in From: -F, $NAME, or what the user database has."""
    if options.full_name is not None:
        return options.full_name
    if options.sender is not None:
        return ""
    return os.environ.get("NAME") or gecos.partition(",")[0].replace("&", login.capitalize())


def _qualified(address: str, found: Outline) -> str:
    return address if "@" in address else f"{address}@{found.hostname}"


if __name__ == "__main__":
    sys.exit(main())
