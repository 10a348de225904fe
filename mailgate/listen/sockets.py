"""Listening sockets with the options of `server.listener.<id>.socket`.

They are made by hand, so that the options hold before the first connection,
and so that ports below 1024 can be opened before root is given up; Twisted
adopts them afterwards. What a connection has of them it inherits.
"""

from __future__ import annotations

import errno
import resource
import socket
from datetime import timedelta

from mailgate.config.kind import SocketAddress
from mailgate.config.schema.server import SocketSettings

_UNPRIVILEGED = 1024


class CannotListen(Exception):
    """An address could not be opened; the text says which and why."""


def listening_socket(listener_id: str, address: SocketAddress, options: SocketSettings) -> socket.socket:
    """Open one address. `[::]` takes IPv4 as well, as IPv4-mapped addresses.

    Raises `CannotListen`.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address.host == "::" else 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(options.reuse_addr))
        if options.reuse_port:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(options.nodelay))
        if options.send_buffer_size is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer_size)
        if options.recv_buffer_size is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.recv_buffer_size)
        if options.linger is not None:
            # Not SO_LINGER: with that the kernel has close() wait for the client, though the socket does not
            # block, in the thread that serves everybody. What it does in the background is bounded by this.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, _whole_seconds(options.linger))
        if options.ttl is not None:
            _for_family(opened, family, socket.IP_TTL, socket.IPV6_UNICAST_HOPS, options.ttl)
        if options.tos is not None:
            _for_family(opened, family, socket.IP_TOS, socket.IPV6_TCLASS, options.tos)
        opened.setblocking(False)
        opened.bind((address.host, address.port))
        opened.listen(options.backlog)
    except OSError as error:
        opened.close()
        raise CannotListen(
            f"server.listener.{listener_id}.bind: cannot listen on {address}: {error.strerror or error}"
            f"{_way_out(error, address)}"
        ) from error
    return opened


def _way_out(error: OSError, address: SocketAddress) -> str:
    """What an operator does about it, where that is not plain."""
    if error.errno in (errno.EACCES, errno.EPERM) and address.port < _UNPRIVILEGED:
        return (
            "; ports below 1024 take root at the start or the capability CAP_NET_BIND_SERVICE: "
            "restart mailgate, or choose another port"
        )
    return ""


def _whole_seconds(time: timedelta) -> int:
    return max(1, round(time.total_seconds()))


def _for_family(opened: socket.socket, family: socket.AddressFamily, ipv4: int, ipv6: int, value: int) -> None:
    if family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, ipv6, value)
    else:
        opened.setsockopt(socket.IPPROTO_IP, ipv4, value)


def allow_many_files() -> None:
    """Raise the limit of open files to what the system allows: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            # Not every hard limit may be used in full; the soft one goes on then.
            return
