"""Files of policy tests: what they may say, and how errors in them are told."""

import pytest

from mailgate.config.error import ConfigErrors
from mailgate.rehearsal.case import Outcome, read_file

LEAST = """
[[test]]
name = "a"
listener = "smtp"
"""


def cases(text):
    return read_file("t.toml", text)


def refusals(text):
    with pytest.raises(ConfigErrors) as wrong:
        cases(text)
    return wrong.value.report().splitlines()


def test_what_a_test_leaves_out_comes_from_the_default():
    (one, other) = cases(
        """
        [default]
        listener = "smtp"
        mail = "a@a.test"
        answers.lists.foes = ["x"]
        answers.dns."a.test" = { mx = [] }
        [[test]]
        name = "one"
        expect.mail = 250
        [[test]]
        name = "other"
        listener = "in"
        mail = ""
        answers.lists.foes = "configured"
        expect.mail = 250
        """
    )
    assert (one.listener, one.given.mail.path, one.line) == ("smtp", "a@a.test", 7)
    assert (other.listener, other.given.mail.path) == ("in", "")
    assert one.given.answers.lists["foes"].entries == {"x": "true"}
    assert other.given.answers.lists["foes"].configured
    assert other.given.answers.dns.keys() == {"a.test"}


@pytest.mark.parametrize(
    "written, outcome",
    (
        ("250", Outcome(code=250)),
        ('"550 5.7.1"', Outcome(code=550, enhanced="5.7.1")),
        ('"tempfail"', Outcome(verdict="tempfail")),
        ('{ verdict = "reject", rule = "session.rcpt.relay" }', Outcome(verdict="reject", rule="session.rcpt.relay")),
    ),
)
def test_an_expectation_is_written_as_short_as_it_goes(written, outcome):
    (case,) = cases(f"{LEAST}expect.mail = {written}")
    assert case.expect.mail == outcome


@pytest.mark.parametrize("size", (40, 100, 4096, 4097, 100000))
def test_a_message_is_filled_up_to_its_size(size):
    (case,) = cases(f'{LEAST}message = {{ header = ["Subject: x"], size = {size} }}\nexpect.queued = true')
    octets = case.given.message.octets
    assert len(octets) == size
    assert octets.startswith(b"Subject: x\r\n\r\n")
    assert max(map(len, octets.split(b"\r\n"))) <= 998


@pytest.mark.parametrize(
    "text, told",
    (
        (f"{LEAST}expct.mail = 250", "t.toml:5: test.0000.expct: unknown key; did you mean test.0000.expect?"),
        (
            f"{LEAST}expect.mial = 250",
            "t.toml:5: test.0000.expect.mial: unknown key; did you mean test.0000.expect.mail?",
        ),
        (
            f"{LEAST}expect.mail = {{ coed = 1 }}",
            "t.toml:5: test.0000.expect.mail: unknown key coed; did you mean code?",
        ),
        (
            f"{LEAST}expect.mail = 25",
            "t.toml:5: test.0000.expect.mail: 25 is no reply code; write a number from 200 to 599",
        ),
        (
            f'{LEAST}expect.mail = "acept"',
            't.toml:5: test.0000.expect.mail: "acept" is no verdict; did you mean "accept"?',
        ),
        (LEAST, "t.toml:2: test.0000.expect: the test expects nothing; write [test.expect] and its keys below"),
        (
            '[[test]]\nname = "a"\nexpect.mail = 250',
            't.toml:1: test.0000.listener: the key is missing; write listener = "smtp"',
        ),
        (
            f'{LEAST}peer = "1.2.3"\nexpect.mail = 250',
            't.toml:5: test.0000.peer: "1.2.3" is no IP address; write "192.0.2.1" or "2001:db8::1"',
        ),
        (
            f"{LEAST}answers.dns.x = {{ mxx = [] }}\nexpect.mail = 250",
            "t.toml:5: test.0000.answers.dns.x: unknown key mxx; did you mean mx?",
        ),
        ("", "t.toml:1: there is no test in the file; write [[test]]"),
        (
            "[[test",
            "t.toml:1: not TOML: Expected ']]' at the end of an array declaration; the file has to be TOML 1.0",
        ),
        (
            f"{LEAST}expect.mail = 250\n{LEAST}expect.mail = 250",
            't.toml:8: test.0001.name: "a" is a test in line 2 already; rename one',
        ),
    ),
)
def test_what_is_wrong_is_told_with_its_place(text, told):
    assert told in refusals(text)


def test_all_errors_are_told_at_once():
    assert len(refusals(f'{LEAST}peer = "x"\nrcpt = 5\nexpect.mail = 1')) == 3
