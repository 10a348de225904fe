"""Invariant: whatever is in the configuration files, they load, or each error has its file and line; nothing is raised.

Seeded: `PYTHONPATH=.:test python test/fuzz/fuzz_config.py [seconds] [seed]`
damages the shipped files for so long (60 seconds if not told) and prints the
seed and, should the invariant break, the texts as Python literals. Where
atheris is importable and no seconds are given, it drives instead and takes its
own arguments.
"""

from __future__ import annotations

import random
import re
import sys
import time
from pathlib import Path

from fuzz.drive import drive

from mailgate.config.error import ConfigErrors
from mailgate.config.load import Loaded, load_texts
from mailgate.config.show import configured, effective
from mailgate.config.sources import Source

ETC = Path(__file__).resolve().parents[2] / "etc"
ENVIRON = {"MAILGATE_HOME": "/srv/mailgate", "JANE_SECRET": "opensesame", "SMARTHOST_SECRET": "letmein"}


def _without_certificates(text: str) -> str:
    # Reading them is slow, and their files are not there.
    return re.sub(r"(?ms)^#?\[certificate\..*?(?=^#?\[|^# ---)", "", text)


_SHIPPED = [_without_certificates(path.read_text("utf-8")) for path in sorted(ETC.glob("*.toml"))]
TEXTS = tuple(text for shipped in _SHIPPED for text in (shipped, re.sub(r"(?m)^#(?=[a-z\[])", "", shipped)))
SECTIONS = tuple(section for text in TEXTS for section in re.split(r"(?m)^(?=\[)", text) if section.startswith("["))
TOKENS = tuple(sorted({token for text in TEXTS for token in re.findall(r"[\w-]+|\s+|[^\w\s]", text)}))
PARTS = (
    *TOKENS,
    *(
        '"""',
        "'''",
        "[[",
        "]]",
        "{ if = ",
        ", then = ",
        "%{env:",
        "%{cfg:",
        "%{file:",
        "}%",
        "\\",
        "\\u0000",
        "\0",
        "\ud7ff",
    ),
    *("9" * 30, "1e999", "nan", "-inf", "0x10", "1979-05-27", "07:32:00", "[" * 80, "a." * 200, "(" * 300, "!" * 400),
    *("rcpt = ", "matches('(', rcpt)", "config_get('queue')", "%{cfg:server}%", "ä", "\u202e", "\x7f", "\r", "\ufeff"),
)


def mutated(choose: random.Random) -> str:
    """A shipped text, or some of its sections, with pieces replaced, dropped, doubled, moved or put in."""
    if choose.random() < 0.3:
        text = choose.choice(TEXTS)
    else:
        text = "".join(choose.choice(SECTIONS) for _ in range(choose.randint(0, 6)))
    for _ in range(choose.choice((0, 1, 1, 1, 2, 3, 8, 30))):
        at = choose.randrange(len(text) + 1)
        match choose.randrange(6):
            case 0:
                text = text[:at] + choose.choice(PARTS) + text[at + 1 :]
            case 1:
                text = text[:at] + text[at + choose.randint(1, 40) :]
            case 2:
                text = text[:at] + text[at : at + choose.randint(1, 200)] * 2 + text[at:]
            case 3:
                text = text[:at] + choose.choice(PARTS) + text[at:]
            case 4:
                text = text[:at] + chr(choose.choice((choose.randrange(256), choose.randrange(0xD800)))) + text[at:]
            case 5:
                words = list(re.finditer(r"[\w.-]+", text))
                if words:
                    word = choose.choice(words)
                    text = text[: word.start()] + choose.choice(TOKENS) + text[word.end() :]
    return text


def check(texts: list[str]) -> bool:
    """Load the texts as the files of one configuration; whether they load. Raises when the invariant is broken."""
    sources = [Source(f"{number}.toml", text) for number, text in enumerate(texts)]
    errors = None
    try:
        loaded = load_texts(sources, ENVIRON)
    except ConfigErrors as wrong:
        errors = wrong.errors
    if errors is None:
        check_shown(loaded)
        return True
    assert errors
    lengths = {source.file: source.text.count("\n") + 1 for source in sources}
    for error in errors:
        assert 1 <= error.line <= lengths[error.file], error
        assert error.problem
        assert str(error).isprintable(), error
        assert not any(secret in str(error) for secret in ENVIRON.values()), error
    return False


def check_shown(loaded: Loaded) -> None:
    """What is shown of a configuration loads again, and has no secret in it."""
    for shown in (configured(loaded), effective(loaded)):
        text = shown.text(with_origins=True)
        assert not any(secret in text for secret in ENVIRON.values())
        load_texts([Source("again.toml", text)], ENVIRON)


def cases(choose: random.Random) -> list[str]:
    """The files of one configuration."""
    return [mutated(choose) for _ in range(choose.choice((1, 1, 1, 2, 3)))]


def run(seconds: float, seed: int) -> int:
    """Damage files for so long; the number of configurations tried."""
    choose = random.Random(seed)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        texts = cases(choose)
        try:
            check(texts)
        except Exception:
            print(f"broken by seed {seed}, configuration {count}:\n{texts!r}", file=sys.stderr)
            raise
        count += 1
    return count


def check_octets(octets: bytes) -> None:
    """As `check`, for the octets of one file."""
    check([octets.decode("utf-8", "replace")])


if __name__ == "__main__":
    drive(run, check_octets, [text.encode() for text in TEXTS], [part.encode() for part in PARTS])
