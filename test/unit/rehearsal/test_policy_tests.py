"""The policy tests that are shipped pass, and do so without a socket or a file of the queue."""

import socket
import sqlite3
import tomllib
from pathlib import Path

import pytest

from mailgate.admin.main import main
from mailgate.net.selfsigned import write_self_signed

ETC = Path(__file__).parents[3] / "etc"


@pytest.fixture
def hermetic(monkeypatch):
    """Whoever opens a socket or a database here fails."""

    def never(*arguments, **options):
        raise AssertionError("a rehearsal touches nothing outside")

    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr(socket.socket, "bind", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setattr(sqlite3, "connect", never)


def count(path):
    return len(tomllib.loads(path.read_text(encoding="utf-8"))["test"])


def test_those_of_the_installed_file(hermetic, capsys):
    assert main(["--config", str(ETC / "mailgate.toml"), "test"]) == 0
    tests = sum(count(path) for path in (ETC / "tests").glob("*.toml"))
    assert tests >= 20
    assert capsys.readouterr().out.endswith(f"{tests} tests, all ok\n")


def test_those_of_make_run(hermetic, capsys, tmp_path, monkeypatch):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_self_signed(cert, key, "localhost")
    text = (ETC / "mailgate-dev.toml").read_text(encoding="utf-8")
    config = tmp_path / "mailgate.toml"
    config.write_text(text.replace("var/tls/cert.pem", str(cert)).replace("var/tls/key.pem", str(key)))
    monkeypatch.setenv("MAILGATE_HOME", str(tmp_path))
    file = ETC / "tests" / "dev" / "dev.toml"
    assert main(["test", "--config", str(config), str(file)]) == 0
    assert capsys.readouterr().out.endswith(f"{count(file)} tests, all ok\n")


@pytest.mark.parametrize(
    "was, becomes, failing",
    (
        ('relay = "!is_empty(authenticated_as)"', "relay = true", "a stranger may not use us as a relay"),
        ("must-match-sender = true", "must-match-sender = false", "a user may not send as somebody else"),
        ("sub-addressing = true", "sub-addressing = false", "user+detail is looked up as user and kept as it is"),
        ("size = 104857600 # 100 MB", "size = 1000", "mail for a mailbox here is accepted and gets its trace fields"),
    ),
)
def test_a_change_of_the_policy_is_seen(capsys, tmp_path, was, becomes, failing):
    text = (ETC / "mailgate.toml").read_text(encoding="utf-8")
    assert text.count(was) == 1
    config = tmp_path / "mailgate.toml"
    config.write_text(text.replace(was, becomes))
    files = sorted(map(str, (ETC / "tests").glob("*.toml")))
    assert main(["--config", str(config), "test", *files]) == 1
    assert f"failed  {failing}" in capsys.readouterr().out
