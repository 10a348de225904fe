"""The package on a fresh system, from its installation to the purge; the tests build on each other.

The init script is what starts the daemon here; systemd is in `test_systemd.py`.
"""

import re

import pytest
from support.ports import wait_until

CONFIG = "/etc/mailgate/mailgate.toml"
SPOOL = "/var/spool/mailgate"

SEND = """
import smtplib, sys
client = smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=30)
client.ehlo("client.test")
client.sendmail("someone@sender.test", [sys.argv[2]], "Subject: " + sys.argv[3] + "\\r\\n\\r\\nhello\\r\\n")
client.quit()
"""

ONWARD = """
[queue.route.onward]
type = "relay"
address = "127.0.0.1"
port = 2526
protocol = "smtp"
tls.implicit = false
"""

QUERY = """
import sqlite3, sys
queue = sqlite3.connect(sys.argv[1])
print(*queue.execute(sys.argv[2]).fetchone())
"""

# A next hop that keeps what it is given in /srv/next.
SINK = """
import os, socketserver
class Session(socketserver.StreamRequestHandler):
    def handle(self):
        say = lambda text: self.wfile.write(text.encode() + b"\\r\\n")
        say("220 next.test")
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"DATA":
                say("354 go on")
                text = []
                while (line := self.rfile.readline()) != b".\\r\\n":
                    text.append(line)
                with open(f"/srv/next/{len(os.listdir('/srv/next'))}", "wb") as file:
                    file.write(b"".join(text))
            say("221 bye" if verb == b"QUIT" else "250 ok")
os.makedirs("/srv/next", exist_ok=True)
server = socketserver.ThreadingTCPServer(("127.0.0.1", 2526), Session)
if os.fork() == 0:
    os.setsid()
    for number in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    with open("/srv/next.pid", "w") as file:
        file.write(str(os.getpid()))
    server.serve_forever()
"""


def send(root, recipient, subject, port=25):
    return root.run("python3", "-c", SEND, str(port), recipient, subject)


def mail(root):
    """Every delivered message of this host's Maildirs."""
    return [path.read_text() for path in sorted(root.path.glob("var/lib/mailgate/mail/*/*/Maildir/new/*"))]


def onward(root):
    """Every message the next hop has."""
    return [path.read_text() for path in sorted((root.path / "srv/next").glob("*"))]


def waiting(root):
    """How many messages the queue holds."""
    return int(query(root, "SELECT count(*) FROM message"))


def query(root, statement):
    """What the queue answers."""
    return root.ok("python3", "-c", QUERY, f"{SPOOL}/queue.sqlite", statement)


def pid(root):
    return root.ok("cat", "/run/mailgate.pid").strip()


def owner(root, name):
    return root.ok("stat", "-c", "%U:%G %a", name).strip()


def log(root):
    return root.read("/var/log/mailgate/mailgate.log")


def test_it_installs_starts_and_says_what_it_takes(root, package):
    root.ok("mkdir", "-p", "/packages")
    (root.path / "packages" / package.name).write_bytes(package.read_bytes())
    done = root.apt("install", "--no-install-recommends", f"/packages/{package.name}")
    assert done.returncode == 0, done.stdout
    assert "mailgate runs, and takes mail for postmaster@fresh.test" in done.stdout, done.stdout
    assert root.init("status").returncode == 0
    # The fresh system leaves most manual pages out.
    changed = [line for line in root.run("dpkg", "--verify", "mailgate").stdout.splitlines() if "/man/" not in line]
    assert changed == []
    assert root.ok("mailgate", "config", "check").endswith("no errors, 0 warnings\n")


