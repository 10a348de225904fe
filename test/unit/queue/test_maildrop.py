import os
import socket
import stat
import time
from pathlib import Path

import pytest

from mailgate.queue.drop import HEAD_OCTETS, DropEnvelope, DropHead, DropRecipient, NotADrop
from mailgate.queue.handin import HandIn
from mailgate.queue.maildrop import AHEAD_MS, UNFINISHED_MS, InUse, Maildrop

NOW_MS = time.time_ns() // 1_000_000
DAY_MS = 24 * 3600 * 1000
NAME = f"{NOW_MS:012x}-{'0' * 24}"


@pytest.fixture
def maildrop(tmp_path):
    drop = Maildrop(str(tmp_path / "maildrop"))
    drop.open()
    yield drop
    drop.close()


def hand_in(maildrop, *recipients, content=b"Subject: x\r\n\r\nbody\r\n"):
    drop = HandIn(maildrop.path)
    drop.begin(DropEnvelope("a@b.test", tuple(DropRecipient(each) for each in recipients or ("x@y.test",))))
    drop.write(content)
    return drop.finish()


def path(maildrop, name):
    return os.path.join(maildrop.path, name)


def whole(content=b"x", recipients=("x@y.test",)):
    envelope = DropEnvelope("a@b.test", tuple(map(DropRecipient, recipients))).octets
    return DropHead(len(content), len(envelope), False).octets + envelope + content


def test_the_directory_is_made_so_that_everybody_may_add_and_nobody_may_take_away(maildrop):
    mode = stat.S_IMODE(os.stat(maildrop.path).st_mode)
    assert mode == 0o3777
    assert stat.S_IMODE(os.stat(path(maildrop, "wake")).st_mode) == 0o622
    assert stat.S_IMODE(os.stat(path(maildrop, ".lock")).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(path(maildrop, ".aside")).st_mode) == 0o700


def test_modes_an_operator_has_chosen_stay(tmp_path):
    (tmp_path / "maildrop").mkdir()
    (tmp_path / "maildrop").chmod(0o2770)
    drop = Maildrop(str(tmp_path / "maildrop"))
    drop.open()
    drop.close()
    assert stat.S_IMODE((tmp_path / "maildrop").stat().st_mode) == 0o2770


def test_a_start_that_was_killed_before_it_opened_the_directory_is_made_up_for(tmp_path):
    (tmp_path / "maildrop").mkdir()
    (tmp_path / "maildrop").chmod(0o700)
    drop = Maildrop(str(tmp_path / "maildrop"))
    drop.open()
    drop.close()
    assert stat.S_IMODE((tmp_path / "maildrop").stat().st_mode) == 0o3777


def test_where_the_bit_is_forbidden_the_rest_is_done_and_told(tmp_path, monkeypatch):
    fchmod = os.fchmod

    def forbidden(fd, mode):
        if mode & stat.S_ISGID:
            raise PermissionError(1, "Operation not permitted")
        fchmod(fd, mode)

    monkeypatch.setattr(os, "fchmod", forbidden)
    drop = Maildrop(str(tmp_path / "maildrop"))
    assert any("chmod g+s" in each for each in drop.open())
    drop.close()
    assert stat.S_IMODE(os.stat(drop.path).st_mode) == 0o1777


def test_what_keeps_users_from_it_is_told(tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o700)
    drop = Maildrop(str(tmp_path / "closed" / "maildrop"))
    assert any(f"chmod o+x {os.path.realpath(tmp_path / 'closed')}" in each for each in drop.open())
    drop.close()
    os.chmod(drop.path, 0o777)
    obstacles = drop.open()
    drop.close()
    assert any("chmod g+s" in each for each in obstacles)
    assert any("chmod +t" in each for each in obstacles)


def test_a_second_daemon_does_not_get_it(maildrop):
    with pytest.raises(InUse, match="another daemon"):
        Maildrop(maildrop.path).open()
    maildrop.close()
    second = Maildrop(maildrop.path)
    second.open()
    second.close()


