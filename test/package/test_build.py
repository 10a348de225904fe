"""What is in the package, and what the tools of Debian say about it."""

import subprocess

from support.debian import outside


def names(package):
    return [line.split(maxsplit=5)[5] for line in outside("dpkg-deb", "-c", str(package)).stdout.splitlines()]


def test_lintian_has_nothing_to_say(changes):
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", str(changes)],
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_it_holds_what_an_operator_looks_for(package):
    found = names(package)
    for name in (
        "./etc/init.d/mailgate",
        "./etc/default/mailgate",
        "./etc/logrotate.d/mailgate",
        "./etc/mailgate/mailgate.toml",
        "./etc/mailgate/conf.d/host.toml",
        "./etc/mailgate/tests/incoming.toml",
        "./etc/mailgate/sieve/",
        "./etc/mailgate/keys/",
        "./lib/systemd/system/mailgate.service",
        "./usr/bin/mailgate -> ../lib/mailgate/bin/mailgate",
        "./usr/sbin/mailgate-twistd -> ../lib/mailgate/bin/twistd",
        "./usr/lib/mailgate/lib/python3.11/site-packages/twisted/plugins/mailgate_plugin.py",
        "./usr/sbin/sendmail -> ../lib/mailgate/bin/sendmail",
        "./usr/lib/sendmail -> mailgate/bin/sendmail",
        "./usr/bin/mailq -> ../lib/mailgate/bin/mailq",
        "./usr/bin/newaliases -> ../lib/mailgate/bin/sendmail",
        "./usr/share/man/man1/mailq.1.gz",
        "./usr/share/man/man8/sendmail.8.gz",
        "./usr/share/doc/mailgate/configuration.md",
        "./usr/share/doc/mailgate/mailgate.schema.json",
        "./usr/share/doc/mailgate/operations.md",
        "./usr/share/man/man5/mailgate.toml.5.gz",
        "./usr/share/man/man8/mailgate.8.gz",
        "./var/spool/mailgate/",
    ):
        assert name in found, name


def test_it_holds_no_installers_no_tests_of_libraries_and_nothing_compiled(package):
    wrong = [
        name
        for name in names(package)
        if name.endswith((".pyc", "/test/", "/tests/", "/pip/", "/setuptools/", "dropin.cache"))
    ]
    assert wrong == ["./etc/mailgate/tests/"]