def test_it_runs_as_its_own_user_and_so_is_all_it_has(root):
    status = root.ok("cat", f"/proc/{pid(root)}/status")
    uid = root.ok("id", "-u", "mailgate").strip()
    assert re.search(rf"^Uid:\s+{uid}\s+{uid}\s+{uid}\s+{uid}$", status, re.M), status
    # Only CAP_NET_BIND_SERVICE, and no way to get more.
    for kind in ("Prm", "Eff", "Bnd", "Amb"):
        assert re.search(rf"^Cap{kind}:\s+0000000000000400$", status, re.M), status
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert owner(root, SPOOL) == "mailgate:mailgate 751"
    assert owner(root, f"{SPOOL}/maildrop") == "mailgate:mailgate 3777"
    assert owner(root, f"{SPOOL}/queue.sqlite") == "mailgate:mailgate 640"
    assert owner(root, "/var/log/mailgate") == "mailgate:adm 2750"
    assert owner(root, "/var/log/mailgate/mailgate.log") == "mailgate:adm 640"
    assert owner(root, "/run/mailgate/control.sock") == "mailgate:mailgate 660"
    assert owner(root, CONFIG) == "root:mailgate 640"
    assert owner(root, "/etc/mailgate/keys") == "root:mailgate 750"


def test_mail_for_this_host_is_taken_and_delivered(root):
    done = send(root, "postmaster@fresh.test", "to the postmaster")
    assert done.returncode == 0, done.stdout
    wait_until(lambda: mail(root), 20, "a message in the Maildir")
    assert "Subject: to the postmaster" in mail(root)[0]
    refused = send(root, "victim@elsewhere.test", "relay")
    assert refused.returncode != 0
    assert "550" in refused.stdout
    assert "[" in root.ok("mailgate", "explain", "--last", "1")


def test_a_user_of_the_host_hands_in_mail(root):
    before = len(mail(root))
    root.shell("printf 'Subject: from a program\n\nhi\n' > /letter; chmod 644 /letter")
    root.shell("setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '/usr/sbin/sendmail postmaster < /letter'")
    wait_until(lambda: len(mail(root)) > before, 20, "its message in the Maildir")
    assert "Subject: from a program" in "".join(mail(root))
    assert root.ok("newaliases") == ""
    assert "empty" in root.ok("mailq")


def test_the_policy_tests_it_brings_pass(root):
    assert root.run("mailgate", "test").returncode == 0


def test_an_edited_configuration_is_taken_and_mail_goes_out(root):
    root.edit(CONFIG, "{ else = \"'mx'\" }", "{ else = \"'onward'\" }")
    root.edit(CONFIG, 'relay = "!is_empty(authenticated_as)"', "relay = \"remote_ip = '127.0.0.1'\"")
    (root.path / "etc/mailgate/conf.d/onward.toml").write_text(ONWARD)
    root.ok("python3", "-c", SINK)
    before = pid(root)
    done = root.init("reload")
    assert done.returncode == 0, done.stdout
    assert pid(root) == before
    assert send(root, "someone@elsewhere.test", "onward").returncode == 0
    wait_until(lambda: onward(root), 20, "a message at the next hop")
    assert "Subject: onward" in onward(root)[0]


def test_a_reload_opens_another_port_below_1024(root):
    (root.path / "etc/mailgate/conf.d/lmtp.toml").write_text(
        '[server.listener.lmtp]\nbind = "127.0.0.1:24"\nprotocol = "lmtp"\n'
    )
    done = root.init("force-reload")
    assert done.returncode == 0, done.stdout
    assert "127.0.0.1:24" in root.ok("mailgate", "status")


@pytest.mark.parametrize("action", ["reload", "force-reload", "restart", "try-restart"])
def test_a_broken_configuration_is_refused_with_its_errors_and_the_old_goes_on(root, action):
    before = pid(root)
    broken = root.path / "etc/mailgate/conf.d/broken.toml"
    broken.write_text('[session]\ntiemout = "5m"\n')
    try:
        done = root.init(action)
    finally:
        broken.unlink()
    assert done.returncode == 6
    assert "/etc/mailgate/conf.d/broken.toml:2: session.tiemout: unknown key" in done.stdout
    assert "session.timeout" in done.stdout
    assert pid(root) == before
    assert send(root, "postmaster@fresh.test", "still here").returncode == 0


