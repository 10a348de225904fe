"""On 1,000 random transactions under random policies `mailgate explain` names the rule that really decided.

The policies are drawn as trees, written into a configuration, and evaluated a
second time by the few lines of Python below, which share nothing with the
engine. Three values throughout: None is "cannot be known".
"""

import random
import re
from collections import Counter
from datetime import timedelta

from support.listener import ListenerInMemory
from support.zone import Zone

from mailgate.decisions.explain import Question, as_json, find
from mailgate.decisions.ring import Ring

SEED = 20260101
POLICIES = 125
TRANSACTIONS = 8
FILE = "mailgate.toml"

DOMAINS = ("a.example", "b.example", "c.test", "dead.test", "here.test")
HELOS = ("mx.a.example", "localhost", "b.example")
PEERS = ("192.0.2.1", "198.51.100.7", "203.0.113.9")
LISTED = frozenset({"a.example", "c.test"})
LOCAL = ("jane@here.test", "joe@here.test")
ACCOUNT = {"jane": ("jane@here.test", "sales@here.test")}


# --- conditions: drawn, written, evaluated -------------------------------------------


def draw(rng, variables, depth=2):
    """A condition over these variables."""
    kind = rng.choice(
        ("eq", "ne", "ends", "list", "dns", "and", "or", "not") if depth else ("eq", "ends", "list", "dns")
    )
    if kind in ("and", "or"):
        return kind, draw(rng, variables, depth - 1), draw(rng, variables, depth - 1)
    if kind == "not":
        return kind, draw(rng, variables, depth - 1)
    name = rng.choice(variables)
    if kind in ("list", "dns") and not name.endswith("domain"):
        kind = "eq"
    return (
        kind,
        name,
        rng.choice({"remote_ip": PEERS, "helo_domain": HELOS, "authenticated_as": ("", "jane")}.get(name, DOMAINS)),
    )


def written(tree):
    """The condition as an operator writes it."""
    kind, *parts = tree
    if kind in ("and", "or"):
        return f"({written(parts[0])} {'&&' if kind == 'and' else '||'} {written(parts[1])})"
    if kind == "not":
        return f"!({written(parts[0])})"
    name, value = parts
    return {
        "eq": f"{name} = '{value}'",
        "ne": f"{name} != '{value}'",
        "ends": f"ends_with({name}, '{value[-4:]}')",
        "list": f"key_exists('listed', {name})",
        "dns": f"dns_query({name}, 'txt') = 'yes'",
    }[kind]


def holds(tree, facts):
    """Whether the condition is true, false, or cannot be known (None)."""
    kind, *parts = tree
    if kind == "not":
        inner = holds(parts[0], facts)
        return None if inner is None else not inner
    if kind in ("and", "or"):
        both = {holds(parts[0], facts), holds(parts[1], facts)}
        strong = kind == "or"
        return strong if strong in both else None if None in both else not strong
    name, value = parts
    found = facts[name]
    if kind == "dns":
        return None if found == "dead.test" else found == "a.example"
    return {
        "eq": found == value,
        "ne": found != value,
        "ends": found.endswith(value[-4:]),
        "list": found in LISTED,
    }[kind]


def names(tree):
    return {tree[1]} if tree[0] not in ("and", "or", "not") else set().union(*(names(part) for part in tree[1:]))


# --- one key -------------------------------------------------------------------------


class Key:
    """A key with a random rule: branches of (condition, value), the last without a condition."""

    def __init__(self, rng, key, values, variables, *, decides=False):
        self.key, self.line = key, 0
        self.branches = [(draw(rng, variables), rng.choice(values)) for _ in range(rng.choice((0, 1, 1, 2)))]
        self.last = rng.choice(values)
        self.on_error = rng.choice(("", "accept", "reject", "tempfail")) if decides and self.branches else ""

    def text(self):
        if not self.branches:
            return f"{self.key} = {shown(self.last)}"
        parts = [f'{{ if = "{written(tree)}", then = {shown(value)} }}' for tree, value in self.branches]
        parts.append(f"{{ else = {shown(self.last)} }}")
        if self.on_error:
            parts.append(f'{{ on-error = "{self.on_error}" }}')
        return f"{self.key} = [ {', '.join(parts)} ]"

    def value(self, facts, passes=True):
        """What the key says; None when it cannot be known. `passes` is the value that refuses nothing."""
        for tree, value in self.branches:
            met = holds(tree, facts)
            if met is None:
                return {"accept": passes, "reject": not passes}.get(self.on_error)
            if met:
                return value
        return self.last

    @property
    def place(self):
        return f"{FILE}:{self.line}"

    def variables(self):
        return set().union(*(names(tree) for tree, _ in self.branches)) if self.branches else set()


