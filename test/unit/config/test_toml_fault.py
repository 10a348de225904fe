import pytest
from support.configuration import refusal


@pytest.mark.spec("IN-003")
def test_an_unknown_escape_suggests_single_quotes_or_two_backslashes():
    told = refusal("[session.mail]\nis-allowed = \"matches('a\\.b', sender)\"\n")
    assert told.startswith("t.toml:2: session.mail.is-allowed: ")
    assert "'...'" in told
    assert r"\\" in told


@pytest.mark.spec("IN-025")
def test_a_set_suggests_a_list():
    told = refusal('[lookup]\nx = { "a", "b" }\n')
    assert told.startswith("t.toml:2: lookup.x: ")
    assert '["a", "b"]' in told


@pytest.mark.spec("IN-026")
def test_single_quotes_over_several_lines_suggest_three():
    pem = "\n".join(["'-----BEGIN PRIVATE KEY-----", "a", "b", "c", "-----END PRIVATE KEY-----'"])
    told = refusal(f"[certificate.main]\nprivate-key = {pem}\n")
    assert told.startswith("t.toml:2: certificate.main.private-key: ")
    assert "'''" in told


def test_double_quotes_over_several_lines_suggest_three():
    told = refusal('[server]\nhostname = "a\nb"\n')
    assert told.startswith("t.toml:2: server.hostname: ")
    assert '"""' in told


@pytest.mark.parametrize("value", ["5s", "10.0.0.1", "strict", "mx.example.org", "127.0.0.1:25"])
@pytest.mark.parametrize("form", ["{}", "[{}]", '["a", {}]', "{} # comment"])
def test_a_bare_word_suggests_quotes(value, form):
    told = refusal(f"[session]\ntimeout = {form.format(value)}\n")
    assert told.startswith("t.toml:2: session.timeout: ")
    assert f'"{value}"' in told


@pytest.mark.parametrize(
    "text", ["limits = { mx = 1,\n  multihomed = 2 }", "limits = { mx = 1, }", "limits = { mx = 1\n}", "limits = {\n}"]
)
def test_a_long_inline_table_suggests_one_line_or_a_table(text):
    told = refusal(f'[queue.route.mx]\ntype = "mx"\n{text}\n')
    assert told.startswith("t.toml:3: queue.route.mx.limits")
    assert "one line" in told
    assert "table of its own" in told


@pytest.mark.spec("IN-014")
@pytest.mark.spec("OUT-218")
def test_a_repeated_key_names_both_lines():
    told = refusal('[session]\ntimeout = "5m"\nduration = "6m"\ntimeout = "7m"\n')
    assert told.startswith("t.toml:4: session.timeout: given twice")
    assert "line 2" in told


@pytest.mark.spec("OUT-218")
def test_a_repeated_table_header_names_both_lines():
    told = refusal("[queue.strategy]\nroute = \"'mx'\"\n[session]\n[queue.strategy]\ntls = \"'default'\"\n")
    assert told.startswith("t.toml:4: queue.strategy: given twice")
    assert "line 1" in told


@pytest.mark.parametrize(
    "text", ["a.b = 1\na = 2\n", "a = 1\n[a]\n", "a = { b = 1 }\n[a.c]\n", "[a]\nb.c = 1\n[a.b]\n", "a = []\n[[a]]\n"]
)
def test_whatever_else_is_given_twice_is_one_error_with_a_line(text):
    told = refusal(text)
    assert told.startswith("t.toml:")
    assert "given twice" in told


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, "a = " + "9" * 5000, "\x00", "a", "a =", '"', "[", "[[a]", "a = '''", "= 1", "\ud7ff"]
)
def test_text_that_is_no_toml_is_one_error(text):
    assert refusal(text).startswith("t.toml:1: ")
