"""Daemons that need no time to start: a process that has loaded everything and becomes one again and again.

nursery = Nursery(library)          # of support.disk, or None
process = nursery.start(["twistd", ...], directory, log, environment, "D4:3")     # poll, wait, kill as of a Popen
nursery.close()

Each daemon is a fork of it that goes on exactly where `twistd` begins; only the crash point, which a process
otherwise learns from its environment at import, is put in afterwards. The reactor is made after the fork.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

_LOADED = ("mailgate.service.build", "mailgate.service.gateway", "mailgate.service.log")
"""Everything a daemon imports, except what makes the reactor."""

REPOSITORY = Path(__file__).resolve().parents[2]


class Forked:
    """A daemon of a nursery."""

    def __init__(self, pid: int, ends: dict[int, int], told: threading.Condition) -> None:
        self.pid = pid
        self._ends = ends
        self._told = told

    @property
    def returncode(self) -> int | None:
        """Its exit status, None while it runs."""
        return self.poll()

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        with self._told:
            return self._ends.get(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit status."""
        with self._told:
            if not self._told.wait_for(lambda: self.pid in self._ends, timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            return self._ends[self.pid]

    def send_signal(self, number: int) -> None:
        """Send a signal, if it lives."""
        with self._told:
            if self.pid not in self._ends:
                try:
                    os.kill(self.pid, number)
                except ProcessLookupError:
                    pass

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """One process that has loaded mailgate."""

    def __init__(self, library: Path | None = None) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAILGATE", "PYTEST"))}
        if library is not None:
            environment["LD_PRELOAD"] = str(library)
        self._one_at_a_time = threading.Lock()
        self._ends: dict[int, int] = {}
        self._told = threading.Condition()
        self._started: list[int] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'test'}"},
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self, arguments: Sequence[str], directory: Path, log: Path, environment: Mapping[str, str], crash: str | None
    ) -> Forked:
        """A daemon with these arguments."""
        order = {
            "arguments": list(arguments),
            "directory": str(directory),
            "log": str(log),
            "environment": dict(environment),
            "crash": crash,
        }
        assert self._process.stdin is not None
        with self._one_at_a_time:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            with self._told:
                assert self._told.wait_for(lambda: bool(self._started), 300), "the nursery is not answering"
                return Forked(self._started.pop(), self._ends, self._told)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(30)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, pid, status = line.split()
            with self._told:
                if word == b"started":
                    self._started.append(int(pid))
                else:
                    self._ends[int(pid)] = int(status)
                self._told.notify_all()


# --- in the process -----------------------------------------------------------------------------------
def _say(word: str, pid: int, status: int) -> None:
    os.write(1, f"{word} {pid} {status}\n".encode())


def _load() -> None:
    for name in ("twisted.scripts.twistd", "twisted.plugins", *_LOADED):
        import_module(name)
    assert "twisted.internet.reactor" not in sys.modules


def _arm(crash: str) -> None:
    point = import_module("mailgate.crash.point")
    point._countdown = point.Countdown(*point.setting(crash))
    for name, module in list(sys.modules.items()):
        if name.startswith("mailgate.") and hasattr(module, "ARMED"):
            module.ARMED = True  # type: ignore[attr-defined]


def _become(order: dict) -> None:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    if "DISK_ROOT" in os.environ:
        ctypes.CDLL(None).disk_begin()
    sys.argv = order["arguments"]
    random.seed()
    if order["crash"]:
        _arm(order["crash"])
    import_module("twisted.scripts.twistd").run()


def main() -> None:
    """Read orders, fork, tell of ends."""
    _load()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    buffer = b""
    while True:
        ready, _, _ = select.select([0, reading], [], [])
        if reading in ready:
            os.read(reading, 4096)
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == 0:
                    break
                _say("ended", pid, os.waitstatus_to_exitcode(status))
        if 0 in ready:
            octets = os.read(0, 65536)
            if not octets:
                return
            buffer += octets
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                pid = os.fork()
                if pid == 0:
                    status = 1
                    signal.set_wakeup_fd(-1)
                    os.close(reading)
                    os.close(writing)
                    try:
                        _become(json.loads(line))
                        status = 0
                    except SystemExit as end:
                        status = end.code if isinstance(end.code, int) else 1
                    finally:
                        sys.stdout.flush()
                        sys.stderr.flush()
                        os._exit(status)
                _say("started", pid, 0)


if __name__ == "__main__":
    main()
