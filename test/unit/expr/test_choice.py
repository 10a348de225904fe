"""The if/then/else list: its shape, what is reported about it, what it reads, what an unknown one means."""

import tomllib
from datetime import timedelta

import pytest
from support.expressions import DOWN, Facts, Table, compiled, drive, errors, evaluated

from mailgate.expr.choice import Choice
from mailgate.expr.compile import OnError
from mailgate.expr.error import ExpressionErrors
from mailgate.expr.kind import BOOLEAN, DURATION, MECHANISMS, NAME, NAMES, STRING, WORD, boolean
from mailgate.expr.scope import Context
from mailgate.mail.unknown import Unknown

U = "key_exists('down', 'x')"

IF = {"if": "is_tls", "then": True}
ELSE = {"else": False}


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ([{"if": "is_tls"}, ELSE], ["element 1: missing then; write { if = ..., then = ... }"]),
        ([IF, {"if": "asn"}, ELSE], ["element 2: missing then; write { if = ..., then = ... }"]),
        ([IF], ["missing else; add { else = ... } as the last element"]),
        ([ELSE, IF], ["element 1: else before if"]),
        ([ELSE], ["element 1: else before if"]),
        ([IF, ELSE, ELSE], ["element 3: multiple else"]),
        ([IF, {"else": False, "then": True}], ["element 2: misplaced then: beside else"]),
        ([IF, {"then": True}, ELSE], ["element 2: misplaced then: without if"]),
        ([{"if": "is_tls", "then": 1, "else": 2}, ELSE], ["element 1: else beside if"]),
        ([IF, ELSE, {"on-error": "maybe"}], ["element 3: bad on-error: 'maybe'"]),
        ([IF, ELSE, {"on-error": True}], ["element 3: bad on-error: true"]),
        ([IF, ELSE, {"on-error": "local"}], ["element 3: bad on-error: 'local'"]),
        ([IF | {"on-error": "accept"}, ELSE], ["element 1: bad on-error: beside another key"]),
        ([IF, ELSE | {"on-error": "accept"}], ["element 2: bad on-error: beside another key"]),
        ([IF, ELSE, {"on-error": "accept"}, {"on-error": "accept"}], ["element 4: bad on-error: written twice"]),
        ([IF, {"els": False}, ELSE], ["element 2: invalid property els; did you mean else?"]),
        ([IF, {"colour": 1}, ELSE], ["element 2: invalid property colour; the keys are if, then, else, on-error"]),
        ([IF | {"unless": "asn"}, ELSE], ["element 1: invalid property unless"]),
        ([IF, {}, ELSE], ["element 2: an empty element"]),
        ([IF, ELSE, "true"], ["element 3: an element that is not { ... }"]),
        ([IF, {"else": {"if": "is_tls"}}], ["element 2, else: a table is no expression"]),
        ([{"if": "", "then": 1}, ELSE], ["element 1, if: an empty expression"]),
        (
            [{"if": "rcp = 'a'", "then": "len('a', 'b')"}, {"if": "("}, {"else": "nothing_like_it"}],
            [
                "element 1, if, column 1: no variable or constant rcp; did you mean rcpt?",
                "element 1, then, column 1: len takes 1 argument, not 2",
                "element 2, if, column 2: a value is missing before the end",
                "element 2: missing then",
                "element 3, else, column 1: no variable or constant nothing_like_it; write 'nothing_like_it' in quotes",
            ],
        ),
    ],
)
def test_every_error_of_a_block_is_told_with_its_place(block, told):
    found = errors(block)
    assert len(found) == len(told)
    for one, expected in zip(found, told, strict=True):
        assert one.startswith(expected)


def test_every_error_of_one_expression_is_told():
    written = "is_tls & rcp = 'x' & foo(1) & len() & matches('(', sender) & config_get('server.hostnam') = 'x'"
    found = errors(written)
    places = [written.index(part) + 1 for part in ("rcp", "foo", "len", "matches", "config_get")]
    assert [told.split(": ")[0] for told in found] == [f"column {column}" for column in places]
    assert found[-1].endswith("config_get: no key server.hostnam; did you mean server.hostname?")