def test_a_key_that_only_root_can_read_is_found_before_the_restart(root):
    before = pid(root)
    root.shell("echo secret > /etc/mailgate/keys/mine; chmod 600 /etc/mailgate/keys/mine")
    (root.path / "etc/mailgate/conf.d/mine.toml").write_text(
        '[[directory.local.principals]]\nname = "jane"\nsecret = "%{file:/etc/mailgate/keys/mine}%"\n'
    )
    done = root.init("restart")
    assert done.returncode == 6
    assert "cannot read /etc/mailgate/keys/mine: permission denied" in done.stdout
    assert pid(root) == before
    root.shell("chgrp mailgate /etc/mailgate/keys/mine; chmod 640 /etc/mailgate/keys/mine")
    assert root.init("reload").returncode == 0


def test_started_twice_it_runs_once_and_stopped_twice_it_is_stopped(root):
    before = pid(root)
    done = root.init("start")
    assert (done.returncode, pid(root)) == (0, before)
    for _ in range(2):
        assert root.init("stop").returncode == 0
    assert root.init("status").returncode == 3
    assert root.init("reload").returncode == 7
    assert root.init("try-restart").returncode == 0
    assert root.init("status").returncode == 3
    assert root.init("start").returncode == 0


def test_a_pid_file_that_names_no_mailgate_is_no_mailgate(root):
    assert root.init("stop").returncode == 0
    for content in ("", "nonsense", "1", "999999", "-1", "../../1"):
        root.shell(f"printf '%s' '{content}' > /run/mailgate.pid")
        assert root.init("status").returncode == 1, content
        assert root.init("stop").returncode == 0, content
        assert root.run("test", "-e", "/run/mailgate.pid").returncode == 1, content
    root.shell("echo 1 > /run/mailgate.pid")
    assert root.init("reload").returncode == 7
    root.shell("echo 1 > /run/mailgate.pid")
    assert root.init("start").returncode == 0
    assert root.init("status").returncode == 0


def test_a_daemon_whose_pid_file_is_lost_is_found(root):
    before = pid(root)
    for damage in ("rm /run/mailgate.pid", "echo 1 > /run/mailgate.pid", ": > /run/mailgate.pid"):
        root.shell(damage)
        assert f"process {before}" in root.init("status").stdout, damage
        assert root.init("start").returncode == 0, damage
        assert pid(root) == before, damage
    root.shell("rm /run/mailgate.pid")
    assert root.init("stop").returncode == 0
    assert root.run("test", "-e", f"/proc/{before}").returncode == 1
    assert root.init("start").returncode == 0


def test_after_a_crash_it_is_told_and_starts_again(root):
    root.shell('kill -9 "$(cat /run/mailgate.pid)"; sleep 0.5')
    assert root.init("status").returncode == 1
    assert root.init("start").returncode == 0
    assert send(root, "postmaster@fresh.test", "after a crash").returncode == 0


def test_after_a_boot_run_is_empty(root):
    assert root.init("stop").returncode == 0
    root.shell("rm -rf /run/mailgate /run/mailgate.*")
    assert root.init("start").returncode == 0
    assert owner(root, "/run/mailgate/control.sock") == "mailgate:mailgate 660"


def test_who_is_not_root_may_look_and_not_touch(root):
    other = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/etc/init.d/mailgate")
    for action in ("start", "stop", "restart", "reload"):
        done = root.run(*other, action)
        assert (done.returncode, "only root" in done.stdout) == (4, True), done.stdout
    assert root.run(*other, "status").returncode == 0


def test_wrong_words_are_told(root):
    assert root.init("frobnicate").returncode == 3
    assert root.run("/etc/init.d/mailgate").returncode == 2


def test_a_port_that_is_taken_is_told_at_the_start_and_nothing_is_left(root):
    assert root.init("stop").returncode == 0
    holder = "import socket, time; s = socket.create_server(('::', 587), family=socket.AF_INET6); time.sleep(300)"
    root.shell(f'python3 -c "{holder}" >/dev/null 2>&1 & echo $! > /holder; sleep 1')
    done = root.init("start")
    assert done.returncode == 1
    assert "server.listener.submission.bind: cannot listen on [::]:587: Address already in use" in done.stdout
    assert root.init("status").returncode == 3
    assert root.run("sh", "-c", "ls -d /run/.s-s-d*").returncode != 0
    # What it was told to listen on is changed, and it starts beside the other program.
    root.edit(CONFIG, 'bind = "[::]:587"', 'bind = "[::]:10587"')
    done = root.init("start")
    assert done.returncode == 0, done.stdout
    root.edit(CONFIG, 'bind = "[::]:10587"', 'bind = "[::]:587"')
    done = root.init("reload")
    assert done.returncode == 6
    assert "Address already in use" in done.stdout
    assert root.init("status").returncode == 0
    root.shell('kill "$(cat /holder)"; sleep 0.5')
    assert root.init("reload").returncode == 0


