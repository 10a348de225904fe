"""The local route: names, steps in their order, every outcome."""

from __future__ import annotations

import errno
import hashlib
import os
import threading

import pytest
from support.work_store import WorkStore, message, recipient
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from mailgate.config.error import ConfigErrors
from mailgate.config.load import load_text
from mailgate.config.schema.template import MaildirTemplate
from mailgate.deliver.maildir import Copy, Impossible, LocalDelivery, LocalRoute, file_name, maildir_path
from mailgate.mail.status import Delayed, Delivered, ErrorKind, Failed
from mailgate.mail.unknown import Unknown

HOST = "mx.example.net"


async def run_here(work, *args):
    return work(*args)


async def plus(address):
    local = address.rpartition("@")[0].lower()
    user, _, detail = local.partition("+")
    return user, detail


class Disk:
    """Passes calls on and keeps their order; `fault` raises instead of a call."""

    def __init__(self):
        self.calls = []
        self.fault = {}

    def _name(self, fd):
        return os.readlink(f"/proc/self/fd/{fd}")

    def fsync(self, fd):
        self.calls.append(("fsync", self._name(fd)))
        if "fsync" in self.fault:
            raise OSError(self.fault["fsync"], os.strerror(self.fault["fsync"]))

    def rename(self, source, target):
        self.calls.append(("rename", target))
        if "rename" in self.fault:
            raise OSError(self.fault["rename"], os.strerror(self.fault["rename"]))
        os.rename(source, target)


class Post:
    """A store, a disk, and one delivery after another."""

    def __init__(self, root, **options):
        self.root = root
        self.store = WorkStore()
        self.disk = Disk()
        self.split = options.pop("split", plus)
        template = options.pop("template", f"{root}/%{{domain}}/%{{user}}/Maildir")
        self.route = LocalRoute("local", template and MaildirTemplate(template), options.pop("create", True))
        self.delivered_to = options.pop("delivered_to", True)

    def deliver(self, made, claims=1):
        item = self.store.add(made)
        for _ in range(claims):
            lease = self.store.lease(item)
        local = LocalDelivery(self.store, run_here, self.split, HOST, self.delivered_to, self.disk)
        found = []
        Deferred.fromCoroutine(local.deliver(self.route, lease, item.recipients)).addBoth(found.append)
        return found[0]

    def files(self, part="new", user="jane"):
        directory = self.root / "example.org" / user / "Maildir" / part
        return sorted(os.listdir(directory)) if directory.exists() else []

    def content(self, user="jane"):
        (name,) = self.files(user=user)
        return (self.root / "example.org" / user / "Maildir" / "new" / name).read_bytes()


@pytest.fixture
def post(tmp_path):
    return Post(tmp_path)


@pytest.mark.spec("OUT-239")
def test_one_file_in_new_named_by_creation_queue_id_and_recipient(post):
    outcomes = post.deliver(message(recipient("Jane@example.org"), created_ms=1_700_000_000_123, id=0xAB))
    assert isinstance(outcomes[0], Delivered)
    assert outcomes[0].status.entity == "localhost"
    assert str(outcomes[0].status.reply) == "Code: 250, Enhanced code: 2.1.5, Message: OK"
    digest = hashlib.sha256(b"jane@example.org").hexdigest()[:16]
    assert post.files() == [f"1700000000.Q00000000000000abR{digest}.{HOST}"]
    assert post.files("tmp") == []


def test_host_names_are_made_fit_for_a_file_name():
    item, _ = message()
    assert file_name(item, "a@b", "x/y:z").endswith(".x\\057y\\072z")


def test_the_longest_host_name_leaves_room_in_a_file_name_for_the_flags_of_a_reader(post):
    longest = ".".join(["mx" + "h" * 60] * 4)
    item = post.store.add(message())
    local = LocalDelivery(post.store, run_here, plus, longest, True, post.disk)
    found = []
    delivering = local.deliver(post.route, post.store.lease(item), item.recipients)
    Deferred.fromCoroutine(delivering).addCallback(found.append)
    assert isinstance(found[0][0], Delivered)
    (name,) = post.files()
    base = post.root / "example.org" / "jane" / "Maildir"
    os.rename(base / "new" / name, base / "cur" / f"{name}:2,DFPRST")