def test_an_error_has_its_parts():
    with pytest.raises(ExpressionErrors) as wrong:
        compiled([IF, {"else": "1 + rcp"}])
    (error,) = wrong.value.errors
    assert (error.element, error.slot, error.column, error.problem) == (2, "else", 5, "no variable or constant rcp")
    assert str(wrong.value) == str(error)


def test_a_variable_of_another_context():
    (told,) = errors("rcpt = 'x'", context=Context.MAIL)
    assert told.startswith("column 1: rcpt is not available at MAIL; available: listener, protocol, remote_ip")
    assert "sender_domain" in told


def test_a_function_without_its_brackets():
    assert errors("len = 5") == ["column 1: len is a function; write len(x)"]


def test_the_name_of_a_key_is_written_out():
    (told,) = errors("config_get(sender)")
    assert "config_get wants a key that is written out" in told


@pytest.mark.parametrize(
    ("context", "names"),
    [
        (Context.CONN, "listener protocol remote_ip remote_port local_ip local_port is_tls asn country"),
        (Context.EHLO, "listener protocol remote_ip remote_port local_ip local_port is_tls asn country helo_domain"),
        (
            Context.MAIL,
            "listener protocol remote_ip remote_port local_ip local_port is_tls asn country helo_domain"
            " sender sender_domain authenticated_as",
        ),
        (
            Context.RCPT,
            "listener protocol remote_ip remote_port local_ip local_port is_tls asn country helo_domain"
            " sender sender_domain authenticated_as rcpt rcpt_domain recipients priority",
        ),
        (Context.ADDR, "rcpt address email"),
        (
            Context.RECIPIENT,
            "rcpt rcpt_domain recipients sender sender_domain priority retry_num notify_num expires_in last_status"
            " last_error queue_name queue_age received_from_ip received_via_port source size",
        ),
        (
            Context.HOST,
            "rcpt rcpt_domain recipients sender sender_domain priority retry_num notify_num expires_in last_status"
            " last_error queue_name queue_age received_from_ip received_via_port source size mx remote_ip local_ip",
        ),
    ],
)
def test_the_variables_of_a_context(context, names):
    for name in names.split():
        assert errors(name, context=context) == []
    (told,) = errors("no_such_name", context=context)
    assert set(told.partition("available: ")[2].split(", ")) == set(names.split())


def test_synonyms_read_the_same():
    for name in ("rcpt", "address", "email"):
        assert evaluated(f"{name} = 'a@b'", context=Context.ADDR, rcpt="a@b") == 1


# --- constants ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        True,
        5,
        "5m",
        "1 + 2",
        "config_get('server.hostname') + 'x'",
        [{"if": "1 = 1", "then": "'a'"}, {"else": "sender"}],
        [{"if": "is_tls & 0", "then": "sender"}, {"else": "'a'"}],
        [{"if": "matches('(a)', 'xay')", "then": "$1"}, {"else": "'b'"}],
        "if_then(1, 'a', sender)",
        "sender | 1",
        "0 & key_exists('down', 'x')",
        "key_exists('down', 'x') | 1",
    ],
)
def test_what_reads_nothing_is_computed_at_load(raw):
    choice = compiled(raw)
    assert choice.is_constant
    assert choice.variables == ()
    facts = Facts()
    drive(choice.value(facts))
    assert facts.notes == []
    assert facts.outside.asked == []


def test_computed_with_captures():
    assert evaluated([{"if": "matches('x(a)', 'xay')", "then": "$1"}, {"else": "'b'"}]) == "a"
    assert evaluated("matches('x(a)', 'xay') & $1 = 'a'") == 1


def test_captures_survive_what_is_folded_beside_them():
    written = "(matches('(a)', 'a') & 0 | matches('(b)', sender) | 1) & $1"
    for known in ({}, {"sender": "b"}):
        choice = compiled(written).specialise(known)
        assert drive(choice.value(Facts(sender="b"))) == 1
        assert drive(compiled(written).value(Facts(sender="x"))) == 0


def test_a_default_built_in_code():
    choice = Choice.constant(timedelta(minutes=5), "session.timeout")
    assert (choice.key, choice.place, choice.is_constant) == ("session.timeout", "built-in", True)
    assert drive(choice.value(Facts())) == timedelta(minutes=5)
    assert drive(Choice.constant(None, "k").value(Facts())) is None
    assert choice.specialise({"listener": "smtp"}) is choice


