"""Clients that do what they should not, over and over. Nothing of what they send may be kept."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Callable

MESSAGE = (
    b"EHLO vandal.test\r\nMAIL FROM:<a@vandal.test>\r\nRCPT TO:<ok-vandal@smtp.test>\r\nRCPT TO:<box@local.test>\r\n"
    b"DATA\r\nMessage-ID: <never@vandal.test>\r\nSubject: vandal\r\n\r\n" + b"nothing of this is kept\r\n" * 400
)
CHUNKS = (
    b"EHLO vandal.test\r\nMAIL FROM:<a@vandal.test>\r\nRCPT TO:<box@local.test>\r\n"
    b"BDAT 20\r\nSubject: vandal\r\n\r\nno\r\n"[:-1]
    + b"BDAT 100000 LAST\r\n"
    + b"x" * 50_000
)
FLOODS = (
    b"NOOP\r\n",
    b"EHLO vandal.test\r\n",
    b"RSET\r\n",
    b"MAIL FROM:<a@vandal.test>\r\n",
    b"\xff\xfe\0\r\n",
    b"\r\n",
)


def _connection(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def leaves(ports: dict[str, int], chance: random.Random) -> None:
    """Somewhere in a message, in one of three ways."""
    octets = chance.choice((MESSAGE, CHUNKS))
    with _connection(ports["smtp"]) as connection:
        connection.sendall(octets[: chance.randrange(len(octets))])
        match chance.randrange(3):
            case 0:
                _reset(connection)
            case 1:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass


def floods(ports: dict[str, int], chance: random.Random) -> None:
    """Many commands in one go, whose replies it may not read, and more after QUIT."""
    octets = chance.choice(FLOODS) * chance.randrange(1, 2_000)
    with _connection(ports["smtp"]) as connection:
        connection.settimeout(0.5)
        connection.sendall(octets + b"QUIT\r\n" + octets[: chance.randrange(len(octets))])
        if chance.random() < 0.5:
            while connection.recv(65536):
                pass


def shakes_no_hands(ports: dict[str, int], chance: random.Random) -> None:
    """Garbage, half a handshake, or a handshake and then no TLS."""
    with _connection(ports["submissions"]) as connection:
        match chance.randrange(3):
            case 0:
                connection.sendall(chance.randbytes(300))
            case 1:
                connection.sendall(b"\x16\x03\x01\x02\x00\x01" + chance.randbytes(chance.randrange(500)))
            case 2:
                secured = unchecked().wrap_socket(connection, do_handshake_on_connect=True)
                secured.sendall(MESSAGE[: chance.randrange(len(MESSAGE))])
                raw = secured.detach()
                with socket.socket(fileno=raw) as bare:
                    bare.sendall(chance.randbytes(200))


def injects(ports: dict[str, int], chance: random.Random) -> None:
    """Plain text behind STARTTLS, with and without going through with it."""
    with _connection(ports["smtp"]) as connection:
        connection.sendall(b"EHLO vandal.test\r\nSTARTTLS\r\n" + MESSAGE[:600])
        if chance.random() < 0.5:
            connection.settimeout(0.5)
            while connection.recv(65536):
                pass


def says_too_much(ports: dict[str, int], chance: random.Random) -> None:
    """Lines, headers and recipients over every limit, then the end without an end."""
    with _connection(ports["smtp"]) as connection:
        connection.settimeout(0.5)
        connection.sendall(
            b"EHLO vandal.test\r\nMAIL FROM:<a@vandal.test>\r\n"
            + b"".join(b"RCPT TO:<ok-%d@smtp.test>\r\n" % number for number in range(300))
            + b"X" * chance.randrange(100_000)
            + b"\r\nDATA\r\nSubject: "
            + b"y" * chance.randrange(500_000)
        )


def unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


KINDS: tuple[Callable[[dict[str, int], random.Random], None], ...] = (
    leaves,
    floods,
    shakes_no_hands,
    injects,
    says_too_much,
)


def rage(ports: dict[str, int], chance: random.Random, times: int) -> None:
    """So many of them, one after the other."""
    for _ in range(times):
        with contextlib.suppress(OSError):
            chance.choice(KINDS)(ports, chance)