def test_the_log_is_rotated(root):
    before = pid(root)
    root.ok("logrotate", "--force", "/etc/logrotate.d/mailgate")
    assert (root.path / "var/log/mailgate/mailgate.log.1").exists()
    # It looks for its file again within a second or so.
    root.shell("sleep 1.5")
    assert send(root, "postmaster@fresh.test", "after the rotation").returncode == 0
    wait_until(lambda: (root.path / "var/log/mailgate/mailgate.log").exists(), 20, "another log")
    assert owner(root, "/var/log/mailgate/mailgate.log") == "mailgate:adm 640"
    assert pid(root) == before


def test_twistd_is_there_for_those_who_start_it_by_hand(root):
    done = root.ok("mailgate-twistd", "-n", "--pidfile=", "mailgate", "--config", CONFIG, "--check")
    assert "error" not in done
    assert "mailgate" in root.ok("mailgate-twistd", "--help")


def test_twistd_gives_up_root_after_its_ports_are_open(root):
    assert root.init("stop").returncode == 0
    root.shell(
        "install -d -o mailgate -g mailgate /run/mailgate; cd /; "
        "mailgate-twistd --uid mailgate --gid mailgate --umask 027 "
        f"--pidfile=/run/mailgate/hand.pid --logfile=/var/log/mailgate/hand.log mailgate --config {CONFIG}"
    )
    try:
        wait_until(lambda: "server.started" in root.read("/var/log/mailgate/hand.log"), 30, "the start")
        uid = root.ok("id", "-u", "mailgate").strip()
        status = root.shell("cat /proc/$(cat /run/mailgate/hand.pid)/status")
        assert re.search(rf"^Uid:\s+{uid}\s+{uid}\s+{uid}\s+{uid}$", status, re.M), status
        assert owner(root, "/var/log/mailgate/hand.log") == "mailgate:adm 640"
        assert owner(root, "/run/mailgate/control.sock") == "mailgate:mailgate 660"
        root.edit("/etc/mailgate/conf.d/lmtp.toml", "127.0.0.1:24", "127.0.0.1:26")
        done = root.run("mailgate", "reload")
        assert done.returncode == 78
        assert "server.listener.lmtp.bind: cannot listen on 127.0.0.1:26: Permission denied" in done.stdout
        assert "CAP_NET_BIND_SERVICE: restart mailgate, or choose another port" in done.stdout
    finally:
        root.shell('pid=$(cat /run/mailgate/hand.pid); kill "$pid"; while [ -e "/proc/$pid" ]; do sleep 0.1; done')
    assert root.run("test", "-e", "/run/mailgate/hand.pid").returncode == 1
    assert root.init("start").returncode == 0


# --- upgrades -------------------------------------------------------------------------


def install(root, package):
    (root.path / "packages" / package.name).write_bytes(package.read_bytes())
    return root.apt(
        "-o", "Dpkg::Options::=--force-confold", "install", f"/packages/{package.name}", "--allow-downgrades"
    )


def test_an_upgrade_keeps_what_was_edited_and_what_is_queued(root, next_package):
    before = pid(root)
    edited = root.read(CONFIG)
    root.shell("kill $(cat /srv/next.pid)")
    assert send(root, "someone@elsewhere.test", "kept over the upgrade").returncode == 0
    wait_until(lambda: waiting(root) == 1, 20, "a message that waits")
    done = install(root, next_package)
    assert done.returncode == 0, done.stdout
    assert root.read(CONFIG) == edited
    assert owner(root, CONFIG) == "root:mailgate 640"
    assert "A later version says more" in root.read(f"{CONFIG}.dpkg-dist")
    assert pid(root) != before
    assert root.init("status").returncode == 0
    assert waiting(root) == 1
    assert "kept over the upgrade" in root.shell(
        "mailgate queue show $(mailgate queue list --json | "
        'python3 -c \'import json, sys; print(json.load(sys.stdin)["items"][0]["id"])\') --headers'
    )


