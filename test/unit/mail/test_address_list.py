import pytest

from mailgate.mail.address_list import BadAddress, addresses


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("root", ["root"]),
        ("a@b.test", ["a@b.test"]),
        ("", []),
        (" , ,a@b.test,,", ["a@b.test"]),
        ("a@b.test, c@d.test;e@f.test", ["a@b.test", "c@d.test", "e@f.test"]),
        ('"John, Doe" <j@x.test>, k@y.test', ["j@x.test", "k@y.test"]),
        ("J. R. Doe <j@x.test>", ["j@x.test"]),
        ("j@x.test (John (the) Doe\\), really)", ["j@x.test"]),
        ("(before) j (in) @ (between) x.test", ["j@x.test"]),
        ("Team: a@b.test, C <c@d.test>;, e@f.test", ["a@b.test", "c@d.test", "e@f.test"]),
        ("undisclosed-recipients:;", []),
        ("=?utf-8?q?J=C3=B6rg=2C_x?= <j@x.test>", ["j@x.test"]),
        ("Jörg <j@x.test>", ["j@x.test"]),
        ("jörg@müller.test", ["jörg@müller.test"]),
        ("a@b.test,\r\n\tc@d.test", ["a@b.test", "c@d.test"]),
        ("<@relay.test,@other.test:u@x.test>", ["u@x.test"]),
        ('"a b"@x.test', ["a b@x.test"]),
        (r'"a\"b"@x.test', ['a"b@x.test']),
        ('"a@b"@x.test', ["a@b@x.test"]),
        ("u@[192.0.2.1]", ["u@[192.0.2.1]"]),
        ("u@[IPv6:2001:db8::1]", ["u@[IPv6:2001:db8::1]"]),
    ],
)
def test_the_addresses_of_a_list(text, found):
    assert addresses(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "foo bar",
        "<>",
        "a@",
        "@b.test",
        "a@@b.test",
        "a@b@c.test",
        "a..b@c.test",
        ".a@c.test",
        "a@b..test",
        "a@b.test c@d.test",
        "John <a@b.test> Doe",
        "<a@b.test",
        "<<a@b.test>>",
        '"never closed',
        "(never closed",
        "u@[1.2.3.4",
        '"a@b"',
        "a\x00@b.test",
        '"a\x0bb"@c.test',
        "a\x85@b.test",
        "a" * 400 + "@b.test",
    ],
)
def test_what_is_no_address_is_told(text):
    with pytest.raises(BadAddress):
        addresses(text)


def test_a_line_end_in_quotes_does_not_become_part_of_an_address():
    assert addresses('"a\r\n b"@x.test') == ["a b@x.test"]