def test_known_per_listener():
    block = [
        {"if": "listener = 'smtp'", "then": "5m"},
        {"if": "listener = 'in' & is_tls", "then": "6m"},
        {"else": "7m"},
    ]
    choice = compiled(block, DURATION)
    smtp = choice.specialise({"listener": "smtp", "protocol": "smtp"})
    inner = choice.specialise({"listener": "in"})
    assert (smtp.is_constant, inner.is_constant, choice.is_constant) == (True, False, False)
    assert inner.variables == ("is_tls",)
    assert (smtp.key, smtp.place) == (choice.key, choice.place)
    assert drive(smtp.value(Facts())) == timedelta(minutes=5)
    assert drive(inner.value(Facts(is_tls=1))) == timedelta(minutes=6)
    assert drive(choice.value(Facts(listener="x", is_tls=0))) == timedelta(minutes=7)
    assert choice.specialise({"protocol": "smtp"}) is choice


def test_what_is_known_may_be_a_truth():
    assert drive(compiled("'' + is_tls").specialise({"is_tls": True}).value(Facts())) == 1


# --- names -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "kind", "literals"),
    [
        ("key_exists('s', sender)", BOOLEAN, [("store", "s")]),
        ("key_exists('s' + 'x', sender)", BOOLEAN, []),
        ("key_exists(sender, 'x') | key_get('a', 'b') = 'c'", BOOLEAN, [("store", "a")]),
        ("is_local_domain('*', sender) | is_local_address('local', sender)", BOOLEAN,
         [("directory", "*"), ("directory", "local")]),
        ("0 & key_exists('s', 'x')", BOOLEAN, [("store", "s")]),
        ([{"if": "1 = 1", "then": "'a'"}, {"else": "b"}], NAME("route"), [("route", "a"), ("route", "b")]),
        ("if_then(is_tls, 'a', 'b')", NAME("route"), [("route", "a"), ("route", "b")]),
        ("'q-' + sender_domain", NAME("route"), []),
        ("connect_filter", NAME("script"), [("script", "connect_filter")]),
        ("''", NAME("script"), []),
        (False, NAME("script"), []),
        (["rsa", "ed"], NAMES("signature"), [("signature", "rsa"), ("signature", "ed")]),
        ("Sieve Daemon", NAME(), []),
        ("'x'", STRING, []),
        ([{"if": "key_exists('s', '')", "then": "x"}, {"else": "x"}], NAME("script"),
         [("store", "s"), ("script", "x")]),
    ],
)  # fmt: skip
def test_names_that_are_written_out(raw, kind, literals):
    assert list(compiled(raw, kind).literals) == literals
    assert list(compiled(raw, kind).specialise({"is_tls": 1, "sender": "x"}).literals) == literals


def test_a_bare_name_that_is_a_variable_is_the_variable():
    assert evaluated("listener", NAME("script"), listener="smtp") == "smtp"


def test_a_store_is_named_by_a_text():
    (told,) = errors("key_exists(5, 'x')")
    assert "key_exists wants the name of a store" in told


# --- evaluation ----------------------------------------------------------------------


def test_an_evaluation_is_noted_once_with_what_it_read():
    outside = Table({("key_exists", "friends", "foo.net"): True}, waits=True)
    facts = Facts(outside, sender="a@foo.net", sender_domain="foo.net", is_tls=0)
    choice = compiled("is_tls | key_exists('friends', sender_domain)", BOOLEAN)
    assert drive(choice.value(facts)) is True
    reads = (("is_tls", 0), ("sender_domain", "foo.net"), ("key_exists('friends', 'foo.net')", 1))
    assert facts.notes == [("session.test", "mailgate.toml:7", reads, True)]


def test_what_was_read_before_waiting_is_not_asked_again():
    outside = Table({("key_get", "s", "a"): "b", ("key_get", "s", "b"): "c"}, waits=True)
    choice = compiled("key_get('s', key_get('s', sender)) + key_get('s', sender)", STRING)
    assert drive(choice.value(Facts(outside, sender="a"))) == "cb"
    assert outside.asked == [("key_get", "s", "a"), ("key_get", "s", "b"), ("key_get", "s", "a")]


