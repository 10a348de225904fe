"""A name server on loopback for tests that start the daemon: answers from a `Zone`, NXDOMAIN for all else.

with DnsServer(zone) as server:   # UDP and TCP on the same port
    ... f"127.0.0.1:{server.port}" ...
"""

from __future__ import annotations

import socketserver
import struct
import threading

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
from support.zone import Zone

from mailgate.dns.resolver import Answer, Bogus, MxRecord, TlsaRecord
from mailgate.mail.unknown import Unknown


def answer(zone: Zone, wire: bytes, udp: bool = True) -> bytes | None:
    """The octets of the answer to a question; None to stay silent (a fault whose reason is `timeout`)."""
    query = dns.message.from_wire(wire)
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    rdtype = dns.rdatatype.to_text(question.rdtype)
    response = dns.message.make_response(query, recursion_available=True)
    found = zone.look_up(name, rdtype)
    if isinstance(found, Bogus):
        found = zone.unchecked(name, rdtype) if query.flags & dns.flags.CD else Unknown("dns", "SERVFAIL")
    if isinstance(found, Unknown):
        fault = zone.fault(name, rdtype) or "SERVFAIL"
        if fault == "timeout":
            return None
        response.set_rcode(dns.rcode.from_text("SERVFAIL" if fault == "bogus" else fault))
        return response.to_wire()
    if found.authentic:
        response.flags |= dns.flags.AD
    if isinstance(found, Answer):
        texts = [_text(rdtype, record) for record in found.records]
        response.answer.append(dns.rrset.from_text_list(question.name, found.ttl_seconds, "IN", rdtype, texts))
    else:
        soa = f"ns.test. hostmaster.test. 1 3600 600 86400 {found.ttl_seconds}"
        response.authority.append(dns.rrset.from_text(".", found.ttl_seconds, "IN", "SOA", soa))
        if not found.name_exists:
            response.set_rcode(dns.rcode.NXDOMAIN)
    octets = response.to_wire(max_size=65535)
    limit = query.payload if query.edns >= 0 else 512
    if udp and len(octets) > limit:
        response.answer.clear()
        response.flags |= dns.flags.TC
        octets = response.to_wire()
    return octets


def _text(rdtype: str, record: object) -> str:
    if isinstance(record, MxRecord):
        return f"{record.preference} {record.host}."
    if isinstance(record, TlsaRecord):
        return f"{record.usage} {record.selector} {record.matching} {record.data.hex()}"
    if rdtype == "PTR":
        return f"{record}."
    if rdtype == "TXT":
        text = str(record)
        parts = [text[start : start + 255] for start in range(0, len(text), 255)] or [""]
        return " ".join('"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in parts)
    return str(record)


class DnsServer:
    """UDP and TCP on one loopback port, in two threads, until the `with` block ends."""

    def __init__(self, zone: Zone, ip: str = "127.0.0.1", port: int = 0) -> None:
        self.zone = zone

        class OverUdp(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                octets, sock = self.request
                reply = answer(zone, octets)
                if reply is not None:
                    sock.sendto(reply, self.client_address)

        class OverTcp(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while head := self.rfile.read(2):
                    reply = answer(zone, self.rfile.read(struct.unpack("!H", head)[0]), udp=False)
                    if reply is not None:
                        self.wfile.write(struct.pack("!H", len(reply)) + reply)

        self._tcp = socketserver.ThreadingTCPServer((ip, port), OverTcp, bind_and_activate=False)
        self._tcp.allow_reuse_address = True
        self._tcp.daemon_threads = True
        self._tcp.server_bind()
        self._tcp.server_activate()
        self.port: int = self._tcp.server_address[1]
        self._udp = socketserver.UDPServer((ip, self.port), OverUdp)
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            for server in (self._tcp, self._udp)
        ]

    def __enter__(self) -> DnsServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self._tcp, self._udp):
            server.shutdown()
            server.server_close()
