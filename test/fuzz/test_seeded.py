"""A short run of every fuzzer with a fixed seed; `make fuzz` runs them for as long as one likes."""

import random
from pathlib import Path

from fuzz import fuzz_attempt, fuzz_client, fuzz_config, fuzz_server, fuzz_session


def test_every_fuzzer_has_one():
    here = Path(__file__).parent
    runs = "".join(path.read_text("utf-8") for path in here.glob("test_*.py"))
    assert [path.stem for path in here.glob("fuzz_*.py") if f"{path.stem}." not in runs] == []


def test_attempts():
    for number in range(150):
        fuzz_attempt.check(random.Random(f"1/{number}"))


def test_client_core():
    choose = random.Random(1)
    for _ in range(400):
        fuzz_client.check(fuzz_client.mutated(choose), choose)


def test_configurations():
    choose = random.Random(7)
    loaded = sum(fuzz_config.check(fuzz_config.cases(choose)) for _ in range(500))
    assert 20 < loaded < 480
    for _ in range(200):
        fuzz_config.check_octets(choose.randbytes(choose.randint(0, 60)))


def test_server_core():
    choose = random.Random(1)
    for _ in range(600):
        fuzz_server.check(fuzz_server.mutated(choose), choose)


def test_whole_sessions():
    choose = random.Random(1)
    with fuzz_session.Listeners() as listeners:
        for _ in range(600):
            fuzz_session.check(choose.randbytes(choose.randint(17, 200)), listeners)