@pytest.mark.spec("OUT-240")
def test_file_is_synced_renamed_and_its_directory_synced_in_this_order(post):
    post.deliver(message())
    post.disk.calls.clear()
    post.deliver(message(id=2))
    base = str(post.root / "example.org" / "jane" / "Maildir")
    calls = [(call, os.path.dirname(path) if call == "rename" else path) for call, path in post.disk.calls]
    assert calls[0][0] == "fsync"
    assert calls[0][1].startswith(f"{base}/tmp/")
    assert calls[1:] == [("rename", f"{base}/new"), ("fsync", f"{base}/new")]


def test_a_new_maildir_is_made_durable_from_the_top(post):
    post.deliver(message())
    synced = [path for call, path in post.disk.calls if call == "fsync"]
    top = str(post.root)
    assert synced[:4] == [
        top,
        f"{top}/example.org",
        f"{top}/example.org/jane",
        f"{top}/example.org/jane/Maildir",
    ]
    assert (post.root / "example.org" / "jane" / "Maildir").stat().st_mode & 0o777 == 0o700


@pytest.mark.spec("OUT-241")
@pytest.mark.parametrize("moved", [None, "{}", "{}:2,S", "{}:2,FRS"])
def test_a_repeated_attempt_finds_the_copy_wherever_a_reader_moved_it(post, moved):
    post.deliver(message())
    (name,) = post.files()
    base = post.root / "example.org" / "jane" / "Maildir"
    if moved:
        os.rename(base / "new" / name, base / "cur" / moved.format(name))
    assert isinstance(post.deliver(message())[0], Delivered)
    assert len(post.files() + post.files("cur")) == 1
    assert post.files("tmp") == []


def test_leftovers_of_an_attempt_that_crashed_are_removed(post):
    post.deliver(message())
    (name,) = post.files()
    base = post.root / "example.org" / "jane" / "Maildir"
    os.rename(base / "new" / name, base / "tmp" / f"{name}.1")
    (base / "tmp" / "other.1").write_bytes(b"")
    post.deliver(message())
    assert post.files() == [name]
    assert post.files("tmp") == ["other.1"]


@pytest.mark.spec("OUT-242")
def test_two_recipients_in_one_maildir_get_two_files_the_same_never_two(tmp_path):
    post = Post(tmp_path, template=f"{tmp_path}/%{{domain}}/jane/Maildir")
    made = message(recipient("jane@example.org"), recipient("j.doe@example.org"))
    post.deliver(made)
    assert len(post.files()) == 2
    post.deliver(made)
    assert len(post.files()) == 2


@pytest.mark.spec("OUT-244")
def test_crlf_is_stored_as_lf_and_nothing_else_changes(tmp_path):
    octets = b"Subject: x\r\n\r\na\rb\nc\r\r\n.\r\n\xff\x00\r"
    for block in (1, 2, 3, 1000):
        post = Post(tmp_path / str(block), delivered_to=False)
        os.mkdir(post.root)
        post.store.block = block
        post.deliver(message(octets=octets))
        assert post.content() == b"Subject: x\n\na\rb\nc\r\n.\n\xff\x00\r"


def test_delivered_to_is_the_first_line_when_wanted(tmp_path):
    for wanted in (True, False):
        post = Post(tmp_path / str(wanted), delivered_to=wanted)
        os.mkdir(post.root)
        for block in (5, 1000):
            post.store.block = block
            post.deliver(message(recipient("Jane+x@example.org"), id=block))
        for name in post.files():
            text = (post.root / "example.org/jane/Maildir/new" / name).read_bytes()
            assert text.startswith(b"Delivered-To: Jane+x@example.org\nSubject" if wanted else b"Subject")


@pytest.mark.spec("OUT-245")
@pytest.mark.parametrize(
    "template, path",
    [
        ("/m/%{user}", "/m/jane"),
        ("/m/%{user}/%{detail}", "/m/jane/news"),
        ("/m/%{local}", "/m/jane+news"),
        ("/m/%{domain}/x", "/m/xn--bcher-kva.example/x"),
        ("/m/%{address}", "/m/jane+news@xn--bcher-kva.example"),
        ("/m/%{hash}/%{user}", "/m/{}/jane"),
    ],
)
def test_placeholders(template, path):
    digest = hashlib.sha256(b"jane+news@xn--bcher-kva.example").hexdigest()[:2]
    found = maildir_path(MaildirTemplate(template), "Jane+News@Bücher.example", "jane", "news")
    assert found == path.replace("{}", digest)


