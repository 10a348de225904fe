import json
from datetime import timedelta

import pytest

from mailgate.decisions.entry import Kind, Trail
from mailgate.decisions.explain import BadQuestion, Question, as_json, find, told
from mailgate.decisions.ring import Ring, segments
from mailgate.mail.reply import reply
from mailgate.mail.session import Session
from mailgate.mail.unknown import Unknown


class Clock:
    now = 1_700_000_000.0

    def __call__(self):
        self.now += 1
        return self.now


def session(ip="192.0.2.1", id="sessionaaaaa"):
    return Session(id, "smtp", "smtp", ip, 53211, "192.0.2.9", 25, "mx.test", helo="client.test")


@pytest.fixture
def ring(tmp_path):
    return Ring(str(tmp_path), size_octets=1 << 20, age=timedelta(days=10_000), now=Clock())


def record(ring, trace, *, rcpt="jane@foobar.org", ip="192.0.2.1", queue_id=None, sid="sessionaaaaa", **given):
    trail = Trail(trace, 1_700_000_000_000)
    trail.sender = "a@b.test"
    trail.add("rcpt", "session.rcpt.relay", "mailgate.toml:31", (("rcpt_domain", "foobar.org"),), "false", 7)
    trail.add_recipient(rcpt, "550 5.1.2")
    trail.add("data", "message-has-header", "built-in", (("fields", 0),), "550 5.6.0", 3)
    said = (reply(550, "5.6.0", "No header"),) if queue_id is None else (reply(250, "2.0.0", "Queued"),)
    ring.record(
        Kind.TRANSACTION,
        trail,
        session(ip, sid),
        replies=said,
        reason="" if queue_id else "no-header",
        queue_id=queue_id,
        size_octets=10,
    )
    ring.drain()


def traces(folder, limit=10, **question):
    return [entry.trace for entry in find(str(folder), Question(**question), limit)]


@pytest.fixture
def five(ring, tmp_path):
    record(ring, "aaaaaaaaaaaa", rcpt="Jane@Foobar.org", queue_id=0x00000192ABCDEF01)
    record(ring, "bbbbbbbbbbbb", rcpt='"od\\d"@foobar.org', ip="2001:db8::1")
    record(ring, "cccccccccccc", rcpt="ümlaut@foobar.org", ip="198.51.100.7")
    record(ring, "dddddddddddd", sid="sessionbbbbb")
    record(ring, "eeeeeeeeeeee", sid="sessionbbbbb", queue_id=0xEEEEEEEE)
    return tmp_path


def test_by_trace_id_in_either_case(five):
    assert traces(five, id="cccccccccccc") == ["cccccccccccc"]
    assert traces(five, id="CCCCCCCCCCCC") == ["cccccccccccc"]
    assert traces(five, id="zzzzzzzzzzzz") == []


def test_by_session_id_gives_all_its_transactions(five):
    assert traces(five, id="sessionbbbbb") == ["eeeeeeeeeeee", "dddddddddddd"]


@pytest.mark.parametrize("id", ["00000192abcdef01", "00000192ABCDEF01", "192abcdef01"])
def test_by_queue_id(five, id):
    assert traces(five, id=id) == ["aaaaaaaaaaaa"]


def test_part_of_a_queue_id_is_not_that_id(five):
    assert traces(five, id="abcdef01") == []
    assert traces(five, id="eeeeeeee") == ["eeeeeeeeeeee"]


def test_by_recipient(five):
    assert traces(five, rcpt="JANE@") == ["eeeeeeeeeeee", "dddddddddddd", "aaaaaaaaaaaa"]
    assert traces(five, rcpt='"od\\d"') == ["bbbbbbbbbbbb"]
    assert traces(five, rcpt="ÜMLAUT") == ["cccccccccccc"]
    # What is elsewhere in the entry does not count.
    assert traces(five, rcpt="client.test") == []


def test_by_peer(five):
    assert traces(five, peer="198.51.100.7") == ["cccccccccccc"]
    assert traces(five, peer="2001:DB8:0::1") == ["bbbbbbbbbbbb"]
    assert traces(five, peer="198.51.0.0/16") == ["cccccccccccc"]
    assert traces(five, peer="192.0.2.9") == []