def test_captures_are_the_same_after_waiting():
    outside = Table({("key_get", "s", "b"): "x"}, waits=True)
    block = [
        {"if": "matches('a(.)', sender) & key_get('s', $1) = 'x'", "then": "$1 + key_get('s', $1)"},
        {"else": "'no'"},
    ]
    assert evaluated(block, STRING, outside=outside, sender="ab") == "bx"


def test_an_evaluation_that_waits_for_nothing_does_not_stop():
    coroutine = compiled("!is_empty(authenticated_as)", BOOLEAN).value(Facts(authenticated_as="john"))
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    assert stop.value.value is True


DECIDING = boolean(True).deciding(lets_pass=True, refuses=False)
ASKED = boolean(False).deciding(lets_pass=False)


@pytest.mark.parametrize(
    ("kind", "on_error", "value"),
    [
        (DECIDING, None, DOWN),
        (DECIDING, "tempfail", DOWN),
        (DECIDING, "accept", True),
        (DECIDING, "reject", False),
        (ASKED, "accept", False),
        (ASKED, "reject", DOWN._replace(reject=True)),
        (boolean(True), "accept", True),
        (DURATION, "accept", None),
        (DURATION.fallback(timedelta(1)), "accept", timedelta(1)),
        (DURATION, "reject", DOWN._replace(reject=True)),
        (MECHANISMS, "accept", ()),
        (WORD("reject", "normalize").fallback("reject"), "accept", "reject"),
    ],
)
@pytest.mark.parametrize("where", ["if", "then", "else"])
def test_on_error(kind, on_error, value, where):
    block = [{"if": "is_tls", "then": 0}, {"else": 0}]
    block[where == "else"][where] = "key_get('down', 'x')"
    if on_error:
        block.append({"on-error": on_error})
    facts = Facts(is_tls=int(where != "else"))
    choice = compiled(block, kind)
    found = drive(choice.value(facts))
    assert (type(found), found) == (type(value), value)
    ((_, _, reads, noted),) = facts.notes
    assert noted == value
    assert ("key_get('down', 'x')", DOWN) in reads
    assert (("on-error", on_error) in reads) is (on_error in ("accept", "reject"))


def test_on_error_may_stand_anywhere_and_means_nothing_for_what_is_known():
    block = [{"on-error": "reject"}, {"if": U, "then": True}, {"else": True}]
    choice = compiled(block, DECIDING)
    assert choice.on_error is OnError.REJECT
    assert drive(choice.value(Facts())) is False
    up = Facts(Table())
    block[1]["if"] = "key_exists('up', 'x')"
    assert drive(compiled(block, DECIDING).value(up)) is True
    assert all(name != "on-error" for _, _, reads, _ in up.notes for name, _ in reads)


def test_an_unknown_variable_makes_the_choice_unknown():
    gone = Unknown("asn", "no table")
    assert evaluated("asn > 5", BOOLEAN, asn=gone) == gone


def test_repr_says_what_it_depends_on():
    assert repr(compiled("5m", DURATION)).startswith("<Choice session.test at mailgate.toml:7: always")
    assert repr(compiled("is_tls")) == "<Choice session.test at mailgate.toml:7: reads is_tls>"


# --- as it stands in a file ------------------------------------------------------------


@pytest.mark.spec("IN-032")
def test_backslashes_of_either_kind_of_string():
    document = tomllib.loads(
        "a = \"matches('^a\\\\.b$', listener)\"\n"
        "b = 'matches(\"^a\\.b$\", listener)'\n"
        "c = \"matches('^a[.]b$', listener)\"\n"
    )
    for raw in document.values():
        assert [evaluated(raw, BOOLEAN, listener=name) for name in ("a.b", "axb", "a.b\n")] == [True, False, False]


def test_a_block_over_several_lines():
    document = tomllib.loads(
        """
        reject-non-fqdn = [ { if = "listener = 'smtp'", then = true },
                            { else = false } ]
        """
    )
    choice = compiled(document["reject-non-fqdn"], BOOLEAN)
    assert [drive(choice.value(Facts(listener=name))) for name in ("smtp", "submission")] == [True, False]