@pytest.mark.spec("OUT-246")
@pytest.mark.parametrize(
    "local, name",
    [
        ("..", "=2E."),
        (".", "=2E"),
        (".hidden", "=2Ehidden"),
        ("../../etc/passwd", "=2E.=2F..=2Fetc=2Fpasswd"),
        ("/abs", "=2Fabs"),
        ("nul\x00", "nul=00"),
        ("a\nb\x7f", "a=0Ab=7F"),
    ],
)
def test_no_local_part_leaves_the_fixed_part(local, name):
    template = MaildirTemplate("/srv/mail/%{user}/%{detail}/M")
    assert maildir_path(template, f"{local}@example.org", local, "") == f"/srv/mail/{name}//M"
    assert maildir_path(template, f"{local}@example.org", "x", local) == f"/srv/mail/x/{name}/M"


@pytest.mark.parametrize(
    "address, user", [("@example.org", ""), ("jane@", "jane"), ("x" * 256 + "@example.org", "x" * 256)]
)
def test_an_address_no_path_can_be_made_of(address, user):
    with pytest.raises(Impossible):
        maildir_path(MaildirTemplate("/m/%{domain}/%{user}"), address, user, "")


def test_an_impossible_path_fails_for_good(post):
    outcome = post.deliver(message(recipient("x" * 256 + "@example.org")))[0]
    assert isinstance(outcome, Failed)
    assert (outcome.status.reply.code, outcome.status.reply.enhanced) == (550, "5.1.3")
    assert outcome.status.command.startswith("RCPT TO:<xxx")
    assert outcome.status.entity == "localhost"


@pytest.mark.spec("OUT-247")
def test_a_missing_fixed_part_delays_and_creates_nothing(tmp_path):
    post = Post(tmp_path / "not-mounted")
    outcome = post.deliver(message())[0]
    assert isinstance(outcome, Delayed)
    assert outcome.status.reply.code == 451
    assert not (tmp_path / "not-mounted").exists()


@pytest.mark.spec("OUT-247")
def test_a_missing_maildir_delays_where_it_may_not_be_created(tmp_path):
    post = Post(tmp_path, create=False)
    outcome = post.deliver(message())[0]
    assert isinstance(outcome, Delayed)
    assert (outcome.status.reply.code, outcome.status.reply.enhanced) == (451, "4.2.0")
    assert os.listdir(tmp_path) == []


@pytest.mark.spec("OUT-248")
@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize(
    "number, code, enhanced",
    [
        (errno.ENOSPC, 452, "4.2.2"),
        (errno.EDQUOT, 452, "4.2.2"),
        (errno.EIO, 451, "4.2.0"),
        (errno.EROFS, 451, "4.2.0"),
    ],
)
@pytest.mark.parametrize("block", [7, 1000])
def test_every_fault_of_the_file_system_delays_and_leaves_nothing(post, call, number, code, enhanced, block):
    post.deliver(message(id=1))
    (before,) = post.files()
    post.store.block = block
    post.disk.fault[call] = number
    outcome = post.deliver(message(id=2))[0]
    assert isinstance(outcome, Delayed)
    assert outcome.status.kind is ErrorKind.UNEXPECTED_REPLY
    assert (outcome.status.reply.code, outcome.status.reply.enhanced) == (code, enhanced)
    assert str(post.root) not in outcome.status.reply.text
    assert post.files() == [before]
    assert post.files("tmp") == []


def test_one_copy_that_fails_leaves_the_others(tmp_path):
    post = Post(tmp_path)
    (tmp_path / "example.org").mkdir()
    (tmp_path / "example.org" / "broken").write_bytes(b"a file in the way")
    outcomes = post.deliver(message(recipient("broken@example.org"), recipient("jane@example.org")))
    assert isinstance(outcomes[0], Delayed)
    assert isinstance(outcomes[1], Delivered)


