"""Every dialogue in `dialogues/`, sent whole and octet by octet."""

from pathlib import Path

import pytest
from support.dialogue import Player, octets_of, read
from support.listener import ListenerInMemory

DIALOGUES = sorted((Path(__file__).parent / "dialogues").glob("*.txt"))


def plays():
    for path in DIALOGUES:
        for replay in read(path).replays:
            yield pytest.param(path, replay == "bytewise", id=f"{path.stem}-{replay}")


@pytest.mark.parametrize(("path", "bytewise"), list(plays()))
def test_dialogue(path, bytewise):
    dialogue = read(path)
    connection = ListenerInMemory(dialogue.config).connect(dialogue.listener, dialogue.peer)
    assert connection is not None
    Player(connection, bytewise).play(dialogue)


def test_escapes():
    assert octets_of(r"a\r\n\x00\\é") == b"a\r\n\x00\\\xc3\xa9"