def shown(value):
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int) else f'"{value}"'


CONN = ("remote_ip",)
EHLO = ("remote_ip", "helo_domain")
MAIL = ("remote_ip", "helo_domain", "sender_domain", "authenticated_as")
RCPT = (*MAIL, "rcpt_domain")


class Policy:
    """A whole configuration."""

    def __init__(self, rng):
        yes_no = (True, True, True, False)
        no_yes = (False, False, False, False, False, True)
        self.keys = {
            each.key: each
            for each in (
                Key(rng, "session.ehlo.require", no_yes, CONN, decides=True),
                Key(rng, "session.ehlo.reject-non-fqdn", no_yes, CONN, decides=True),
                Key(rng, "session.auth.require", no_yes, ("remote_ip",), decides=True),
                Key(rng, "session.auth.must-match-sender", no_yes, MAIL, decides=True),
                Key(rng, "session.mail.is-allowed", (True, True, True, True, True, False), MAIL, decides=True),
                Key(rng, "session.extensions.requiretls", yes_no, MAIL),
                Key(rng, "session.extensions.deliver-by", (False, "1h", "1d", "1d"), MAIL),
                Key(rng, "session.extensions.mt-priority", (False, "mixer", "mixer"), MAIL),
                Key(rng, "session.extensions.future-release", (False, "1h", "1d", "1d"), MAIL),
                Key(rng, "session.extensions.dsn", yes_no, MAIL),
                Key(rng, "session.data.limits.size", (500, 5000, 50000, 50000), MAIL),
                Key(rng, "session.rcpt.max-recipients", (1, 2, 100), MAIL),
                Key(rng, "session.rcpt.relay", yes_no, RCPT, decides=True),
                Key(rng, "session.data.limits.messages", (1, 10), RCPT),
                Key(rng, "session.data.limits.received-headers", (1, 3, 50), RCPT),
            )
        }
        lines = [
            "server.hostname = 'mx.here.test'",
            "server.listener.smtp = { bind = '127.0.0.1:2525', protocol = 'smtp' }",
            "storage.directory = 'local'",
            "directory.local.type = 'memory'",
            "lookup.listed = ['a.example', 'c.test']",
            "session.auth.mechanisms = '[plain]'",
            "session.auth.directory = \"'*'\"",
            "session.rcpt.errors.total = 100",
            "session.rcpt.errors.wait = '1ms'",
        ]
        order = list(self.keys.values())
        rng.shuffle(order)
        for each in order:
            lines.append(each.text())
            each.line = len(lines)
        lines += [
            "[[directory.local.principals]]",
            "name = 'jane'",
            "secret = 'secret'",
            "email = ['jane@here.test', 'sales@here.test']",
            "[[directory.local.principals]]",
            "name = 'joe'",
            "email = ['joe@here.test']",
        ]
        self.text = "\n".join(lines) + "\n"


# --- one transaction -----------------------------------------------------------------


