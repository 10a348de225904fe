"""Runs every fuzzer beside it for its share of the time: `python test/fuzz/run.py --seconds 60 --seed 1`.

A fuzzer is a file `fuzz_*.py`: its first line states the invariant it holds
the code to. It takes seconds and a seed, or atheris' own arguments where that
is installed, and ends with a status other than 0 when the invariant broke.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    told = parser.parse_args()
    fuzzers = sorted(HERE.glob("fuzz_*.py"))
    seconds = max(1, told.seconds // len(fuzzers))
    arguments = [str(seconds), str(told.seed)]
    if importlib.util.find_spec("atheris") is not None:
        arguments = [f"-max_total_time={seconds}", f"-seed={told.seed}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])}
    broken = 0
    for fuzzer in fuzzers:
        invariant = fuzzer.read_text("utf-8").splitlines()[0].strip('"')
        print(f"{fuzzer.name}: {invariant}", flush=True)
        broken |= subprocess.run([sys.executable, str(fuzzer), *arguments], env=environment, check=False).returncode
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
