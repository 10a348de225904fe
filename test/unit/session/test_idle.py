"""Chains without the policies that have nothing to say."""

import pytest
from support.baseline import baseline

from mailgate.config.load import load_text
from mailgate.session.chains import chains
from mailgate.session.idle import Known
from mailgate.session.prepared import prepare
from mailgate.session.stages import data, mail, rcpt


def names(chain):
    return [policy.__name__ for policy in chain]


def made(config="", logged_in=False):
    settings = load_text(baseline("B0", config)).settings
    rules = prepare(settings.session, "smtp", "smtp", is_tls=False).rules
    return chains(Known(rules, is_logged_in=logged_in))


def test_rules_that_let_everything_pass_are_not_asked():
    found = made("[session.rcpt]\nrewrite = false\n[session.mail]\nis-allowed = true\nrewrite = false\n")
    assert names(found.plain_mail) == ["helo_was_said", "mail_is_first"]
    assert names(found.rcpt)[-2:] == ["recipient_is_new", "mailbox_exists"]


@pytest.mark.parametrize(
    ("config", "policy"),
    [
        ("[session.mail]\nis-allowed = false\n", "sender_is_allowed"),
        ("[session.mail]\nis-allowed = \"sender_domain != 'bad.example'\"\n", "sender_is_allowed"),
        ("[session.mail]\nrewrite = \"'a@b.example'\"\n", "address_is_rewritten"),
        ("[session.auth]\nrequire = true\n", "identity_suffices"),
    ],
)
def test_rules_that_may_say_something_are(config, policy):
    assert policy in names(made(config).plain_mail)


def test_a_client_that_has_logged_in_is_held_to_its_own_addresses():
    assert "sender_is_own" in names(made(logged_in=True).plain_mail)
    assert "sender_is_own" not in names(made().plain_mail)


def test_a_rewritten_recipient_is_looked_for_again():
    found = made("[session.rcpt]\nrewrite = \"'a@b.example'\"\n")
    assert found.rcpt == rcpt.POLICIES


def test_the_order_stays():
    found = made("[session.auth]\nrequire = true\n")
    assert [policy for policy in mail.POLICIES if policy in found.mail] == list(found.mail)
    assert found.message == data.POLICIES