@pytest.mark.spec("OUT-250")
@pytest.mark.parametrize(
    "key", ["", 'maildir = "relative/%{user}"', 'maildir = "/no/placeholder"', 'maildir = "/%{who}"']
)
def test_a_configured_route_needs_a_good_template(key):
    with pytest.raises(ConfigErrors):
        load_text(f'[queue.route.local]\ntype = "local"\n{key}\n')


@pytest.mark.spec("OUT-250")
def test_the_built_in_route_delays(tmp_path):
    post = Post(tmp_path, template=None)
    outcome = post.deliver(message())[0]
    assert isinstance(outcome, Delayed)
    assert outcome.status.reply.text == "local delivery is not configured"


def test_unknown_sub_addressing_delays_with_its_dependency(tmp_path):
    async def unknown(address):
        return Unknown("store:aliases", "down")

    post = Post(tmp_path, split=unknown)
    outcome = post.deliver(message())[0]
    assert isinstance(outcome, Delayed)
    assert outcome.status.kind is ErrorKind.DEPENDENCY
    assert outcome.status.entity == "store:aliases"


def test_missing_content_delays(post):
    item = post.store.add(message())
    lease = post.store.lease(item)
    post.store.contents.clear()
    local = LocalDelivery(post.store, run_here, plus, HOST)
    found = []
    Deferred.fromCoroutine(local.deliver(post.route, lease, item.recipients)).addCallback(found.append)
    assert found[0][0].status.kind is ErrorKind.IO
    assert post.files() == []


class Threads:
    """Calls that block, made when the test says so: `run` makes the one handed over first, or another."""

    def __init__(self):
        self.waiting = []

    def __call__(self, work, *args):
        done = Deferred()
        self.waiting.append((done, work, args))
        return done

    def run(self, number=0):
        done, work, args = self.waiting.pop(number)
        try:
            result = work(*args)
        except OSError as fault:
            result = Failure(fault)
        # What was cancelled takes no result any more, as with a call on a thread of the reactor.
        done.addErrback(lambda failure: None)
        done.callback(result)


def open_files(directory):
    return [name for fd in os.listdir("/proc/self/fd") if (name := opened(fd)).startswith(str(directory))]


def opened(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        # That of the listing itself.
        return ""


# Steps: begin, the first line, two pieces, the end.
@pytest.mark.parametrize("steps", range(5))
def test_an_attempt_that_is_ended_while_a_call_blocks_leaves_nothing_half_done(post, steps):
    item = post.store.add(message())
    post.store.block = 14
    lease = post.store.lease(item)
    threads = Threads()
    local = LocalDelivery(post.store, threads, plus, HOST, True, post.disk)
    ended = []
    delivering = Deferred.fromCoroutine(local.deliver(post.route, lease, item.recipients))
    delivering.addErrback(lambda failure: ended.append(failure.type))
    for _ in range(steps):
        threads.run()
    delivering.cancel()
    # The call goes on, and its thread may be slower than the one that clears away.
    assert len(threads.waiting) == 2
    threads.run(1)
    threads.run()
    assert ended == [CancelledError]
    assert open_files(post.root) == []
    assert post.files("tmp") == []
    assert post.files() == []


def test_a_file_is_not_closed_while_a_call_on_another_thread_writes_to_it(post):
    class Slow(Disk):
        def fsync(self, fd):
            entered.set()
            # The number must not be another file's by now.
            assert go_on.wait(10)
            super().fsync(fd)

    entered, go_on = threading.Event(), threading.Event()
    base = post.root / "Maildir"
    copy = Copy(str(base), str(post.root), "name", 1, True, Slow())
    base.mkdir()
    for part in ("tmp", "new", "cur"):
        (base / part).mkdir()
    assert copy.begin()
    finishing = threading.Thread(target=copy.finish)
    finishing.start()
    assert entered.wait(10)
    abandoning = threading.Thread(target=copy.abandon)
    abandoning.start()
    assert open_files(base / "tmp") == [str(base / "tmp" / "name.1")]
    go_on.set()
    finishing.join()
    abandoning.join()
    assert os.listdir(base / "new") == ["name"]
    assert os.listdir(base / "tmp") == []