class Client:
    """What a client says; drawn once, sent to the listener and told to the oracle."""

    def __init__(self, rng):
        self.peer = rng.choice(PEERS)
        self.helo = rng.choice((*HELOS, *HELOS, *HELOS, None))
        self.login = rng.choice(("", "", "jane")) if self.helo else ""
        self.sender = rng.choice((f"x@{rng.choice(DOMAINS)}", "jane@here.test", "sales@here.test"))
        self.by = rng.choice((*(None,) * 12, 60, 7200, 200000))
        self.hold = rng.choice((*(None,) * 12, 60, 7200, 200000))
        self.priority = rng.choice((*(None,) * 9, 0, 3, 9))
        self.size = rng.choice((*(None,) * 6, 400, 4000, 60000))
        self.requiretls = rng.random() < 0.05
        self.envid = rng.random() < 0.05
        self.rcpts = [
            rng.choice((*LOCAL, *LOCAL, "nobody@here.test", *(f"r@{domain}" for domain in DOMAINS)))
            for _ in range(rng.choice((1, 1, 2, 3)))
        ]
        self.octets = rng.choice((100, 100, 1000, 8000))
        self.received = rng.choice((0, 0, 2, 5))
        self.header = rng.random() > 0.05

    def mail(self):
        given = (
            (self.by is not None, f" BY={self.by};N"),
            (self.hold is not None, f" HOLDFOR={self.hold}"),
            (self.priority is not None, f" MT-PRIORITY={self.priority}"),
            (self.size is not None, f" SIZE={self.size}"),
            (self.requiretls, " REQUIRETLS"),
            (self.envid, " ENVID=e"),
        )
        return f"MAIL FROM:<{self.sender}>" + "".join(text for is_given, text in given if is_given)

    def message(self):
        header = "Received: x\r\n" * self.received + ("Subject: s\r\n" if self.header else "")
        if not header:
            return "\r\nhello\r\n"
        body = "y" * 70 + "\r\n"
        return header + "\r\n" + body * max((self.octets - len(header) - 2) // len(body), 1)


def decided(policy, client, messages):
    """The oracle: code of the first refusal, and the rule it rests on; (250, None) when there is none."""
    keys = policy.keys
    facts = {
        "remote_ip": client.peer,
        "helo_domain": client.helo or "",
        "sender_domain": client.sender.rpartition("@")[2],
        "authenticated_as": client.login,
        "rcpt_domain": "",
    }

    def say(key, passes=True):
        return keys[key].value(facts, passes)

    def refuses(key, wanted, code, passes):
        """A switch that must have the value `wanted`: the refusal it leads to, or None."""
        value = say(key, passes)
        return (451, key) if value is None else None if value is wanted else (code, key)

    # What EHLO lists has to be known.
    if client.helo is not None:
        if (found := say("session.ehlo.reject-non-fqdn", False)) is None:
            return 451, "session.ehlo.reject-non-fqdn"
        if found and "." not in client.helo:
            return 550, "session.ehlo.reject-non-fqdn"
    elif found := refuses("session.ehlo.require", False, 503, False):
        return found
    if not client.login and (found := refuses("session.auth.require", False, 503, False)):
        return found
    if found := refuses("session.mail.is-allowed", True, 550, True):
        return found
    if client.login and client.sender not in ACCOUNT[client.login]:
        if found := refuses("session.auth.must-match-sender", False, 501, False):
            return found
    if client.requiretls and (found := refuses("session.extensions.requiretls", True, 501, True)):
        return found
    if client.by is not None and (found := in_range(say, "session.extensions.deliver-by", client.by)):
        return found
    if client.priority:
        value = say("session.extensions.mt-priority")
        if value is None:
            return 451, "session.extensions.mt-priority"
        if value is False or client.priority > 6:
            return 501, "session.extensions.mt-priority"
    size = say("session.data.limits.size")
    if client.size is not None and (size is None or client.size > size):
        return 451 if size is None else 552, "session.data.limits.size"
    if client.hold is not None and (found := in_range(say, "session.extensions.future-release", client.hold)):
        return found
    if client.envid and (found := refuses("session.extensions.dsn", True, 501, True)):
        return found
    accepted = []
    for rcpt in client.rcpts:
        facts["rcpt_domain"] = rcpt.rpartition("@")[2]
        most = say("session.rcpt.max-recipients")
        if most is None or len(accepted) >= most:
            return 451 if most is None else 455, "session.rcpt.max-recipients"
        if rcpt in accepted:
            continue
        if facts["rcpt_domain"] == "here.test":
            if rcpt not in LOCAL:
                return 550, "session.rcpt.directory"
        elif found := refuses("session.rcpt.relay", True, 550, True):
            return found
        accepted.append(rcpt)
    # From here on the last recipient accepted is what rules see.
    facts["rcpt_domain"] = accepted[-1].rpartition("@")[2]
    most = say("session.data.limits.messages")
    if most is None or messages >= most:
        return 451 if most is None else 452, "session.data.limits.messages"
    if size is None or len(client.message()) > size:
        return 451 if size is None else 552, "session.data.limits.size"
    if not client.header and not client.received:
        return 550, "header_is_there"
    most = say("session.data.limits.received-headers")
    if most is None or client.received > most:
        return 451 if most is None else 450, "session.data.limits.received-headers"
    return 250, None


def in_range(say, key, asked):
    value = say(key)
    if value is None:
        return 451, key
    longest = {"1h": timedelta(hours=1), "1d": timedelta(days=1)}.get(value)
    return (501, key) if longest is None or timedelta(seconds=asked) > longest else None


# --- both together -------------------------------------------------------------------


def spoken(connection, client, first):
    """Say it all up to the first refusal; its code and the id of what decided."""

    def say(text):
        connection.send(text.encode() + b"\r\n")
        connection.advance(1)
        return connection.received().decode()

    commands = []
    if first and client.helo is not None:
        commands.append(f"EHLO {client.helo}")
        if client.login:
            commands.append("AUTH PLAIN AGphbmUAc2VjcmV0")
    commands += [client.mail(), *(f"RCPT TO:<{rcpt}>" for rcpt in client.rcpts), "DATA", client.message() + "."]
    for command in commands:
        answer = say(command)
        assert answer, command
        last = answer.splitlines()[-1]
        if last[0] in "45":
            return int(last[:3]), re.search(r"\[([a-z2-7]{12})\]$", last)[1]
    return int(last[:3]), re.search(r"id ([0-9A-F]+)", last)[1]


def test_the_rule_that_explain_names_is_the_one_that_decided(tmp_path):
    rng = random.Random(SEED)
    zone = Zone().text("a.example", "yes").text("b.example", "no").fail("dead.test")
    told = Counter()
    for number in range(POLICIES):
        policy = Policy(rng)
        folder = tmp_path / str(number)
        ring = Ring(str(folder), size_octets=1 << 22, age=timedelta(days=1), now=lambda: 1_767_225_600.0)
        listener = ListenerInMemory(policy.text, zone, ring=ring)
        messages, before = 0, None
        for _ in range(TRANSACTIONS):
            client = Client(rng)
            if messages:
                client.peer, client.helo, client.login = before.peer, before.helo, before.login
            else:
                connection = listener.connect(peer=client.peer)
                connection.received()
            code, rule = decided(policy, client, messages)
            got, id = spoken(connection, client, first=not messages)
            # Whoever has sent one message may send another in the same session.
            before, messages = client, messages + 1 if got == 250 else 0
            if not messages:
                connection.leave()
            ring.drain()
            entry = find(str(folder), Question(id=id), 1)[0]
            why = as_json(entry)["decided_by"]
            about = f"{policy.text}\n{vars(client)}\n{why}"
            assert got == code, about
            assert all(step.micros >= 0 for step in entry.steps)
            told[rule] += 1
            if rule is None:
                assert entry.reason == "queued", about
                assert (why["rule"], why["said"]) == ("all policies", "proceed"), about
                continue
            assert why["rule"] == rule, about
            assert why["said"].startswith(f"{code} "), about
            key = policy.keys.get(rule)
            assert why["place"] == (key.place if key else "built-in"), about
            if key is not None:
                read = {each["name"] for each in why["reads"]}
                assert key.variables() <= read, about
    assert told.total() == 1000
    # All of it was seen: whatever can decide has decided, and a good part came through.
    assert 50 < told[None] < 700, told
    assert not {*policy.keys, "session.rcpt.directory", "header_is_there"} - set(told), told
