"""Every bad reply at every step of a delivery: what becomes of each recipient, and that nothing is lost.

Each cell of the table is a next hop of its own and gets one message for two recipients. All of them fail, the queue is
looked at, then all of them are healed: what was delayed arrives, what was refused was told to its sender, once.
"""

import re
import smtplib
import sqlite3
from collections import Counter

import pytest
from support.bad_hop import FAULTS, BadHops, Cell, cells
from support.daemon import Gateway
from support.ports import wait_until
from support.queue_invariants import violations
from support.sink import NextHop

CHANGES = """
[session.data.limits]
messages = 1000
size = 10000000

[queue]
poll = "200ms"

[queue.virtual.remote]
threads-per-node = 40

[queue.strategy]
route = [
    { if = "rcpt_domain = 'sender.test'", then = "'sender'" },
    { else = "strip_suffix(rcpt_domain, '.test')" },
]
schedule = [ { if = "source = 'dsn'", then = "'dsn'" }, { else = "'quick'" } ]

[queue.schedule.quick]
queue-name = "remote"
retry = "3s"
expire = "1h"

[queue.connection.default]
timeout = { connect = "5s", greeting = "1s", ehlo = "1s", mail-from = "1s", rcpt-to = "1s", data = "2s" }
"""

LATER, NEVER, TAKEN = "later", "never", "taken"
# Taken, but the reply that says so stands behind one that nobody can read: it is sent again.
DOUBT = "doubt"

# What becomes of both recipients when the step goes wrong in this way.
USUAL = dict.fromkeys(FAULTS, (LATER, LATER)) | {"5xx": (NEVER, NEVER)}
DONE = USUAL | {"early": (TAKEN, TAKEN)}
OUTCOMES = {
    "greeting": USUAL,
    "ehlo": USUAL,
    "lhlo": USUAL,
    # Opportunistic TLS: a refusal is no fault, mail goes on in clear text.
    "starttls": dict.fromkeys(FAULTS, (LATER, LATER)) | {"4xx": (TAKEN, TAKEN), "5xx": (TAKEN, TAKEN)},
    # A password that is refused is ours to repair.
    "auth": dict.fromkeys(FAULTS, (LATER, LATER)),
    "mail": USUAL,
    "rcpt": dict.fromkeys(FAULTS, (LATER, LATER)) | {"4xx": (TAKEN, LATER), "5xx": (TAKEN, NEVER)},
    "data": USUAL,
    "content": USUAL,
    "final": DONE,
    "bdat": DONE,
    "first": dict.fromkeys(FAULTS, (LATER, LATER))
    | {"4xx": (LATER, TAKEN), "5xx": (NEVER, TAKEN), "early": (TAKEN, TAKEN)}
    | dict.fromkeys(("garbage", "overlong"), (LATER, DOUBT)),
    "second": dict.fromkeys(FAULTS, (TAKEN, LATER)) | {"5xx": (TAKEN, NEVER), "early": (TAKEN, TAKEN)},
}


def submit(gateway, cell):
    # So large where the content is what goes wrong that it cannot all be on its way at once.
    body = "x" * 70 + "\r\n"
    text = "Subject: x\r\n\r\n" + body * (100_000 if cell.step == "content" else 1)
    with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=60) as client:
        client.ehlo("client.test")
        client.sendmail("joe@sender.test", [f"{name}@{cell.name}.test" for name in "ab"], text)


def states(gateway):
    """The state of everybody who is still queued, and the number of failed attempts, by address."""
    db = sqlite3.connect(f"file:{gateway.queue_path}?mode=ro", uri=True, timeout=10)
    try:
        return {
            address: (state, number)
            for address, state, number in db.execute("SELECT address, state, retry_num FROM recipient")
            if not address.endswith("@sender.test")
        }
    finally:
        db.close()


class Table:
    """What came of all cells."""

    def __init__(self, gateway, hops, sender):
        self.hops = hops
        self.sender = sender
        for cell in cells():
            submit(gateway, cell)
        wait_until(
            lambda: all(state != "scheduled" for state, _ in states(gateway).values()), 60, "an attempt at everybody"
        )
        self.after_one = states(gateway)
        self.kept_before = {cell: self._count(cell) for cell in cells()}
        hops.heal()
        gateway.wait_queue_empty(60)
        self.kept_after = {cell: self._count(cell) for cell in cells()}
        self.told = Counter(
            address.decode()
            for message in sender.messages
            for address in re.findall(rb"Final-Recipient: rfc822;(\S+)", message.octets)
        )
        self.log = gateway.log_text()

    def _count(self, cell):
        """How often each recipient of a cell was taken."""
        return Counter(re.search(r"<(.*)>", line)[1] for message in self.hops.kept[cell] for line in message)


@pytest.fixture(scope="module")
def table(tmp_path_factory, authority):
    """The whole table, played once."""
    folder = tmp_path_factory.mktemp("bad-hops")
    with BadHops(authority.issue("hop.test", "127.0.0.1")) as hops, NextHop() as sender:
        text = f'[queue.route.sender]\ntype = "relay"\naddress = "127.0.0.1"\nport = {sender.port}\n'
        text += "tls.implicit = false\n"
        for cell, port in hops.ports.items():
            text += f'[queue.route.{cell.name}]\ntype = "relay"\naddress = "127.0.0.1"\nport = {port}\n'
            text += "tls = { implicit = false, allow-invalid-certs = true }\n"
            if cell.kind == "lmtp":
                text += 'protocol = "lmtp"\n'
            if cell.step == "auth":
                text += 'auth = { username = "gate", secret = "way" }\n'
        with Gateway(folder, base="B0", changes=(CHANGES, text)) as gateway:
            yield Table(gateway, hops, sender)
        assert violations(gateway.queue_path, folder / "spool") == []


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: cell.name)
def test_cell(table, cell: Cell):
    for name, outcome in zip("ab", OUTCOMES[cell.step][cell.fault], strict=True):
        address = f"{name}@{cell.name}.test"
        queued = table.after_one.get(address)
        found = (queued, table.kept_before[cell][address], table.kept_after[cell][address], table.told[address])
        if outcome in (LATER, DOUBT):
            assert queued is not None, found
            assert queued[0] == "temp_fail", found
            assert queued[1] >= 1, found
            assert found[1] == 0 or outcome == DOUBT, found
            assert found[2:] == (found[1] + 1, 0), found
        elif outcome == TAKEN:
            assert queued is None or queued[0] == "completed", found
            assert found[1:] == (1, 1, 0), found
        else:
            assert queued is None or queued[0] == "perm_fail", found
            assert found[1:] == (0, 0, 1), found


def test_nobody_else_was_told_anything(table):
    assert sum(table.told.values()) == sum(
        outcome == NEVER for cell in cells() for outcome in OUTCOMES[cell.step][cell.fault]
    )


def test_no_fault_of_a_next_hop_is_a_fault_of_ours(table):
    assert "Traceback" not in table.log
    assert "internal-error" not in table.log
