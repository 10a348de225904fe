"""`mailgate reload` and `mailgate status`: where they find the daemon, what they print and end with."""

import json

import pytest

from mailgate.admin.command import reload as reload_module
from mailgate.admin.command import status as status_module
from mailgate.admin.control import Answer
from mailgate.admin.failure import Failed, Status
from mailgate.admin.main import main
from mailgate.admin.settings import control_path

RESULT = {
    "version": "0.1.0",
    "pid": 4711,
    "config": "/etc/mailgate/mailgate.toml",
    "generation": 3,
    "since": "2026-01-01T00:00:00.000Z",
    "listeners": [
        {"id": "smtp", "protocol": "smtp", "addresses": ["[::]:25", "192.0.2.1:2525"], "connections": 12},
        {"id": "old", "protocol": "lmtp", "addresses": [], "connections": 1},
    ],
    "attempts": 5,
}


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run a command against a daemon that gives this answer."""
    path = tmp_path / "mailgate.toml"
    path.write_text("[management]\nsocket = '/run/s'\n")

    def run(answer, *arguments):
        def ask(socket_path, request):
            assert socket_path == "/run/s"
            assert request.command == arguments[0]
            if arguments[0] == "reload":
                assert request.arguments == {"config": str(path)}
            if isinstance(answer, Failed):
                raise answer
            return answer

        for module in (reload_module, status_module):
            monkeypatch.setattr(module, "ask", ask)
        status = main(["--config", str(path), *arguments])
        return status, *capsys.readouterr()

    return run


def test_done(run):
    assert run(Answer(Status.OK, "generation 2 is in use\n"), "reload") == (0, "generation 2 is in use\n", "")


def test_the_report_of_a_refusal_is_on_standard_output(run):
    report = "m.toml:3: session.tiemout: unknown key\nm.toml:9: session.x: unknown key\n"
    assert run(Answer(Status.CONFIG, report), "reload") == (78, report, "")


@pytest.mark.parametrize("status", [Status.UNREACHABLE, Status.PERMISSION])
@pytest.mark.parametrize("command", ["reload", "status"])
def test_no_daemon_or_no_permission(run, command, status):
    assert run(Failed(status, "why"), command) == (status, "", "mailgate: why\n")
    assert run(Answer(status, "why"), command) == (status, "", "mailgate: why\n")


def test_status_for_people(run):
    status, out, err = run(Answer(Status.OK, "", RESULT), "status")
    assert (status, err) == (0, "")
    assert out == (
        "Version        0.1.0\n"
        "Process        4711\n"
        "Configuration  /etc/mailgate/mailgate.toml\n"
        "Generation     3, since 2026-01-01T00:00:00.000Z\n"
        "Attempts       5\n"
        "\n"
        "Listener  Protocol  Connections  Addresses\n"
        "smtp      smtp      12           [::]:25, 192.0.2.1:2525\n"
        "old       lmtp      1            (closed)\n"
    )


def test_status_for_programs(run):
    status, out, _ = run(Answer(Status.OK, "", RESULT), "status", "--json")
    assert status == 0
    assert json.loads(out) == RESULT
    status, out, _ = run(Failed(Status.UNREACHABLE, "why"), "status", "--json")
    assert status == 69
    assert json.loads(out) == {"error": {"code": 69, "message": "why"}}


# --- where the daemon is -----------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "/run/mailgate/control.sock"),
        ("[management]\nsocket = 'var/s'\n", "var/s"),
        ("management.socket = 'var/s'\n", "var/s"),
        ("nosuch = 1\n[management]\nsocket = 'var/s'\n", "var/s"),
        # No TOML: the table is still found.
        ("[server\n[management]\nsocket = 'var/s' # here\n[queue]\nx =\n", "var/s"),
        ("management.socket = 'var/s'\n[server\n", "var/s"),
        ("[management]\nsocket = \n", "/run/mailgate/control.sock"),
        ("[server\n", "/run/mailgate/control.sock"),
        ("management = 3\n", "/run/mailgate/control.sock"),
    ],
)
def test_a_broken_file_still_says_where_the_daemon_is(tmp_path, text, path):
    file = tmp_path / "m.toml"
    file.write_text(text)
    assert control_path(str(file)) == path


def test_a_file_that_is_not_there_has_the_default(tmp_path):
    assert control_path(str(tmp_path / "nosuch.toml")) == "/run/mailgate/control.sock"


def test_macros_need_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MAILGATE_RUN", "/srv/run")
    file = tmp_path / "m.toml"
    file.write_text("[management]\nsocket = '%{env:MAILGATE_RUN}%/s'\n")
    assert control_path(str(file)) == "/srv/run/s"
    file.write_text("nosuch = 1\n[management]\nsocket = '%{env:MAILGATE_RUN}%/s'\n")
    with pytest.raises(Failed) as failed:
        control_path(str(file))
    assert failed.value.status is Status.CONFIG
