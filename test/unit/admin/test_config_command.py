import tomllib

import pytest
import toml

from mailgate.admin.main import main

GOOD = """
[server]
hostname = "mx.test"
[server.listener."smtp"]
bind = "127.0.0.1:2525"
protocol = "smtp"
"""
UNNAMED = """
[server]
hostname = "mx.test"
[server.listener."in"]
bind = "127.0.0.1:2525"
protocol = "smtp"
[server.listener."submission"]
bind = "127.0.0.1:2587"
protocol = "smtp"
"""


@pytest.fixture
def check(tmp_path, capsys, monkeypatch):
    path = tmp_path / "mailgate.toml"
    monkeypatch.setenv("MAILGATE_CONFIG", "/nonexistent/mailgate.toml")

    def run(text, *arguments):
        path.write_text(text)
        status = main(["config", "check", *arguments, str(path)])
        out, err = capsys.readouterr()
        assert err == ""
        return status, out.replace(str(tmp_path) + "/", "")

    return run


def test_a_good_one(check):
    assert check(GOOD) == (0, "mailgate.toml: no errors, 0 warnings\n")
    assert check(GOOD, "--strict")[0] == 0


@pytest.mark.spec("IN-035")
def test_a_warning_is_printed_and_refuses_nothing(check):
    status, out = check(UNNAMED)
    assert status == 0
    assert 'no listener is called "smtp"' in out
    assert "no errors, 1 warning\n" in out


def test_strict_minds_warnings(check):
    status, out = check(UNNAMED, "--strict")
    assert status == 1
    assert 'no listener is called "smtp"' in out


@pytest.mark.spec("IN-036")
def test_all_errors_are_reported(check):
    status, out = check(GOOD + "[session]\ntiemout = '5m'\n[session.ehlo]\nrequire = 'nosuch_variable'\n")
    assert status == 78
    first, second = out.splitlines()
    assert first.startswith("mailgate.toml:8: session.tiemout: ")
    assert second.startswith("mailgate.toml:10: session.ehlo.require: ")


UNUSABLE = """
[directory."local"]
type = "memory"
[[directory."local".principals]]
name = "john"
secret = "$6$broken"
email = "john@foobar.org"
[store."map"]
type = "memory"
format = "map"
values = ["key_without_value"]
"""


def test_what_only_shows_when_directories_and_lists_are_made(check):
    status, out = check(GOOD + UNUSABLE)
    assert status == 78
    assert "$6$broken" not in out
    assert 'a secret of "john"' in out
    assert 'store "map": "key_without_value"' in out


def test_a_file_that_is_not_there(capsys):
    assert main(["--config", "/nonexistent/mailgate.toml", "config", "check"]) == 78
    out, err = capsys.readouterr()
    assert "cannot be read" in out
    assert err == ""
    assert len(out.splitlines()) == 1


def test_the_file_in_use_is_named_by_the_environment(tmp_path, capsys, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    monkeypatch.setenv("MAILGATE_CONFIG", str(path))
    assert main(["config", "check"]) == 0
    assert str(path) in capsys.readouterr().out
    # The option wins.
    assert main(["--config", "/nonexistent/mailgate.toml", "config", "check"]) == 78


def test_version(capsys):
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("mailgate 0.")


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 64
    assert "Usage: mailgate" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "Usage: mailgate" in capsys.readouterr().out


@pytest.fixture
def show(tmp_path, capsys):
    path = tmp_path / "mailgate.toml"

    def run(text, *arguments):
        path.write_text(text)
        status = main(["--config", str(path), "config", "show", *arguments])
        out, err = capsys.readouterr()
        return status, (out + err).replace(str(tmp_path) + "/", "")

    return run


def test_show_prints_toml(show):
    status, out = show(GOOD)
    assert status == 0
    assert tomllib.loads(out) == tomllib.loads(GOOD)
    status, out = show(GOOD, "--effective")
    assert status == 0
    assert tomllib.loads(out)["decisions"]["max-age"] == "7d"


def test_show_says_where_a_key_comes_from(show):
    assert show(GOOD, "--origin", "server.hostname") == (0, '[server]\nhostname = "mx.test"  # mailgate.toml:3\n')
    assert show(GOOD, "--origin", "--effective", "queue.lease") == (0, '[queue]\nlease = "60s"  # built-in\n')


def test_show_of_a_key_without_a_value(show):
    assert show(GOOD, "queue.lease") == (1, "mailgate: queue.lease is not set\n")
    assert show(GOOD, "queue.route.x") == (1, "mailgate: queue.route.x is not set\n")
    assert show(GOOD, "queue.leese") == (64, "mailgate: there is no key queue.leese; did you mean queue.lease?\n")


def test_show_of_a_configuration_with_errors(show):
    status, out = show("x = 1\ny = 2\n")
    assert status == 78
    assert out.count("unknown key") == 2


@pytest.mark.spec("OUT-222")
def test_what_would_not_read_back_is_not_shown(show, monkeypatch):
    monkeypatch.setattr(toml, "dumps", lambda values, encoder: "a = 1\n")
    status, out = show(GOOD, "--effective")
    assert status == 70
    assert out.startswith("mailgate: the configuration cannot be shown: ")
    assert "a = 1" not in out
