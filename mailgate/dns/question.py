"""What `dns_query` of the expression language asks, by the words it uses."""

from __future__ import annotations

from mailgate.dns.name import ascii_name
from mailgate.dns.resolver import Absent, Answer, Resolver
from mailgate.mail.unknown import Unknown


async def dns_query(resolver: Resolver, name: str, type: str) -> tuple[str, ...] | str | Unknown:
    """The records of `name`, by one of the types `ip ipv4 ipv6 mx ptr txt`; any other has none.

    `txt` answers one text, several records on lines of their own; the others
    answer an array, of `mx` the hosts by preference (none for the null MX of
    RFC 7505). For `ptr`, `name` is an address. What cannot be a name in DNS has
    no records there.
    """
    if type == "ptr":
        return _records(await resolver.ptr(name))
    host = ascii_name(name)
    if host is None:
        return "" if type == "txt" else ()
    if type == "mx":
        found = await resolver.mx(host)
        if isinstance(found, Answer):
            ordered = sorted(found.records, key=lambda record: record.preference)
            return tuple(record.host for record in ordered if record.host)
        return found if isinstance(found, Unknown) else ()
    if type == "txt":
        texts = _records(await resolver.txt(host))
        return texts if isinstance(texts, Unknown) else "\r\n".join(texts)
    if type == "ipv4":
        return _records(await resolver.ipv4(host))
    if type == "ipv6":
        return _records(await resolver.ipv6(host))
    if type == "ip":
        first = _records(await resolver.ipv4(host))
        second = _records(await resolver.ipv6(host))
        if isinstance(first, Unknown):
            return first
        return second if isinstance(second, Unknown) else first + second
    return ()


def _records(answer: Answer[str] | Absent | Unknown) -> tuple[str, ...] | Unknown:
    if isinstance(answer, Unknown):
        return answer
    return answer.records if isinstance(answer, Answer) else ()
