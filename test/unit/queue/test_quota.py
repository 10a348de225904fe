import pytest
from support.configuration import LISTENER, refusals, settings, warnings
from support.delivery import Outside
from support.sqlite_store import NOW_MS, recipient

from mailgate.mail.unknown import Unknown
from mailgate.queue.charge import Charge
from mailgate.queue.enqueue import Arrival
from mailgate.queue.item import Source
from mailgate.queue.quota import Quotas, QuotaUnknown

DOWN = Unknown("store:partners", "no connection")


def at_once(coroutine):
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("something was waited for")


def quotas(text, outside=None):
    return Quotas(settings(LISTENER + text).queue.quota, outside or Outside())


def charged(text, *addresses, sender="Jane@Example.org", outside=None, source=Source.UNAUTHENTICATED, size=1000):
    """What a message to these addresses is charged: (id, kind, bucket, scope) each."""
    recipients = [recipient(index, address) for index, address in enumerate(addresses or ("a@one.example",))]
    found = at_once(quotas(text, outside).charges(Arrival(NOW_MS, sender, source, size), recipients))
    if isinstance(found, QuotaUnknown):
        return found
    assert all(isinstance(charge, Charge) for charge in found)
    return [(charge.limit.id, charge.limit.kind, charge.bucket, charge.scope) for charge in found]


def test_without_quotas_there_is_nothing_to_ask():
    assert quotas("").of_all == ()


@pytest.mark.spec("OUT-047", "OUT-048")
def test_a_quota_without_key_and_match_is_one_bucket_for_everything():
    text = "[[queue.quota]]\nmessages = 5\nenable = true\n"
    assert charged(text) == [("0000", "Sender", "0000", "message")]
    assert charged(text, "b@two.example", "c@three.example", sender="") == charged(text)
    # It costs no evaluation: the charge is the same object every time.
    (charge,) = quotas(text).of_all
    assert charge.is_of_all


def test_the_key_parts_the_buckets():
    text = "[queue.quota.each]\nmessages = 5\nkey = 'sender'\nenable = true\n"
    ((id, kind, jane, scope),) = charged(text)
    assert (id, kind, scope) == ("each", "Sender", "message")
    assert jane.startswith("each:")
    assert charged(text, sender="jane@EXAMPLE.org")[0][2] == jane
    assert charged(text, sender="joe@example.org")[0][2] != jane
    assert charged(text, sender="")[0][2] not in (jane, charged(text, sender="joe@example.org")[0][2])


def test_the_limits_are_no_part_of_the_bucket():
    text = "[queue.quota.each]\nmessages = {}\nkey = ['sender_domain']\nenable = true\n"
    assert charged(text.format(5)) == charged(text.format(50))


def test_a_key_of_two_names_counts_each_pair():
    text = "[queue.quota.each]\nmessages = 5\nkey = ['sender', 'rcpt_domain']\nenable = true\n"
    assert len({bucket for _, _, bucket, _ in charged(text, "a@one.example", "b@two.example")}) == 2
    same = text.replace("['sender', 'rcpt_domain']", "['rcpt_domain', 'sender']")
    assert charged(same) == charged(text)


@pytest.mark.spec("OUT-046")
def test_by_recipient_each_one_is_charged():
    text = "[queue.quota.each]\nmessages = 5\nkey = ['rcpt']\nenable = true\n"
    found = charged(text, "a@one.example", "b@one.example")
    assert [(kind, scope) for _, kind, _, scope in found] == [
        ("Recipient", "recipient 0"),
        ("Recipient", "recipient 1"),
    ]
    assert len({bucket for _, _, bucket, _ in found}) == 2


def test_by_domain_each_one_is_charged_once_by_every_quota():
    text = (
        "[queue.quota.a]\nmessages = 5\nkey = ['rcpt_domain']\nenable = true\n"
        "[queue.quota.b]\nsize = 5000\nkey = ['rcpt_domain']\nenable = true\n"
    )
    found = charged(text, "a@one.example", "b@one.example", "c@two.example")
    assert [(id, kind, scope) for id, kind, _, scope in found] == [
        ("a", "Domain", "domain one.example"),
        ("a", "Domain", "domain two.example"),
        ("b", "Domain", "domain one.example"),
        ("b", "Domain", "domain two.example"),
    ]


@pytest.mark.parametrize(
    ("match", "kind"),
    [
        ("rcpt == 'a@one.example'", "Recipient"),
        ("rcpt_domain == 'one.example'", "Domain"),
        ("sender_domain == 'example.org'", "Sender"),
    ],
)
def test_what_match_names_decides_what_is_counted(match, kind):
    assert charged(f'[queue.quota.q]\nmessages = 5\nmatch = "{match}"\nenable = true\n')[0][1] == kind


