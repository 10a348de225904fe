"""`mailgate queue list, show, why, export, check, status` with a daemon that runs, and after it has ended."""

import base64
import contextlib
import hashlib
import json
import re
import smtplib
import sqlite3

import pytest
from support.command import command
from support.daemon import Gateway
from support.dns_server import DnsServer
from support.ports import free_port, wait_until
from support.zone import Zone

CONFIG = """
[session.rcpt]
relay = true
[queue]
inline-size = 1000
[queue.strategy]
route = [ {{ if = "rcpt_domain == 'mx.test'", then = "'mx'" }}, {{ else = "'nobody'" }} ]
schedule = "'hourly'"
[queue.schedule.hourly]
queue-name = "default"
retry = "1h"
expire = "2d"
[queue.route.mx]
type = "mx"
port = {closed}
allow-loopback = true
[queue.route.nobody]
type = "relay"
address = "127.0.0.1"
port = {closed}
tls.implicit = false
"""
READS = [
    ["list"],
    ["show", "ID"],
    ["why", "ID"],
    ["export", "ID"],
    ["check"],
    ["status"],
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, authority):
    zone = Zone().mx_set("mx.test", (20, "b.mx.test"), (10, "a.mx.test"))
    zone.a("a.mx.test", "127.0.0.1").a("b.mx.test", "127.0.0.1")
    with DnsServer(zone) as server:
        resolver = f'[resolver]\ntype = "custom"\ncustom = ["udp://127.0.0.1:{server.port}"]\n'
        changes = (CONFIG.format(closed=free_port()), resolver)
        yield Gateway(tmp_path_factory.mktemp("reads"), authority, changes=changes)


@pytest.fixture(scope="module")
def small(gateway):
    """A message that waits for its next attempt; the daemon runs from here on."""
    gateway.start()
    yield send(gateway, "a@wait.test")
    if gateway.is_running:
        gateway.stop()


@pytest.fixture(scope="module")
def large(gateway, small):
    return send(gateway, "b@mx.test", body="x" * 70 + "\r\n" + "y" * 5000)


def send(gateway, recipient, body="hi"):
    with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
        client.ehlo("client.test")
        client.mail("jane@foobar.org")
        assert client.rcpt(recipient)[0] == 250
        code, text = client.data(f"Subject: x\r\n\r\n{body}\r\n")
    assert code == 250
    id_ = re.search(r"queued with id ([0-9a-f]+)", text.decode())[1].zfill(16)

    def failed_once():
        with sqlite(gateway) as db:
            asked = "SELECT retry_num, lease_owner FROM recipient JOIN unit USING (message_id) WHERE message_id = ?"
            return db.execute(asked, (int(id_, 16),)).fetchone() == (1, None)

    wait_until(failed_once, 20, "the first attempt")
    return id_


def sqlite(gateway):
    return contextlib.closing(sqlite3.connect(gateway.queue_path, timeout=10, isolation_level=None))


def asked(gateway, *arguments, status=0):
    done = command(gateway.config, "queue", *arguments, "--json")
    assert done.returncode == status, (done.stdout, done.stderr)
    # Exactly one document.
    return json.loads(done.stdout)


@pytest.mark.spec("OUT-275", "OUT-269")
def test_an_export_has_the_octets_and_the_entry(gateway, small, large, tmp_path):
    found = asked(gateway, "export", "--dir", str(tmp_path / "out"))
    assert found["matched"] == 2
    assert sorted(found["files"]) == sorted(
        str(tmp_path / "out" / f"{id_}.{kind}") for id_ in (small, large) for kind in ("eml", "json")
    )
    for id_ in (small, large):
        octets = (tmp_path / "out" / f"{id_}.eml").read_bytes()
        facts = json.loads((tmp_path / "out" / f"{id_}.json").read_text())
        digest = base64.urlsafe_b64encode(hashlib.sha256(octets).digest()).rstrip(b"=").decode()
        assert (facts["id"], facts["blob_hash"], facts["size"]) == (id_, digest, len(octets))
        assert facts == asked(gateway, "show", id_)
        assert octets == command(gateway.config, "queue", "show", id_, "--content").stdout.encode()
        assert asked(gateway, "export", id_)["items"] == [{**facts, "content": base64.b64encode(octets).decode()}]
    lines = command(gateway.config, "queue", "export", "--sender", "jane").stdout.splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == sorted([small, large])
    assert asked(gateway, "export", "1234", status=1) == {"matched": 0, "items": []}
    assert (tmp_path / "out" / f"{small}.eml").stat().st_mode & 0o777 == 0o600