def test_all_that_is_asked_must_hold(five):
    assert traces(five, rcpt="jane", peer="198.51.100.7") == []
    assert traces(five, id="sessionbbbbb", rcpt="jane") == ["eeeeeeeeeeee", "dddddddddddd"]


def test_the_newest(five):
    assert traces(five, 2) == ["eeeeeeeeeeee", "dddddddddddd"]
    assert len(traces(five, 100)) == 5


def test_the_newest_of_several_processes(tmp_path):
    clock = Clock()
    rings = [
        Ring(str(tmp_path), size_octets=1 << 20, age=timedelta(days=10_000), now=clock),
        Ring(str(tmp_path), size_octets=1 << 20, age=timedelta(days=10_000), now=clock),
    ]
    for number in range(6):
        record(rings[number % 2], f"aaaaaaaaaaa{number + 2}")
    assert traces(tmp_path, 3) == ["aaaaaaaaaaa7", "aaaaaaaaaaa6", "aaaaaaaaaaa5"]


def test_a_torn_end_hides_nothing_else(five):
    with open(segments(str(five))[-1], "ab") as file:
        file.write(b'["transaction","ffffffffffff"')
    assert traces(five, 1) == ["eeeeeeeeeeee"]


def test_a_ring_that_is_not_there_is_empty(tmp_path):
    assert traces(tmp_path / "none") == []


@pytest.mark.parametrize(
    "question", [{"id": "xyz!"}, {"id": ""}, {"id": "g" * 16}, {"peer": "nohost"}, {"peer": "1.2.3.4/33"}]
)
def test_what_cannot_be_looked_for(question):
    with pytest.raises(BadQuestion):
        Question(**question)


def test_told_to_people(five):
    (entry,) = find(str(five), Question(id="dddddddddddd"), 1)
    text = told(entry)
    for part in (
        "Transaction dddddddddddd of session sessionbbbbb, 2023-11-14 22:13:20.000 UTC",
        "192.0.2.1:53211 to 192.0.2.9:25",
        "sender    <a@b.test>",
        "recipient <jane@foobar.org>: 550 5.1.2",
        "reply     550 5.6.0 No header",
        "reason    no-header",
        "session.rcpt.relay (mailgate.toml:31) -> false",
        'rcpt_domain = "foobar.org"',
        "message-has-header (built-in) -> 550 5.6.0",
        "fields = 0",
    ):
        assert part in text
    (entry,) = find(str(five), Question(id="aaaaaaaaaaaa"), 1)
    assert "queue id  00000192abcdef01" in told(entry)


def test_what_strangers_wrote_cannot_play_with_the_terminal(ring, tmp_path):
    record(ring, "aaaaaaaaaaaa", rcpt="\x1b[2J\nx@y.test")
    (entry,) = find(str(tmp_path), Question(), 1)
    assert "\x1b" not in told(entry)
    assert "\\x1b[2J\\nx@y.test" in told(entry)


def test_unknown_answers_are_told_with_dependency_and_reason(ring, tmp_path):
    trail = Trail("aaaaaaaaaaaa", 0)
    trail.add("mail", "session.mail.is-allowed", "m.toml:1", (("dns_query", Unknown("dns", "SERVFAIL")),), "unknown", 1)
    ring.record(Kind.SESSION, trail, session(id="aaaaaaaaaaaa"), replies=())
    ring.drain()
    (entry,) = find(str(tmp_path), Question(), 1)
    assert "Session aaaaaaaaaaaa," in told(entry)
    assert "dns_query = unknown (dns: SERVFAIL)" in told(entry)


def test_told_to_programs(five):
    (entry,) = find(str(five), Question(id="aaaaaaaaaaaa"), 1)
    facts = json.loads(json.dumps(as_json(entry)))
    assert facts["trace"] == "aaaaaaaaaaaa"
    assert facts["queue_id"] == "00000192abcdef01"
    assert facts["started"] == "2023-11-14T22:13:20.000Z"
    assert facts["steps"][0]["reads"] == [{"name": "rcpt_domain", "value": "foobar.org"}]
    assert "tls" not in facts
    assert "reason" not in facts