@pytest.mark.spec("OUT-049")
def test_match_restricts_a_quota():
    text = "[queue.quota.q]\nmessages = 5\nkey = 'rcpt'\nmatch = \"rcpt_domain == 'one.example'\"\nenable = true\n"
    assert [scope for *_, scope in charged(text, "a@one.example", "b@two.example", "c@one.example")] == [
        "recipient 0",
        "recipient 2",
    ]


@pytest.mark.parametrize(
    ("match", "applies"),
    [
        ("size > 999", True),
        ("size > 1000", False),
        ("source == 'authenticated'", False),
        ("queue_name == 'remote'", True),
        ("mx == '' && remote_ip == '0.0.0.0'", True),
        ("false", False),
        ("true", True),
    ],
)
def test_variables_of_match(match, applies):
    assert bool(charged(f'[queue.quota.q]\nmessages = 5\nmatch = "{match}"\nenable = true\n')) == applies


def test_messages_come_first_then_domains_then_recipients():
    text = "".join(
        f"[[queue.quota]]\nmessages = 5\nkey = [{key}]\nenable = true\n" for key in ("'rcpt'", "'rcpt_domain'", "")
    )
    assert [kind for _, kind, _, _ in charged(text)] == ["Sender", "Domain", "Recipient"]


@pytest.mark.spec("OUT-063")
def test_enable():
    off = "[[queue.quota]]\nmessages = 1\nenable = false\n"
    assert quotas(off).of_all == ()
    assert not [line for line in warnings(LISTENER + off) if "quota" in line]
    silent = "[[queue.quota]]\nmessages = 1\n"
    assert len(quotas(silent).of_all) == 1
    (told,) = [line for line in warnings(LISTENER + silent) if "quota" in line]
    assert "queue.quota.0000.enable: the key is missing: the quota is enforced" in told
    assert told.startswith("t.toml:7: ")


@pytest.mark.spec("OUT-262")
def test_an_answer_nobody_gives_is_no_guess():
    outside = Outside()
    outside.unknown["store"] = DOWN
    text = (
        "[lookup]\npartners = ['x']\n"
        "[queue.quota.q]\nmessages = 5\nmatch = \"key_exists('partners', sender_domain)\"\nenable = true\n"
    )
    found = charged(text, outside=outside)
    assert isinstance(found, QuotaUnknown)
    assert found.unknown == DOWN
    assert (found.cause.rule, found.cause.place) == ("queue.quota.q.match", "t.toml:11")
    assert found.cause.reads == (("sender_domain", "example.org"),)


@pytest.mark.spec("OUT-050")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[queue.quota]]\nenable = true\n", "t.toml:7: queue.quota.0000: the quota limits nothing"),
        ("[queue.quota.x]\nkey = ['sender']\nenable = true\n", "t.toml:7: queue.quota.x: the quota limits nothing"),
        ("[[queue.quota]]\nmessages = 1\nkey = ['remote_ip']\n", 't.toml:9: queue.quota.0000.key: "remote_ip"'),
        ("[[queue.quota]]\nmessages = 0\n", "t.toml:8: queue.quota.0000.messages: 0"),
        ("[[queue.quota]]\nsize = 0\n", "t.toml:8: queue.quota.0000.size: 0 is no usable size"),
        ("[[queue.quota]]\nmessages = 1\nmatch = \"listener == 'smtp'\"\n", "t.toml:9: queue.quota.0000.match: "),
        ("[[queue.quota]]\nmessages = 1\nrate = 1\n", "t.toml:9: queue.quota.0000.rate: unknown key"),
        ("[queue]\nquota = 5\n", "t.toml:8: queue.quota: 5 is no table"),
        ("[queue]\nquota = [5]\n", "t.toml:8: queue.quota.0000: 5 is no table"),
    ],
)
def test_what_is_no_quota(text, told):
    (found,) = [line for line in refusals(LISTENER + text) if "queue.quota" in line]
    assert found.startswith(told)


def test_both_ways_of_writing_them():
    listed = settings(LISTENER + "[[queue.quota]]\nmessages = 1\ndescription = 'x'\n[[queue.quota]]\nsize = '1mb'\n")
    assert {id: (one.messages, one.size) for id, one in listed.queue.quota.items()} == {
        "0000": (1, None),
        "0001": (None, 1048576),
    }
    assert [one.place for one in listed.queue.quota.values()] == ["t.toml:7", "t.toml:10"]
    named = settings(LISTENER + "[queue.quota.all]\nmessages = 1\n")
    assert list(named.queue.quota) == ["all"]
