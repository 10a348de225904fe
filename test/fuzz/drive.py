"""How a fuzzer is driven: by atheris where that can be imported and no seconds are given, else by a seeded run."""

from __future__ import annotations

import gc
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType


def drive(
    run: Callable[[float, int], int],
    check: Callable[[bytes], None],
    seeds: Iterable[bytes] = (),
    words: Iterable[bytes] = (),
) -> None:
    """Run a fuzzer as its command line says.

    `run` takes seconds and a seed; `check` takes the octets atheris thought of,
    which begins with `seeds` and puts `words` in.
    """
    if len(sys.argv) < 2 or not sys.argv[1].replace(".", "").isdigit():
        try:
            import atheris
        except ImportError:
            pass
        else:
            with tempfile.TemporaryDirectory(prefix="mailgate-fuzz-") as folder:
                _fuzz(atheris, Path(folder), check, seeds, words)
            return
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"seed {seed}")
    print(f"{run(seconds, seed)} cases, nothing found")


def _fuzz(
    atheris, folder: Path, check: Callable[[bytes], None], seeds: Iterable[bytes], words: Iterable[bytes]
) -> None:
    arguments = list(sys.argv)
    corpus = folder / "seeds"
    corpus.mkdir()
    for number, octets in enumerate(seeds):
        (corpus / str(number)).write_bytes(octets)
    # The first folder is where what was found is kept: ours comes last, unless it is the only one.
    arguments.append(str(corpus))
    quoted = ["".join(f"\\x{octet:02x}" for octet in word) for word in words if 0 < len(word) <= 64]
    if quoted:
        dictionary = folder / "words"
        dictionary.write_text("".join(f'"{word}"\n' for word in quoted), "ascii")
        arguments.append(f"-dict={dictionary}")
    # Everything would be instrumented, Twisted too, by `instrument_all`: a minute, and ten times slower afterwards.
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and str(thing.__module__).startswith("mailgate."):
            atheris.instrument_func(thing)
    atheris.Setup(arguments, check)
    atheris.Fuzz()