@pytest.mark.spec("OUT-278")
def test_why_knows_everything_while_the_daemon_runs(gateway, small, large):
    found = asked(gateway, "why", small)
    assert (found["id"], found["complete"]) == (small, True)
    (recipient,) = found["recipients"]
    assert (recipient["address"], recipient["due"] > found["recipients"][0]["expires"]) == ("a@wait.test", False)
    (blocker,) = recipient["blockers"]
    assert (blocker["kind"], blocker["name"], blocker["until"]) == ("retry", "connection", recipient["due"])
    assert [item["id"] for item in asked(gateway, "why", small, large)["items"]] == [small, large]
    text = command(gateway.config, "queue", "why", large.upper(), small).stdout
    assert "next: route mx, schedule hourly, TLS default" in text
    assert re.search(r"10 a\.mx\.test\n\s+20 b\.mx\.test\n", text)
    assert "next: route nobody, schedule hourly, TLS default" in text
    assert "retry connection: after failure number 1" in text


@pytest.mark.spec("OUT-278", "OUT-268")
def test_why_of_what_is_not_there_points_to_explain(gateway, small):
    done = command(gateway.config, "queue", "why", "1234")
    assert (done.returncode, done.stdout) == (1, "")
    assert "mailgate explain 0000000000001234" in done.stderr
    assert asked(gateway, "why", "1234", status=1)["error"]["code"] == 1
    done = command(gateway.config, "queue", "why", "1234", small, "--json")
    assert (done.returncode, json.loads(done.stdout)["items"][0]["id"]) == (1, small)


@pytest.mark.spec("OUT-276")
def test_a_repair_goes_through_the_daemon(gateway, small):
    assert asked(gateway, "check")["problems"] == []
    with sqlite(gateway) as db:
        db.execute("UPDATE unit SET due = due + 5 WHERE message_id = ?", (int(small, 16),))
    (problem,) = asked(gateway, "check", status=1)["problems"]
    assert (problem["invariant"], problem["id"]) == ("QI3", small)
    text = command(gateway.config, "queue", "check").stdout
    assert f"QI3 {small}: its unit in queue default is due at " in text
    assert text.endswith("1 problem\n")
    found = asked(gateway, "check", "--repair")
    assert (found["problems"], [each["id"] for each in found["repaired"]]) == ([], [small])
    assert found["counts"]["message"] == found["counts"]["unit"]
    assert f"queue.operator queueId={small} action=repair" in gateway.log_text()


@pytest.mark.spec("OUT-266", "OUT-276")
def test_everything_that_reads_works_without_the_daemon(gateway, small, large):
    before = {" ".join(read): asked(gateway, *_of(read, small)) for read in READS}
    gateway.stop()
    after = {" ".join(read): asked(gateway, *_of(read, small)) for read in READS}
    assert before["status"].pop("daemon") is True
    assert after["status"].pop("daemon") is False
    assert before["why ID"].pop("complete") is True
    assert after["why ID"].pop("complete") is False
    assert after == before
    assert "Not complete" in command(gateway.config, "queue", "why", small).stdout
    with sqlite(gateway) as db:
        db.execute("DELETE FROM unit WHERE message_id = ?", (int(small, 16),))
    assert [each["invariant"] for each in asked(gateway, "check", status=1)["problems"]] == ["QI2"]
    assert asked(gateway, "check", "--repair")["problems"] == []
    assert asked(gateway, "check")["problems"] == []


def _of(read, id_):
    return [id_ if word == "ID" else word for word in read]


@pytest.mark.spec("OUT-268", "OUT-269")
def test_what_cannot_be_read_now_is_75_and_a_broken_configuration_78(gateway, small, tmp_path):
    text = gateway.config.read_text()
    for name, changed, status in (
        ("gone", text.replace(str(gateway.queue_path), str(tmp_path / "nothing.sqlite")), 75),
        ("broken", text + "\n[nonsense]\n", 78),
    ):
        config = tmp_path / f"{name}.toml"
        config.write_text(changed)
        for read in READS:
            done = command(config, "queue", *_of(read, small), "--json")
            assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (status, status), read
