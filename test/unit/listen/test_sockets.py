"""The options of listening sockets, as the connections have them that are accepted."""

import contextlib
import socket
import struct
from datetime import timedelta

import pytest

from mailgate.config.kind import SocketAddress
from mailgate.config.schema.server import SocketSettings
from mailgate.listen.sockets import listening_socket


@contextlib.contextmanager
def accepted(**options):
    """A connection to a port with these options."""
    with (
        listening_socket("smtp", SocketAddress("127.0.0.1", 0), SocketSettings(**options)) as listening,
        socket.create_connection(listening.getsockname()),
    ):
        listening.setblocking(True)
        connection = listening.accept()[0]
        with connection:
            yield connection


@pytest.mark.parametrize(("written", "seconds"), [(timedelta(seconds=7), 7), (timedelta(milliseconds=10), 1)])
def test_linger_bounds_what_the_kernel_does_in_the_background_and_no_close_waits(written, seconds):
    with accepted(linger=written) as connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2) == seconds
        assert struct.unpack("ii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0] == 0


def test_what_is_set_is_set():
    with accepted(ttl=33, tos=16, nodelay=False, send_buffer_size=20_000, recv_buffer_size=30_000) as connection:
        assert connection.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 33
        assert connection.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 16
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        # Linux doubles these, for what it keeps beside the octets.
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 40_000
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 60_000


def test_what_is_not_set_is_as_it_should_be():
    with accepted() as connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert struct.unpack("ii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0] == 0
