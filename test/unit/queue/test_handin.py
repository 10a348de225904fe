import os
import stat

import pytest

from mailgate.queue.drop import HEAD_OCTETS, DropEnvelope, DropHead, DropRecipient, read_envelope
from mailgate.queue.handin import WAKE, HandIn, NotNow

ENVELOPE = DropEnvelope("a@b.test", (DropRecipient("x@b.test"),))


def handed_in(maildrop, *blocks):
    drop = HandIn(str(maildrop))
    drop.begin(ENVELOPE)
    for block in blocks:
        drop.write(block)
    return drop.finish()


def test_a_drop_holds_its_envelope_and_its_octets(tmp_path):
    name = handed_in(tmp_path, b"Subject: x\r\n\r\n", "größer\r\n".encode())
    octets = (tmp_path / name).read_bytes()
    head = DropHead.of(octets[:HEAD_OCTETS], len(octets))
    assert head.eight_bit
    rest = octets[HEAD_OCTETS:]
    assert read_envelope(rest[: head.envelope_octets]) == ENVELOPE
    assert rest[head.envelope_octets :] == "Subject: x\r\n\r\ngrößer\r\n".encode()


def test_nothing_else_is_left_in_the_directory(tmp_path):
    name = handed_in(tmp_path, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_the_umask_makes_no_difference(tmp_path, umask):
    before = os.umask(umask)
    try:
        name = handed_in(tmp_path, b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_before_it_is_finished_it_has_another_name_and_says_so(tmp_path):
    drop = HandIn(str(tmp_path))
    drop.begin(ENVELOPE)
    drop.write(b"x")
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("new-")
    assert b"-" * 20 in path.read_bytes()[:HEAD_OCTETS]
    drop.discard()
    drop.discard()
    assert not list(tmp_path.iterdir())


def test_the_names_of_a_thousand_drops_differ_and_ascend_with_time(tmp_path):
    names = [handed_in(tmp_path, b"") for _ in range(50)]
    assert len(set(names)) == 50
    assert [name[:12] for name in names] == sorted(name[:12] for name in names)


def test_without_a_directory_it_cannot_be_kept_now(tmp_path):
    with pytest.raises(NotNow, match="the daemon makes it"):
        HandIn(str(tmp_path / "none")).begin(ENVELOPE)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    drop = HandIn(str(tmp_path))
    drop.begin(ENVELOPE)

    def full(fd, octets):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NotNow, match="No space left"):
        drop.write(b"x")
    assert not list(tmp_path.iterdir())


def test_a_daemon_that_listens_is_woken(tmp_path):
    os.mkfifo(tmp_path / WAKE)
    fd = os.open(tmp_path / WAKE, os.O_RDWR | os.O_NONBLOCK)
    try:
        handed_in(tmp_path, b"x")
        assert os.read(fd, 10) == b"\n"
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_only_has_the_name_of_the_pipe_is_never_written_to(tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    if kind == "link":
        (tmp_path / WAKE).symlink_to(victim)
    else:
        os.link(victim, tmp_path / WAKE)
    handed_in(tmp_path, b"x")
    assert victim.read_bytes() == b"precious"
