"""The direct way out: order, what the kernel does not take, TLS, and broken connections."""

from twisted.internet.tcp import Connection

from mailgate.net.outlet import Outlet


class Tcp(Connection):
    """A TCP transport whose kernel takes `room` octets a call; None: the connection is broken."""

    def __init__(self, room=1_000_000):
        self.room = room
        self.sent = b""
        self.buffered = b""
        self._tempDataBuffer = []
        self.disconnected = 0
        self.socket = self

    def send(self, data):
        if self.room is None:
            raise BrokenPipeError
        if self.room == 0:
            raise BlockingIOError
        taken = bytes(data[: self.room])
        self.sent += taken
        return len(taken)

    def write(self, data):
        self.buffered += data
        self._tempDataBuffer.append(data)


def test_octets_go_out_at_once():
    tcp = Tcp()
    Outlet(tcp).send(b"250 OK\r\n")
    assert (tcp.sent, tcp.buffered) == (b"250 OK\r\n", b"")


def test_what_the_kernel_does_not_take_waits_and_nothing_overtakes_it():
    tcp = Tcp(room=3)
    outlet = Outlet(tcp)
    outlet.send(b"250 OK\r\n")
    tcp.room = 1000
    outlet.send(b"221 Bye\r\n")
    assert (tcp.sent, tcp.buffered) == (b"250", b" OK\r\n221 Bye\r\n")


def test_a_full_kernel_takes_nothing_and_nothing_is_lost():
    tcp = Tcp(room=0)
    Outlet(tcp).send(b"250 OK\r\n")
    assert (tcp.sent, tcp.buffered) == (b"", b"250 OK\r\n")


def test_what_is_on_its_way_is_not_overtaken():
    tcp = Tcp()
    tcp.dataBuffer = b"waiting"
    Outlet(tcp).send(b"250 OK\r\n")
    assert (tcp.sent, tcp.buffered) == (b"", b"250 OK\r\n")


def test_a_broken_connection_is_left_to_the_ordinary_way():
    tcp = Tcp(room=None)
    Outlet(tcp).send(b"250 OK\r\n")
    assert tcp.buffered == b"250 OK\r\n"


def test_a_connection_that_is_gone_is_not_touched():
    tcp = Tcp()
    tcp.disconnected = 1
    Outlet(tcp).send(b"250 OK\r\n")
    assert tcp.sent == b""


def test_inside_tls_everything_goes_through_it():
    tcp = Tcp()
    outlet = Outlet(tcp)
    outlet.into_tls()
    outlet.send(b"250 OK\r\n")
    assert (tcp.sent, tcp.buffered) == (b"", b"250 OK\r\n")


def test_any_other_transport_is_written_to():
    class Other:
        octets = b""

        def write(self, data):
            self.octets += data

    other = Other()
    Outlet(other).send(b"250 OK\r\n")
    assert other.octets == b"250 OK\r\n"
