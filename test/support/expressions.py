"""A scope with settable facts, an outside that answers from a table, and short ways to compile and evaluate."""

from mailgate.expr.choice import compile_choice
from mailgate.expr.error import ExpressionErrors
from mailgate.expr.kind import BOOLEAN, ResultKind
from mailgate.expr.resolve import Environment
from mailgate.expr.scope import Context
from mailgate.expr.value import Type
from mailgate.mail.unknown import Unknown

DOWN = Unknown("store:down", "connection refused")

# Whatever the expression gives, unconverted.
VALUE = ResultKind("anything", lambda value: value, Type.ANY, "")

CONFIGURATION = {
    "server.hostname": "mx.test",
    "report.domain": "example.org",
    "server.max-connections": 8192,
    "storage.directory": None,
}


def config_get(key):
    return CONFIGURATION[key]


ENVIRONMENT = Environment(config_get, tuple(CONFIGURATION))


class Pause:
    """Awaiting it gives up control once, as a real wait does."""

    def __await__(self):
        yield self


class Table:
    """Answers questions from a table; the store and directory `down` never answer."""

    def __init__(self, answers=None, waits=False):
        self.answers = answers or {}
        self.waits = waits
        self.asked = []

    async def _answer(self, question, absent):
        self.asked.append(question)
        if self.waits:
            await Pause()
        return DOWN if question[1] == "down" else self.answers.get(question, absent)

    async def is_local_domain(self, directory, domain):
        return await self._answer(("is_local_domain", directory, domain), False)

    async def is_local_address(self, directory, address):
        return await self._answer(("is_local_address", directory, address), False)

    async def key_get(self, store, key):
        return await self._answer(("key_get", store, key), "")

    async def key_exists(self, store, key):
        return await self._answer(("key_exists", store, key), False)

    async def key_set(self, store, key, value):
        return await self._answer(("key_set", store, key, value), None)

    async def counter_get(self, store, key):
        return await self._answer(("counter_get", store, key), 0)

    async def counter_incr(self, store, key, by):
        return await self._answer(("counter_incr", store, key, by), by)

    async def sql_query(self, store, statement, arguments):
        return await self._answer(("sql_query", store, statement, arguments), "")

    async def dns_query(self, name, type):
        return await self._answer(("dns_query", name, type), "" if type == "txt" else ())


class Facts:
    """A scope: every variable it is given is an attribute; `notes` keeps what was noted."""

    def __init__(self, outside=None, **variables):
        self.outside = outside or Table()
        self.notes = []
        self.__dict__.update(variables)

    def note(self, key, place, reads, result):
        self.notes.append((key, place, reads, result))


def drive(coroutine):
    """The result of a coroutine, resumed as often as it gives up control."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value


def compiled(raw, kind=VALUE, context=Context.RCPT, key="session.test", place="mailgate.toml:7"):
    return compile_choice(raw, key=key, place=place, context=context, kind=kind, environment=ENVIRONMENT)


def errors(raw, kind=BOOLEAN, context=Context.RCPT):
    """What is wrong with a value, each error as its text; empty when nothing is."""
    try:
        compiled(raw, kind, context)
    except ExpressionErrors as wrong:
        return [str(error) for error in wrong.errors]
    return []


def evaluated(raw, kind=VALUE, context=Context.RCPT, outside=None, **variables):
    return drive(compiled(raw, kind, context).value(Facts(outside, **variables)))
