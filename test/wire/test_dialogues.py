"""Every dialogue in `dialogues/`, sent whole and octet by octet."""

from pathlib import Path

import pytest
from support.dialogue import Player, octets_of, read
from support.listener import ListenerInMemory
from support.zone import Zone

from mailgate.queue.store import StoreFailed, StoreFull

DIALOGUES = sorted((Path(__file__).parent / "dialogues").glob("*.txt"))


def plays():
    for path in DIALOGUES:
        for replay in read(path).replays:
            yield pytest.param(path, replay == "bytewise", id=f"{path.stem}-{replay}")


@pytest.mark.parametrize(("path", "bytewise"), list(plays()))
def test_dialogue(path, bytewise):
    dialogue = read(path)
    zone = Zone()
    for name, reason in dialogue.unknown:
        zone.fail(name, reason=reason)
    listener = ListenerInMemory(dialogue.config, zone)
    listener.store.fail_with = {"fails": StoreFailed("disk"), "full": StoreFull("no room")}.get(dialogue.store)
    connection = listener.connect(dialogue.listener, dialogue.peer)
    assert connection is not None
    Player(connection, bytewise).play(dialogue)


def test_escapes():
    assert octets_of(r"a\r\n\x00\\é") == b"a\r\n\x00\\\xc3\xa9"