def test_an_upgrade_whose_new_version_cannot_use_the_configuration_leaves_the_old_one_running(root, package):
    before = pid(root)
    broken = root.path / "etc/mailgate/conf.d/broken.toml"
    broken.write_text('[session]\ntiemout = "5m"\n')
    try:
        done = install(root, package)
    finally:
        broken.unlink()
    assert done.returncode == 0, done.stdout
    assert "session.tiemout: unknown key" in done.stdout
    assert "the version that ran before goes on" in done.stdout
    assert pid(root) == before
    assert send(root, "postmaster@fresh.test", "the old one").returncode == 0
    assert root.init("restart").returncode == 0


def test_what_was_stopped_by_hand_stays_stopped(root, next_package):
    assert root.init("stop").returncode == 0
    done = install(root, next_package)
    assert done.returncode == 0, done.stdout
    assert "stays stopped" in done.stdout
    assert root.init("status").returncode == 3
    assert root.init("start").returncode == 0


# --- removal --------------------------------------------------------------------------


def test_removal_and_purge_keep_what_is_not_delivered_and_say_so(root):
    before = pid(root)
    done = root.apt("remove", "mailgate")
    assert done.returncode == 0, done.stdout
    assert f"1 messages wait in {SPOOL}" in done.stdout
    assert root.run("test", "-e", f"/proc/{before}").returncode == 1
    assert (root.path / "etc/mailgate/mailgate.toml").exists()
    assert not (root.path / "usr/lib/mailgate").exists()
    # The init script stays with the configuration, and says that there is nothing to start.
    assert root.run("sh", "/etc/init.d/mailgate", "start").returncode == 5
    assert root.run("sh", "/etc/init.d/mailgate", "stop").returncode == 0
    done = root.apt("purge", "mailgate")
    assert done.returncode == 0, done.stdout
    assert f"1 messages were not delivered; {SPOOL} is kept" in done.stdout
    assert waiting(root) == 1
    assert not (root.path / "etc/init.d/mailgate").exists()
    assert not (root.path / "etc/mailgate/mailgate.toml").exists()
    assert not (root.path / "var/log/mailgate").exists()
    assert mail(root), "what was delivered is nobody's to delete"


def test_installed_again_it_delivers_what_was_kept(root, package):
    for name in ("onward", "lmtp", "mine"):
        (root.path / f"etc/mailgate/conf.d/{name}.toml").unlink(missing_ok=True)
    root.ok("python3", "-c", SINK)
    (root.path / "etc/mailgate").mkdir(exist_ok=True)
    done = install(root, package)
    assert done.returncode == 0, done.stdout
    root.edit(CONFIG, "{ else = \"'mx'\" }", "{ else = \"'onward'\" }")
    (root.path / "etc/mailgate/conf.d/onward.toml").write_text(ONWARD)
    assert root.init("reload").returncode == 0
    root.ok("mailgate", "queue", "retry", "--all")
    wait_until(lambda: any("kept over the upgrade" in text for text in onward(root)), 30, "the message that was kept")
    wait_until(lambda: waiting(root) == 0, 20, "an empty queue")


def test_purge_of_an_empty_queue_leaves_nothing_but_what_the_operator_made(root):
    (root.path / "etc/mailgate/conf.d/onward.toml").unlink()
    done = root.apt("purge", "mailgate")
    assert done.returncode == 0, done.stdout
    assert not (root.path / SPOOL.lstrip("/")).exists()
    # The operator's own key is nobody's to delete.
    assert [path.name for path in (root.path / "etc/mailgate").rglob("*") if path.is_file()] == ["mine"]
    assert mail(root)
    assert root.ok("id", "-un", "mailgate") == "mailgate\n"
