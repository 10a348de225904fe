import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.configuration import LISTENER, refusal, refusals, settings


@pytest.mark.spec("IN-016")
def test_environment_variables_are_inserted():
    text = '[server]\nhostname = "%{env:HOME_DIR_TEST}%"\n'
    assert settings(text, {"HOME_DIR_TEST": "a.test"}).server.hostname == "a.test"


def test_a_type_is_checked_after_the_macro():
    assert settings('[server]\nmax-connections = "%{env:N}%"\n', {"N": "77"}).server.max_connections == 77


def test_files_are_inserted_and_a_double_slash_is_dropped(tmp_path):
    file = tmp_path / "name"
    file.write_text("b.test")
    assert settings(f'[server]\nhostname = "%{{file:{file}}}%"\n').server.hostname == "b.test"
    assert settings(f'[server]\nhostname = "%{{file://{file}}}%"\n').server.hostname == "b.test"


@pytest.mark.spec("IN-029")
@pytest.mark.parametrize(
    ("macro", "says"),
    [
        ("%{env:NOT_SET_TEST}%", "NOT_SET_TEST is not set"),
        ("%{file:/nonexistent}%", "cannot read /nonexistent"),
        ("%{cfg:no.such.key}%", "no key no.such.key"),
    ],
)
def test_a_macro_that_cannot_be_expanded_is_an_error(macro, says):
    told = refusal(f"{LISTENER}\n[session.connect]\ngreeting = \"'{macro}'\"\n")
    assert told.startswith("t.toml:9: session.connect.greeting: ")
    assert says in told


def test_one_value_may_insert_another_with_its_own_macros_and_defaults():
    text = LISTENER + (
        "[session.connect]\n"
        "greeting = \"'%{cfg:server.hostname}% %{cfg:report.domain}% %{cfg:server.max-connections}%'\"\n"
        '[report]\ndomain = "%{env:D}%"\n'
    )
    greeting = settings(text, {"D": "d.test"}).session.connect.greeting
    assert "always 'mx.test d.test 8192'" in repr(greeting)


def test_inserted_text_is_not_looked_at_again():
    text = '[lookup]\nx = ["%{env:A}%"]\n'
    assert list(settings(text, {"A": "%{env:B}%", "B": "b"}).lookup["x"].entries) == ["%{env:b}%"]


def test_values_that_need_one_another_are_an_error():
    told = refusals('[server]\nhostname = "%{cfg:report.domain}%"\n[report]\ndomain = "%{cfg:server.hostname}%"\n')
    assert told
    assert all("need one another" in line or "could not be expanded" in line for line in told)
    assert refusals('[server]\nhostname = "%{cfg:server.hostname}%"\n')


@pytest.mark.parametrize(
    "text",
    [
        '[server]\nhostname = "%{env:SECRET}% "\n',
        '[server]\nmax-connections = "%{env:SECRET}%"\n',
        '[session]\ntimeout = "%{env:SECRET}%"\n',
        '[session]\ntimeout = [ { if = "%{env:SECRET}%", then = "5m" }, { else = "%{env:SECRET}%" } ]\n',
        "[session]\nbare-newline = \"'%{env:SECRET}%'\"\n",
        '[resolver]\ncustom = ["%{env:SECRET}%"]\n',
        '[server.listener.a]\nbind = ["%{env:SECRET}%"]\nprotocol = "%{env:SECRET}%"\n',
        '[queue.route.r]\ntype = "%{env:SECRET}%"\n',
        '[queue]\nmin-free = "%{env:SECRET}%"\ninline-size = "%{cfg:queue.min-free}%"\nlease = "%{env:SECRET}%"\n',
        '[queue.route.r]\ntype = "local"\nmaildir = "/%{env:SECRET}%"\n',
        '[certificate.c]\ncert = "%{env:SECRET}%"\nprivate-key = "%{env:SECRET}%"\n',
        '[lookup]\nx = "%{env:SECRET}%"\n[queue.tls.x]\nstarttls = "%{env:SECRET}%"\n',
        '[storage]\ndata = "%{env:SECRET}%"\ndirectory = "%{env:SECRET}%"\n',
        '[queue.schedule.x]\nqueue-name = "%{env:SECRET}%"\n',
        "[queue.strategy]\nroute = \"'%{env:SECRET}%'\"\n",
        "[session.mail]\nis-allowed = \"key_exists('%{env:SECRET}%', sender)\"\n",
        '[queue.tls.x]\ntrust-file = "%{env:SECRET}%"\n',
        '[store.x]\ntype = "memory"\nformat = "regex"\nvalues = ["(%{env:SECRET}%", "http://%{env:SECRET}%"]\n',
        '[directory.d]\ntype = "memory"\n'
        '[[directory.d.principals]]\nname = "%{env:SECRET}%"\nemail = "%{env:SECRET}%"\n'
        '[[directory.d.principals]]\nname = "%{env:SECRET}%"\n',
        '[report]\ndomain = "%{cfg:server.hostname}%"\n[server]\nhostname = "%{env:SECRET}%;"\n',
    ],
)
def test_what_a_macro_inserted_is_never_shown(text):
    for secret in ("hunter2-!", "hunter2"):
        told = refusals(text, {"SECRET": secret})
        assert told or secret == "hunter2"
        assert "hunter2" not in "\n".join(told)


@pytest.mark.spec("IN-031")
def test_a_key_file_that_is_no_pem_is_refused_without_its_contents(tmp_path):
    key = tmp_path / "key.pem"
    key.write_text("-----BEGIN NONSENSE-----\nswordfish\n")
    told = refusals(f'[certificate.main]\ncert = "%{{file:{key}}}%"\nprivate-key = "%{{file:{key}}}%"\n')
    assert [line.split(": ")[1] for line in told] == ["certificate.main.cert", "certificate.main.private-key"]
    assert "swordfish" not in "\n".join(told)
    assert "NONSENSE" not in "\n".join(told)


@given(st.text("%{}envfilcg:ABX\n", max_size=40))
def test_no_text_makes_the_expansion_fail(text):
    escaped = text.replace("\n", "\\n")
    refusals(f'[directory.d]\ntype = "memory"\n[[directory.d.principals]]\nname = "x{escaped}"\n', {"A": "%{env:A}%"})


@pytest.mark.parametrize(
    "slip",
    [
        "%{env:NAME%",
        "%{env:NAME}",
        "%env:NAME}%",
        "{env:NAME}%",
        "%{envNAME}%",
        "%{enq:NAME}%",
        "%{cfg:server.hostname",
    ],
)
def test_a_macro_with_a_slip_is_not_taken_as_it_stands(slip):
    told = refusal(
        f"[queue.route.r]\ntype = 'relay'\naddress = 'h.test'\nauth.username = '{slip}'\nauth.secret = 'x'\n"
    )
    assert told.startswith("t.toml:4: queue.route.r.auth.username: a macro is not complete; write %{env:NAME}%")


@pytest.mark.parametrize("text", ["100%", "a{2}b", "%{user}", "{environment}", "%{domain}%{user}", "env:NAME", "50%:x"])
def test_other_uses_of_its_marks_are_no_macros(text):
    found = settings(
        f"[queue.route.r]\ntype = 'relay'\naddress = 'h.test'\nauth = {{ username = '{text}', secret = 'x' }}\n"
    )
    assert found.queue.route["r"].auth.username == text
