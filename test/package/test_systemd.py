"""The package under systemd: the unit is right, and does what it says in a system that was booted with it."""

import shutil
import subprocess

import pytest
from support import needs
from support.debian import SYSTEM_PATH, outside, unpack

# What is done in the booted system. Each line of the result is `name: value`.
SCRIPT = r"""
exec >/lab/result 2>&1
say() { echo "$1: $(eval "$2" 2>&1 | tr '\n' ' ')"; }
state() { systemctl show mailgate -p ActiveState -p NRestarts -p StatusText --value | tr '\n' ' '; }
main() { systemctl show mailgate -p MainPID --value; }
export DEBIAN_FRONTEND=noninteractive
dpkg -i /lab/mailgate.deb >/lab/install 2>&1
say install 'echo $?'
say installed 'grep ^mailgate.runs /lab/install'
say enabled 'systemctl is-enabled mailgate'
say verify 'systemd-analyze verify --man=no /lib/systemd/system/mailgate.service'
say started state
say uid 'grep ^Uid: /proc/$(main)/status'
say capabilities 'grep ^CapEff: /proc/$(main)/status'
say mail 'python3 /lab/send.py'
for i in 1 2 3 4 5 6 7 8 9 10; do ls /var/lib/mailgate/mail/*/*/Maildir/new/* >/dev/null 2>&1 && break; sleep 0.5; done
say delivered 'ls /var/lib/mailgate/mail/*/*/Maildir/new | wc -l'
printf '[server.listener.lmtp]\nbind = "127.0.0.1:24"\nprotocol = "lmtp"\n' >/etc/mailgate/conf.d/lmtp.toml
say reload 'systemctl reload mailgate; echo $?'
say reloaded state
say listens 'mailgate status | grep -c 127.0.0.1:24'
before=$(main)
printf '[session]\ntiemout = "5m"\n' >/etc/mailgate/conf.d/broken.toml
say refused 'systemctl reload mailgate >/dev/null 2>&1; echo $?'
say after state
say script 'service mailgate configtest; /etc/init.d/mailgate restart; echo $?'
say upgrade 'dpkg -i --force-confold /lab/next.deb | tail -1; dpkg -s mailgate | grep ^Version'
say same '[ "$(main)" = '"$before"' ] && echo yes'
rm /etc/mailgate/conf.d/broken.toml
say restart '/etc/init.d/mailgate restart; echo $?'
say other '[ "$(main)" = '"$before"' ] || echo yes'
kill -9 "$(main)"
for i in $(seq 60); do
    [ "$(systemctl show mailgate -p NRestarts --value)" = 1 ] && [ "$(systemctl is-active mailgate)" = active ] && break
    sleep 1
done
say crashed state
sed -i '1i [session]\ntiemout = "5m"' /etc/mailgate/conf.d/host.toml
say start 'systemctl restart mailgate; echo $?'
say failed 'systemctl show mailgate -p ExecMainStatus -p NRestarts'
say purge 'dpkg -P mailgate >/dev/null 2>&1; echo $?'
say gone 'systemctl is-active mailgate; ls -d /var/spool/mailgate'
"""

SEND = """
import smtplib
with smtplib.SMTP("127.0.0.1", 25, timeout=30) as client:
    client.ehlo("client.test")
    print(client.sendmail("someone@sender.test", ["postmaster@fresh"], "Subject: x\\r\\n\\r\\nhello\\r\\n"))
"""

RUN = """
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash /lab/script
ExecStopPost=/bin/systemctl --no-block poweroff
"""


@pytest.fixture(scope="module")
def result(base, package, next_package, tmp_path_factory):
    """What the script found: name to value."""
    needs.program("systemd-nspawn")
    tree = tmp_path_factory.mktemp("booted") / "root"
    unpack(base, tree)
    try:
        lab = tree / "lab"
        lab.mkdir()
        (lab / "script").write_text(SCRIPT)
        (lab / "send.py").write_text(SEND)
        shutil.copy(package, lab / "mailgate.deb")
        shutil.copy(next_package, lab / "next.deb")
        units = tree / "etc/systemd/system"
        (units / "lab.service").write_text(RUN)
        wants = units / "graphical.target.wants"
        wants.mkdir()
        (wants / "lab.service").symlink_to("/etc/systemd/system/lab.service")
        (units / "console-getty.service").symlink_to("/dev/null")
        booted = subprocess.run(
            [
                *("systemd-nspawn", "--quiet", "--directory", str(tree), "--register=no", "--keep-unit"),
                *("--private-network", "--resolv-conf=off", "--timezone=off", "--hostname=fresh", "--boot"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            start_new_session=True,
            env={"PATH": SYSTEM_PATH},
        )
        found = lab / "result"
        if not found.exists():
            pytest.skip(f"systemd cannot be booted here: {booted.stdout[-500:]}")
        text = found.read_text()
        print(text)
        yield {name: value.strip() for name, _, value in (line.partition(": ") for line in text.splitlines())}
    finally:
        shutil.rmtree(tree)


def test_it_is_installed_enabled_and_started(result):
    assert result["install"] == "0"
    assert result["installed"].startswith("mailgate runs, and takes mail for postmaster@fresh")
    assert result["enabled"] == "enabled"
    assert result["started"] == "fresh serves on 3 addresses, generation 1 0 active"


def test_the_unit_is_right(result):
    assert result["verify"] == ""


def test_it_never_is_root(result):
    assert "0" not in result["uid"].split()[1:]
    assert result["capabilities"].endswith("0000000000000400")


def test_mail_is_taken_and_delivered(result):
    assert (result["mail"], result["delivered"]) == ("{}", "1")


def test_a_reload_is_waited_for_and_opens_a_port_below_1024(result):
    assert (result["reload"], result["listens"]) == ("0", "1")
    assert result["reloaded"] == "fresh serves on 4 addresses, generation 2 0 active"


def test_a_broken_configuration_is_refused_and_the_old_goes_on(result):
    assert result["refused"] != "0"
    assert result["after"] == "fresh serves on 4 addresses, generation 2 0 active"
    assert result["script"].endswith("6")
    assert "session.tiemout: unknown key" in result["script"]


def test_an_upgrade_restarts_only_what_can_start_again(result):
    assert result["upgrade"].endswith("99.0")
    assert result["same"] == "yes"
    assert result["restart"].endswith("0")
    assert result["other"] == "yes"


def test_after_a_crash_it_is_started_again(result):
    assert result["crashed"] == "fresh serves on 4 addresses, generation 1 1 active"


def test_a_configuration_that_cannot_be_used_is_not_tried_again(result):
    assert result["start"].endswith("1")
    assert "ExecMainStatus=78" in result["failed"]


def test_the_purge_stops_it(result):
    assert result["purge"] == "0"
    assert not result["gone"].startswith("active")
    assert "No such file" in result["gone"]


def test_the_unit_leaves_little_to_an_intruder(package, tmp_path):
    needs.program("systemd-analyze")
    outside("dpkg-deb", "-x", str(package), str(tmp_path / "tree"))
    unit = tmp_path / "tree/lib/systemd/system/mailgate.service"
    outside("systemd-analyze", "security", "--offline=true", "--threshold=25", str(unit))
