"""What whoever started the daemon is told, and that nobody has to listen."""

import socket

import pytest

from mailgate.service.supervisor import VARIABLE, Supervisor, supervisor


def test_each_state_is_one_datagram_as_sd_notify_has_it():
    told = []
    one = Supervisor(told.append, monotonic_ns=lambda: 12_345_678)
    one.ready("mx.test serves")
    one.reloading()
    one.stopping(90.0)
    one.failed("no\nsuch port")
    assert told == [
        b"READY=1\nSTATUS=mx.test serves",
        b"RELOADING=1\nMONOTONIC_USEC=12345\nSTATUS=reading the configuration",
        b"STOPPING=1\nEXTEND_TIMEOUT_USEC=90000000\nSTATUS=stopping",
        b"STATUS=no such port",
    ]


def test_without_a_supervisor_nothing_is_said():
    Supervisor().ready("x")
    for address in ("", "/", "@", "vsock:2:1", "relative"):
        supervisor({VARIABLE: address}).ready("x")
    supervisor({}).ready("x")


@pytest.mark.parametrize("abstract", [False, True])
def test_the_socket_of_the_environment_is_spoken_to_and_kept_from_children(tmp_path, abstract):
    name = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    environ = {VARIABLE: name, "PATH": "/bin"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if abstract else name)
        one = supervisor(environ)
        assert environ == {"PATH": "/bin"}
        one.ready("here")
        assert listening.recv(100) == b"READY=1\nSTATUS=here"


def test_a_supervisor_that_is_gone_or_does_not_read_stops_nothing(tmp_path):
    name = str(tmp_path / "notify")
    one = supervisor({VARIABLE: name})
    one.ready("nobody has opened it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name)
        for _ in range(5000):
            one.ready("nobody reads")
    one.stopping(1.0)
