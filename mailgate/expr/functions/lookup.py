"""Functions that look at something outside the expression: configuration, directories, stores, DNS.

What a dependency cannot tell is `Unknown`; "there is none" is an answer.
"""

from __future__ import annotations

from mailgate.expr.functions.function import Function
from mailgate.expr.functions.mail import ip_version
from mailgate.expr.outside import Outside
from mailgate.expr.value import Result, Type, Value, text
from mailgate.mail.unknown import Unknown


def _truth(answer: bool | Unknown) -> Result:
    return answer if isinstance(answer, Unknown) else int(answer)


async def _is_local_domain(outside: Outside, arguments: tuple[Value, ...]) -> Result:
    return _truth(await outside.is_local_domain(text(arguments[0]), text(arguments[1])))


async def _is_local_address(outside: Outside, arguments: tuple[Value, ...]) -> Result:
    return _truth(await outside.is_local_address(text(arguments[0]), text(arguments[1])))


async def _key_get(outside: Outside, arguments: tuple[Value, ...]) -> Result:
    return await outside.key_get(text(arguments[0]), text(arguments[1]))


async def _key_exists(outside: Outside, arguments: tuple[Value, ...]) -> Result:
    return _truth(await outside.key_exists(text(arguments[0]), text(arguments[1])))


_RECORD_TYPES = frozenset({"ip", "ipv4", "ipv6", "mx", "ptr", "txt"})


async def _dns_query(outside: Outside, arguments: tuple[Value, ...]) -> Result:
    name, record_type = text(arguments[0]), text(arguments[1])
    if record_type not in _RECORD_TYPES:
        return ""
    if record_type == "ptr" and not ip_version(name):
        return ()
    return await outside.dns_query(name, record_type)


_NOT_HERE = "Not in this version."

FUNCTIONS = (
    Function(
        "config_get",
        ("'key'",),
        Type.SCALAR,
        "The value of a configuration key, written as a text; empty when the key is not set.",
    ),
    Function(
        "is_local_domain",
        ("dir", "domain"),
        Type.INTEGER,
        "1 when the directory has the domain; `'*'` is the default directory.",
        ask=_is_local_domain,
        names="directory",
    ),
    Function(
        "is_local_address",
        ("dir", "addr"),
        Type.INTEGER,
        "1 when the directory has a mailbox or list that takes mail for the address.",
        ask=_is_local_address,
        names="directory",
    ),
    Function(
        "key_get",
        ("store", "key"),
        Type.STRING,
        "The value of a key in a store; empty when there is none.",
        ask=_key_get,
        names="store",
    ),
    Function(
        "key_exists", ("store", "key"), Type.INTEGER, "1 when the store has the key.", ask=_key_exists, names="store"
    ),
    Function(
        "dns_query",
        ("name", "type"),
        Type.ARRAY | Type.STRING,
        "DNS records, empty when there is none: an array for the types `ip`, `ipv4`, `ipv6`, `mx` and `ptr`, "
        "the text for `txt`.",
        ask=_dns_query,
    ),
    Function("key_set", ("store", "key", "value"), Type.INTEGER, _NOT_HERE, supported=False),
    Function("counter_incr", ("store", "key", "n"), Type.INTEGER, _NOT_HERE, supported=False),
    Function("counter_get", ("store", "key"), Type.INTEGER, _NOT_HERE, supported=False),
    Function("sql_query", ("store", "query", "args"), Type.ANY, _NOT_HERE, supported=False),
)
