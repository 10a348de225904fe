"""Programs of a host that hand their mail to `sendmail`: a mail reader, cron, Python's way, msmtp's neighbours."""

import os
import re
import subprocess
import sys

import pytest
from support import needs
from support.daemon import REPOSITORY, Gateway
from support.ports import wait_until

pytestmark = pytest.mark.peer("mail-programs")

CHANGES = """
[session.auth]
must-match-sender = "listener != 'sendmail'"
"""


@pytest.fixture
def gateway(tmp_path):
    """A running daemon, and `sendmail` as a program in its directory."""
    gateway = Gateway(tmp_path, changes=(CHANGES,))
    program = tmp_path / "sendmail"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{REPOSITORY}" MAILGATE_CONFIG="{gateway.config}"'
        f' exec "{sys.executable}" -m mailgate.admin.sendmail.main "$@"\n'
    )
    program.chmod(0o755)
    with gateway:
        gateway.wait_log("server.started")
        yield gateway


def sendmail(gateway):
    """The program's path."""
    return str(gateway.directory / "sendmail")


def run(*arguments, text=b"", **environment):
    """Run a program to its good end."""
    done = subprocess.run(
        arguments, input=text, capture_output=True, timeout=60, env={"PATH": os.environ["PATH"], **environment}
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")


def header(octets):
    """The header of a message."""
    return octets.partition(b"\n\n")[0].replace(b"\r", b"").decode()


def test_s_nail_sends_by_it(gateway):
    nail = needs.program("s-nail")
    home = str(gateway.directory)
    options = [
        "-n",
        "-r",
        "joe@sender.test",
        "-S",
        f"mta={sendmail(gateway)}",
        "-S",
        "sendwait",
        "-S",
        "ttycharset=utf-8",
    ]
    copies = ["-c", "john@foobar.org", "-b", "john@foobar.org"]
    run(
        nail,
        *options,
        "-r",
        "joe@sender.test",
        "-s",
        "Grüße",
        *copies,
        "john@foobar.org",
        text=b"hi\n.\nx\n",
        HOME=home,
    )
    (octets,) = gateway.wait_mail("john", "foobar.org")
    fields = header(octets)
    assert re.search(r"(?m)^From: joe@sender\.test$", fields)
    assert re.search(r"(?m)^Subject: =\?utf-8\?", fields, re.IGNORECASE)
    assert "Bcc" not in fields
    assert "from=joe@sender.test" in gateway.log_text()


def test_cron_sends_what_a_job_printed(gateway):
    text = (
        b"From: root (Cron Daemon)\nTo: john@foobar.org\nSubject: Cron <root@here> backup\nMIME-Version: 1.0\n"
        b"Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\nAuto-Submitted: auto-generated\n"
        b"X-Cron-Env: <SHELL=/bin/sh>\n\n  0%\r 50%\r100%\n.\n\xc3\xa4 done\n"
    )
    command = [sendmail(gateway), "-i", "-FCronDaemon", "-B8BITMIME", "-oem", "john@foobar.org"]
    run(*command, text=text)
    (octets,) = gateway.wait_mail("john", "foobar.org")
    body = octets.replace(b"\r\n", b"\n").partition(b"\n\n")[2]
    assert body == b"  0%\n 50%\n100%\n.\n\xc3\xa4 done\n"


def test_perl_writes_into_a_pipe_as_web_programs_do(gateway):
    perl = needs.program("perl")
    script = (
        'open(my $mail, "|-", "$ENV{SENDMAIL} -t -oi") or die; print $mail "To: john\\@foobar.org\\nBcc: '
        'nobody\\@foobar.org\\nFrom: shop\\@sender.test\\nSubject: order\\n\\nThank you.\\n"; close($mail) or exit 1;'
    )
    run(perl, "-e", script, SENDMAIL=sendmail(gateway))
    (octets,) = gateway.wait_mail("john", "foobar.org")
    assert b"nobody@foobar.org" not in octets
    assert b"Thank you." in octets


def test_a_client_of_smtp_on_standard_input(gateway):
    swaks = needs.program("swaks")
    run(
        swaks, "--pipe", f"{sendmail(gateway)} -bs", "-f", "joe@sender.test", "-t", "john@foobar.org", "--body", "hello"
    )
    (octets,) = gateway.wait_mail("john", "foobar.org")
    assert b"hello" in octets


def test_many_at_once(gateway):
    running = [
        subprocess.Popen([sendmail(gateway), "-t"], stdin=subprocess.PIPE, env={"PATH": os.environ["PATH"]})
        for _ in range(20)
    ]
    for number, program in enumerate(running):
        program.communicate(b"To: john@foobar.org\nSubject: number %d\n\nx\n" % number, timeout=120)
    assert [program.returncode for program in running] == [0] * 20
    wait_until(lambda: len(gateway.maildir("john", "foobar.org")) == 20, 60, "20 messages")