@pytest.mark.parametrize("name", ["wake", ".lock", ".aside"])
@pytest.mark.parametrize("kind", ["file", "link", "directory", "pipe"])
def test_what_somebody_has_put_into_the_place_of_the_daemons_own_is_moved_away(tmp_path, name, kind):
    directory = tmp_path / "maildrop"
    directory.mkdir()
    (tmp_path / "victim").write_bytes(b"precious")
    victim = tmp_path / "victim"
    if kind == "file":
        os.link(victim, directory / name)
    elif kind == "link":
        (directory / name).symlink_to(victim)
    elif kind == "directory":
        (directory / name).mkdir()
    else:
        os.mkfifo(directory / name, 0o622)
    drop = Maildrop(str(directory))
    drop.open()
    drop.close()
    assert victim.read_bytes() == b"precious"
    assert stat.S_ISFIFO((directory / "wake").lstat().st_mode)
    assert stat.S_ISREG((directory / ".lock").lstat().st_mode)
    assert (directory / ".lock").stat().st_nlink == 1
    assert stat.S_ISDIR((directory / ".aside").lstat().st_mode)


def test_a_look_tells_drops_from_the_rest_and_the_oldest_first(maildrop):
    names = [f"{NOW_MS + number:012x}-{number:024x}" for number in range(5)]
    for name in [*reversed(names), "foreign", ".hidden", "new-unfinished", names[0].upper()]:
        open(path(maildrop, name), "wb").close()
    me = os.getuid()
    look = maildrop.look(3, {names[1]}, {}, 10)
    assert look.drops == [(names[0], me), (names[2], me), (names[3], me)]
    assert set(look.foreign) == {"foreign", ".hidden", names[0].upper()}


def test_of_one_user_no_more_are_taken_than_a_few(maildrop):
    names = [f"{NOW_MS + number:012x}-{number:024x}" for number in range(500)]
    for name in reversed(names):
        open(path(maildrop, name), "wb").close()
    me = os.getuid()
    assert maildrop.look(20, (), {me: 3}, 10).drops == [(name, me) for name in names[:7]]
    assert maildrop.look(20, (), {me: 10}, 10).drops == []
    assert maildrop.look(5, (), {}, 10).drops == [(name, me) for name in names[:5]]


def test_a_drop_is_read_as_it_was_handed_in(maildrop):
    content = b"Subject: x\r\n\r\n" + b"y" * 100_000
    name = hand_in(maildrop, "x@y.test", "z@y.test", content=content)
    drop = maildrop.take(name, NOW_MS)
    assert [each.address for each in drop.envelope.recipients] == ["x@y.test", "z@y.test"]
    assert drop.size_octets == len(content)
    assert drop.login == os.popen("id -un").read().strip()
    assert drop.read(0, 60_000) + drop.read(60_000, 60_000) == content
    drop.close()
    drop.close()
    maildrop.remove(name)
    maildrop.remove(name)
    with pytest.raises(FileNotFoundError):
        maildrop.take(name, NOW_MS)


def test_a_file_that_shrinks_while_it_is_read_is_no_drop_any_more(maildrop):
    name = hand_in(maildrop, content=b"x" * 1000)
    drop = maildrop.take(name, NOW_MS)
    os.truncate(path(maildrop, name), 300)
    with pytest.raises(NotADrop, match="changed"):
        drop.read(0, 1000)
    drop.close()


def test_what_is_no_regular_file_is_never_opened(maildrop, tmp_path, monkeypatch):
    monkeypatch.chdir(maildrop.path)
    (tmp_path / "secret").write_bytes(whole())
    kinds = {
        "a symbolic link": lambda at: os.symlink(tmp_path / "secret", at),
        "a directory": os.mkdir,
        "a pipe": os.mkfifo,
        "a socket": lambda at: socket.socket(socket.AF_UNIX).bind(os.path.relpath(at)),
    }
    for number, (kind, make) in enumerate(kinds.items()):
        name = f"{NOW_MS:012x}-{number:024x}"
        make(path(maildrop, name))
        with pytest.raises(NotADrop, match=kind):
            maildrop.take(name, NOW_MS)


