"""What one key has to do with another: names that must be defined, values that must agree.

The reader has checked every value for itself. Here whatever names something
defined elsewhere is resolved, and certificates are tried.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from mailgate.config.error import dotted
from mailgate.config.place import Path
from mailgate.config.reader import Findings, Reader
from mailgate.config.schema.certificate import CertificateSettings
from mailgate.config.schema.directory import PrincipalSettings
from mailgate.config.schema.queue import (
    ConnectionTimeoutSettings,
    LocalRouteSettings,
    QueueSettings,
    QuotaSettings,
    RelayAuthSettings,
    ScheduleSettings,
    TlsSettings,
    TlsTimeoutSettings,
)
from mailgate.config.schema.resolver import ResolverSettings
from mailgate.config.schema.server import FOREIGN_PROTOCOLS, HANDED_IN, ListenerSettings
from mailgate.config.schema.storage import (
    KEY_STORES,
    SQL_STORES,
    STANDARD_LISTS,
    MemoryStoreSettings,
    SqliteStoreSettings,
    StorageSettings,
)
from mailgate.config.schema.unsupported import MECHANISMS, REFUSAL
from mailgate.config.system import queue_file
from mailgate.expr.scope import nearest

if TYPE_CHECKING:
    pass

T = TypeVar("T")

_MS = timedelta(milliseconds=1)
_MINUTE = timedelta(minutes=1)
_MECHANISM = re.compile(rf"\b({'|'.join(MECHANISMS)})\b")
_BUILT_IN = {
    "route": ("local", "mx"),
    "schedule": ("default", "local", "remote", "dsn", "report"),
    "connection": ("default",),
    "tls": ("default", "invalid-tls"),
    "virtual": ("default", "local", "remote", "dsn", "report"),
}
_QUEUE_ADVICE = 'name one of type "sqlite"'
_WHAT = {
    "store": "list or store",
    "key store": "store for keys",
    "SQL store": "store with SQL",
    "directory": "directory",
    "route": "route",
    "schedule": "schedule",
    "connection": "connection strategy",
    "tls": "TLS strategy",
    "script": "Sieve script",
}


def check(reader: Reader, tree: Mapping[str, object], findings: Findings) -> None:
    """Report every fault and oddity that shows only when keys are seen together."""
    _Check(reader, tree, findings).run()


class _Check:
    def __init__(self, reader: Reader, tree: Mapping[str, object], findings: Findings) -> None:
        self._reader = reader
        self._tree = tree
        self._findings = findings

    def run(self) -> None:
        self._literal_names()
        self._mechanisms()
        self._storage()
        self._resolver()
        self._listeners()
        self._certificates()
        self._schedules()
        self._stall()
        self._routes()
        self._quotas()
        self._trust_files()
        self._lists()
        self._principals()

    def _wrong(self, path: Path, problem: str, advice: str = "", *at: int | str) -> None:
        """Report a fault whose text may quote the value."""
        if self._reader.is_secret(path):
            problem, advice = "the inserted value cannot be used here", ""
        self._findings.error(path, problem, advice, at)

    def _warn(self, path: Path, text: str) -> None:
        self._findings.warning(path, "the inserted value is odd" if self._reader.is_secret(path) else text)

    def _built(self, type: type[T]) -> list[tuple[Path, T]]:
        return [(path, made) for path, made in self._reader.tables if isinstance(made, type)]

    def _table(self, *names: str) -> Mapping[str, object]:
        value: object = self._tree
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    # --- names

    def _literal_names(self) -> None:
        for path, rule, _ in self._reader.rules:
            for category, name in rule.literals:
                self._resolve(path, category, name)

    def _resolve(self, path: Path, category: str, name: str) -> None:
        # The default directory, and the default store.
        if (name == "" and category in ("directory", "store", "key store")) or (category, name) == ("directory", "*"):
            return
        if name == "" and category == "SQL store":
            self._default_is_sql(path)
            return
        defined = self._defined(category)
        if name in defined:
            return
        if "store" in category and self._store_type(name):
            self._wrong(path, f'the store "{name}" is {self._unsuited(name, category)}', _meant(name, defined))
        elif "store" in category and name in {*self._table("lookup"), *STANDARD_LISTS}:
            self._wrong(path, f'"{name}" is a list, and a list does not change', _meant(name, defined))
        else:
            what = _WHAT.get(category, category)
            self._wrong(path, f'no {what} "{name}"', _meant(name, defined))

    def _defined(self, category: str) -> set[str]:
        if category == "store":
            lists = {id for id, one in self._table("store").items() if isinstance(one, dict) and _is_list(one)}
            return {*lists, *self._stores_of(KEY_STORES), *self._table("lookup"), *STANDARD_LISTS}
        if category in ("key store", "SQL store"):
            return self._stores_of(KEY_STORES if category == "key store" else SQL_STORES)
        if category == "directory":
            return set(self._table("directory"))
        return {*_BUILT_IN.get(category, ()), *self._table("queue", category)}

    def _stores_of(self, types: tuple[str, ...]) -> set[str]:
        """The stores of these types that rules may use: the queue's is not for them."""
        return {id for id in self._table("store") if self._store_type(id) in types and id != self._queue_store()}

    def _store_type(self, id: str) -> str:
        type = self._table("store", id).get("type")
        return type.strip().lower() if isinstance(type, str) else ""

    def _queue_store(self) -> object:
        return self._table("storage").get("data")

    def _unsuited(self, id: str, category: str) -> str:
        if id == self._queue_store():
            return "that of the queue, and not for rules"
        if self._store_type(id) == "memory":
            return "a list, and a list does not change"
        return (
            f'of type "{self._store_type(id)}", which {"knows no SQL" if category == "SQL store" else "keeps no keys"}'
        )

    def _default_is_sql(self, path: Path) -> None:
        default = self._table("storage").get("lookup")
        if isinstance(default, str) and self._store_type(default) not in ("", *SQL_STORES):
            self._wrong(
                path, f'the default store "{default}" is {self._unsuited(default, "SQL store")}', "name a store"
            )

    def _mechanisms(self) -> None:
        path = ("session", "auth", "mechanisms")
        for found, _, raw in self._reader.rules:
            if found == path:
                for word in dict.fromkeys(word for text in _texts(raw) for word in _MECHANISM.findall(text)):
                    self._wrong(path, f"{word}: {REFUSAL}", "write plain or login")

    # --- one section each

    def _storage(self) -> None:
        for path, storage in self._built(StorageSettings):
            stores = self._table("store")
            if storage.data is not None:
                store = stores.get(storage.data)
                if not isinstance(store, dict):
                    self._wrong((*path, "data"), f'no store "{storage.data}"', _meant(storage.data, stores))
                elif _is_list(store):
                    self._wrong((*path, "data"), f'the store "{storage.data}" is a list', _QUEUE_ADVICE)
                elif self._store_type(storage.data) in ("redis", "postgresql"):
                    self._wrong((*path, "data"), f'the store "{storage.data}" cannot hold the queue', _QUEUE_ADVICE)
                else:
                    for name in ("timeout", "pool"):
                        if name in store:
                            self._warn(("store", storage.data, name), "the key has no effect on the store of the queue")
            if storage.lookup is not None and storage.lookup not in (keys := self._stores_of(KEY_STORES)):
                name = storage.lookup
                told = (
                    f'the store "{name}" is {self._unsuited(name, "")}'
                    if self._store_type(name)
                    else f'no store "{name}"'
                )
                self._wrong((*path, "lookup"), told, _meant(name, keys))
            if storage.directory is not None and storage.directory not in self._table("directory"):
                meant = _meant(storage.directory, self._table("directory"))
                self._wrong((*path, "directory"), f'no directory "{storage.directory}"', meant)

        queue = os.path.normpath(queue_file(self._reader.effective))
        for path, store in self._built(SqliteStoreSettings):
            if path[-1] != self._queue_store() and os.path.normpath(store.path) == queue:
                self._wrong((*path, "path"), "the file is that of the queue", "name another file")

    def _resolver(self) -> None:
        for path, resolver in self._built(ResolverSettings):
            if resolver.type == "custom" and not resolver.custom:
                self._wrong((*path, "custom"), "the key is missing", 'list the servers, or write type = "system"')

    def _listeners(self) -> None:
        listeners = self._built(ListenerSettings)
        taken: dict[object, Path] = {}
        for path, listener in listeners:
            if path[-1] == HANDED_IN:
                self._findings.error(
                    path, f'"{HANDED_IN}" is the listener of what the program sendmail hands in', "choose another id"
                )
            if listener.protocol in FOREIGN_PROTOCOLS:
                self._warn(path, f"mailgate does not speak {listener.protocol}: the listener is left out")
                continue
            for number, address in enumerate(listener.bind):
                first = taken.setdefault(address, path)
                if first != path or listener.bind.index(address) != number:
                    self._wrong((*path, "bind"), f"{address} is taken by {dotted(first)}", "", number)
        if "smtp" not in self._table("server", "listener"):
            self._warn(
                ("server", "listener"),
                'no listener is called "smtp": none will add trace fields or take mail without AUTH '
                "unless the keys say so",
            )

    def _certificates(self) -> None:
        defaults = []
        for path, certificate in self._built(CertificateSettings):
            chain = _loaded(_certified_key, certificate.cert)
            if chain is None:
                self._findings.error(
                    (*path, "cert"), "no usable certificate in PEM", "name the file with the full chain"
                )
            key = _loaded(_private_key, certificate.private_key)
            if key is None:
                self._findings.error(
                    (*path, "private-key"), "no usable private key in PEM", "name the file with the key, not encrypted"
                )
            if chain is not None and key is not None and chain != key:
                self._findings.error((*path, "private-key"), "the key does not belong to the certificate")
            if certificate.default:
                defaults.append(path)
        for path in defaults[1:]:
            self._findings.error((*path, "default"), f"{dotted(defaults[0])} is the default already", "keep one")

    def _schedules(self) -> None:
        queues = {*_BUILT_IN["virtual"], *self._table("queue", "virtual")}
        for path, schedule in self._built(ScheduleSettings):
            if schedule.queue_name not in queues:
                name = schedule.queue_name
                self._wrong((*path, "queue-name"), f'no virtual queue "{name}"', _meant(name, queues))
            if schedule.expire is not None and schedule.max_attempts is not None:
                self._wrong((*path, "max-attempts"), "stands beside expire", "keep one of the two")
            used = "ttl" if schedule.max_attempts is None else "attempts"
            if schedule.expire_type not in (None, used):
                self._wrong((*path, "expire-type"), f'the schedule expires by "{used}"', f'write "{used}"')

    def _stall(self) -> None:
        """No attempt may count as stuck while it still waits for a next hop."""
        for path, queue in self._built(QueueSettings):
            waits = [
                (value, (*at, name))
                for at, one in self._built(ConnectionTimeoutSettings)
                for value, name in (
                    (one.connect, "connect"),
                    (one.greeting, "greeting"),
                    (one.ehlo, "ehlo"),
                    (one.mail_from, "mail-from"),
                    (one.rcpt_to, "rcpt-to"),
                    (one.data, "data"),
                )
            ]
            waits += [(one.tls, (*at, "tls")) for at, one in self._built(TlsTimeoutSettings)]
            longest, where = max(waits)
            if queue.stall <= longest:
                self._wrong(
                    (*path, "stall"),
                    f"is not longer than {dotted(where)} ({longest // _MS} ms)",
                    f'write more than "{-(-longest // _MINUTE)}m"',
                )

    def _routes(self) -> None:
        configured = self._table("queue", "route")
        for path, route in self._built(LocalRouteSettings):
            if route.maildir is None and path[-1] in configured:
                self._wrong(
                    (*path, "maildir"), "the key is missing", 'write maildir = "/srv/mail/%{domain}/%{user}/Maildir"'
                )
        for path, auth in self._built(RelayAuthSettings):
            if (auth.username is None) != (auth.secret is None):
                missing = "username" if auth.username is None else "secret"
                self._wrong((*path, missing), "the key is missing", "write both username and secret, or neither")
        if "local" not in configured and self._has_local_mail() and self._route_may_be("local"):
            self._warn(
                ("queue", "route", "local"),
                "local domains can reach the built-in route, which has no maildir: their mail will be delayed",
            )

    def _quotas(self) -> None:
        for path, quota in self._built(QuotaSettings):
            if quota.messages is None and quota.size is None:
                self._wrong(path, "the quota limits nothing", "write messages = ... or size = ..., or both")
            if "enable" not in self._given(path):
                self._warn((*path, "enable"), "the key is missing: the quota is enforced")

    def _given(self, path: Path) -> Mapping[str, object]:
        """The table at `path` as it is written."""
        value: object = self._tree
        for step in path:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int):
                value = value[step]
        return value if isinstance(value, dict) else {}

    def _has_local_mail(self) -> bool:
        return any(principal.email or principal.email_list for _, principal in self._built(PrincipalSettings))

    def _route_may_be(self, name: str) -> bool:
        path = ("queue", "strategy", "route")
        return any(found == path and ("route", name) in rule.literals for found, rule, _ in self._reader.rules)

    def _trust_files(self) -> None:
        for path, tls in self._built(TlsSettings):
            if tls.trust_file is not None:
                try:
                    with open(tls.trust_file, "rb") as file:
                        x509.load_pem_x509_certificates(file.read())
                except OSError as wrong:
                    reason = (wrong.strerror or "not a usable path").lower()
                    self._wrong((*path, "trust-file"), f"cannot read {tls.trust_file}: {reason}")
                except ValueError:
                    self._wrong((*path, "trust-file"), f"no certificate in {tls.trust_file}", "name a PEM file")

    def _lists(self) -> None:
        for name, one in self._table("store").items():
            if name in self._table("lookup") and isinstance(one, dict):
                self._wrong(("store", name), f"{dotted(('lookup', name))} has this name already", "rename one of them")
        for path, store in self._built(MemoryStoreSettings):
            for number, value in enumerate(store.values):
                scheme, separator, name = value.partition("://")
                at = (number,) if isinstance(self._table("store", str(path[-1])).get("values"), list) else ()
                if separator and scheme in ("http", "https", "file+fallback"):
                    self._wrong((*path, "values"), f"{scheme}://: {REFUSAL}", "write entries or file://", *at)
                elif separator and scheme == "file":
                    try:
                        open(name, "rb").close()
                    except (OSError, ValueError):
                        self._warn((*path, "values"), f"cannot read {name}: what the list holds is unknown")
                elif store.format == "regex":
                    try:
                        re.compile(value)
                    except (re.error, OverflowError, RecursionError) as wrong:
                        self._wrong((*path, "values"), f"no regular expression: {wrong}", "", *at)

    def _principals(self) -> None:
        names: dict[tuple[Path, str], Path] = {}
        for path, principal in self._built(PrincipalSettings):
            first = names.setdefault((path[:-1], principal.name.lower()), path)
            if first != path:
                self._wrong((*path, "name"), f'"{principal.name}" is taken by {dotted(first)}')
            for attribute, addresses in (("email", principal.email), ("email-list", principal.email_list)):
                for address in addresses:
                    local, at, domain = address.rpartition("@")
                    if not at or not domain or (not local and attribute == "email-list"):
                        self._wrong((*path, attribute), f'"{address}" is no address', "write user@example.org")


def _is_list(store: Mapping[str, object]) -> bool:
    type = store.get("type")
    return isinstance(type, str) and type.strip().lower() == "memory"


def _meant(name: str, defined: Iterable[str]) -> str:
    near = nearest(name, sorted(defined))
    if near is not None:
        return f'did you mean "{near}"?'
    known = ", ".join(f'"{one}"' for one in sorted(defined)[:10])
    return f"defined are {known}" if known else "none is defined"


def _texts(raw: object) -> Iterable[str]:
    if isinstance(raw, str):
        yield raw
    elif isinstance(raw, list):
        for element in raw:
            yield from _texts(element)
    elif isinstance(raw, dict):
        for name, value in raw.items():
            if name != "if":
                yield from _texts(value)


def _loaded(load: Callable[[bytes], T], pem: str) -> T | None:
    # cryptography raises TypeError for an encrypted key, and says in its errors what it read.
    try:
        return load(pem.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _certified_key(pem: bytes) -> bytes:
    return _octets(x509.load_pem_x509_certificates(pem)[0].public_key())


def _private_key(pem: bytes) -> bytes:
    return _octets(serialization.load_pem_private_key(pem, None).public_key())


def _octets(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
