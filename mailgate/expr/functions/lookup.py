"""Functions that look at something outside the expression: configuration, directories, stores, DNS.

What a dependency cannot tell is `Unknown`; "there is none" is an answer.
"""

from __future__ import annotations

from mailgate.expr.functions.function import Function
from mailgate.expr.functions.mail import ip_version
from mailgate.expr.outside import Outside
from mailgate.expr.value import Result, Type, Value, number, saturated, text
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


async def _key_set(outside: Outside, arguments: tuple[Value, ...]) -> Result:
    failed = await outside.key_set(text(arguments[0]), text(arguments[1]), text(arguments[2]))
    return 1 if failed is None else failed


async def _counter_get(outside: Outside, arguments: tuple[Value, ...]) -> Result:
    return await outside.counter_get(text(arguments[0]), text(arguments[1]))


async def _counter_incr(outside: Outside, arguments: tuple[Value, ...]) -> Result:
    return await outside.counter_incr(text(arguments[0]), text(arguments[1]), saturated(int(number(arguments[2]))))


async def _sql_query(outside: Outside, arguments: tuple[Value, ...]) -> Result:
    given = arguments[2]
    # A scalar is a single argument; the empty text is none, for statements without one.
    each = given if isinstance(given, tuple) else () if given == "" else (given,)
    return await outside.sql_query(text(arguments[0]), text(arguments[1]), each)


_RECORD_TYPES = frozenset({"ip", "ipv4", "ipv6", "mx", "ptr", "txt"})


async def _dns_query(outside: Outside, arguments: tuple[Value, ...]) -> Result:
    name, record_type = text(arguments[0]), text(arguments[1])
    if record_type not in _RECORD_TYPES:
        return ""
    if record_type == "ptr" and not ip_version(name):
        return ()
    return await outside.dns_query(name, record_type)


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
    Function(
        "key_set",
        ("store", "key", "value"),
        Type.INTEGER,
        "Gives a key of a store a value; always 1.",
        ask=_key_set,
        names="key store",
    ),
    Function(
        "counter_incr",
        ("store", "key", "n"),
        Type.INTEGER,
        "Adds to a counter of a store, each time it is evaluated; the new value.",
        ask=_counter_incr,
        names="key store",
    ),
    Function(
        "counter_get",
        ("store", "key"),
        Type.INTEGER,
        "The value of a counter of a store; 0 when there is none.",
        ask=_counter_get,
        names="key store",
    ),
    Function(
        "sql_query",
        ("store", "query", "args"),
        Type.ANY,
        "Runs an SQL statement, `?` standing for each argument (an array, or a single one): no row gives the empty "
        "text, one row its value or the array of its values, several an array of arrays; a statement without rows "
        "the number it affected.",
        ask=_sql_query,
        names="SQL store",
    ),
)