@pytest.mark.parametrize("mode", [0o660, 0o646, 0o777])
def test_a_file_that_others_may_write_is_nobodys_word(maildrop, mode):
    name = hand_in(maildrop)
    os.chmod(path(maildrop, name), mode)
    with pytest.raises(NotADrop, match="written by others"):
        maildrop.take(name, NOW_MS)


def test_a_file_with_a_second_name_may_be_somebody_elses(maildrop, tmp_path):
    (tmp_path / "other").write_bytes(whole())
    os.link(tmp_path / "other", path(maildrop, NAME))
    with pytest.raises(NotADrop, match="another name"):
        maildrop.take(NAME, NOW_MS)


@pytest.mark.parametrize(
    "octets", [b"", b"hello", whole()[:-1], whole() + b"x", whole()[:HEAD_OCTETS], whole(recipients=()), b"\0" * 200]
)
def test_what_is_torn_or_something_else_is_no_drop(maildrop, octets):
    with open(path(maildrop, NAME), "wb") as file:
        file.write(octets)
    os.chmod(path(maildrop, NAME), 0o640)
    with pytest.raises(NotADrop):
        maildrop.take(NAME, NOW_MS)


def test_a_name_of_the_future_would_never_be_forgotten(maildrop):
    name = f"{NOW_MS + AHEAD_MS + 1000:012x}-{'0' * 24}"
    with open(path(maildrop, name), "wb") as file:
        file.write(whole())
    with pytest.raises(NotADrop, match="future"):
        maildrop.take(name, NOW_MS)


def test_what_is_set_aside_keeps_its_name_and_replaces_nothing(maildrop):
    for text in (b"1", b"2"):
        with open(path(maildrop, "x"), "wb") as file:
            file.write(text)
        assert maildrop.set_aside("x") is not None
    names = sorted(os.listdir(path(maildrop, ".aside")))
    assert names[0] == "x"
    assert names[1].startswith("x.")
    assert {(Path(maildrop.path) / ".aside" / name).read_bytes() for name in names} == {b"1", b"2"}
    assert maildrop.set_aside("gone") is None


def test_a_name_as_long_as_a_name_may_be_is_set_aside_as_often_as_somebody_puts_it_there(maildrop):
    # No octet is left for what tells the second from the first.
    name = "n" * 255
    for text in (b"1", b"2", b"3"):
        with open(path(maildrop, name), "wb") as file:
            file.write(text)
        assert maildrop.look(10, (), {}, 10).foreign == [name]
        assert maildrop.set_aside(name) is not None
    aside = Path(maildrop.path) / ".aside"
    assert {each.read_bytes() for each in aside.iterdir()} == {b"1", b"2", b"3"}
    assert maildrop.look(10, (), {}, 10).foreign == []


def test_what_cannot_be_moved_is_not_looked_at_again(maildrop, monkeypatch):
    os.mkdir(path(maildrop, "dir"))

    def denied(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", denied)
    assert maildrop.set_aside("dir") is None
    assert maildrop.look(10, (), {}, 10).foreign == []


def test_what_nobody_finished_is_removed_after_a_day(maildrop):
    for name in ("new-old", "new-young", "other"):
        open(path(maildrop, name), "wb").close()
    long_ago = time.time() - UNFINISHED_MS / 1000 - 60
    os.utime(path(maildrop, "new-old"), (long_ago, long_ago))
    os.utime(path(maildrop, "other"), (long_ago, long_ago))
    assert maildrop.sweep(time.time_ns() // 1_000_000) == 1
    assert sorted(set(os.listdir(maildrop.path)) - {"wake", ".lock", ".aside"}) == ["new-young", "other"]


def test_the_old_drops_that_are_still_there(maildrop):
    old, young = f"{NOW_MS - 2 * DAY_MS:012x}-{'0' * 24}", NAME
    for name in (old, young, "foreign"):
        open(path(maildrop, name), "wb").close()
    assert maildrop.old(NOW_MS - DAY_MS) == [old]
