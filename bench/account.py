"""What a server costs: CPU and memory of its whole process tree.

A cgroup (v1 cpuacct and memory, or v2) where one can be made; otherwise
`/proc` is walked, which misses children that came and went.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_V1_CPU, _V1_MEMORY, _V2 = Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class Account:
    """The processes of one server from start to end."""

    def __init__(self, name: str) -> None:
        label = f"mailgate-bench-{name}-{os.getpid()}"
        self.root_pid: int | None = None
        self._groups: list[Path] = []
        try:
            if (_V1_CPU / "cpuacct.usage").exists():
                self._make(_V1_CPU / label)
                if _V1_MEMORY.is_dir():
                    self._make(_V1_MEMORY / label)
                self.kind = "cgroup v1"
            elif (_V2 / "cgroup.controllers").exists():
                self._make(_V2 / label)
                self.kind = "cgroup v2"
            else:
                self.kind = "/proc"
        except OSError:
            self.close()
            self.kind = "/proc"

    def _make(self, path: Path) -> None:
        path.mkdir()
        self._groups.append(path)

    def wrap(self, command: list[str]) -> list[str]:
        """The command that puts itself into the account first."""
        if not self._groups:
            return command
        enter = "".join(f"echo $$ >{group}/cgroup.procs; " for group in self._groups)
        return ["/bin/sh", "-c", enter + 'exec "$@"', "sh", *command]

    def pids(self) -> list[int]:
        """The processes alive now."""
        if self._groups:
            return [int(pid) for pid in (self._groups[0] / "cgroup.procs").read_text().split()]
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                children.setdefault(parent, []).append(int(entry.name))
        found, to_do = [], [self.root_pid] if self.root_pid else []
        while to_do:
            pid = to_do.pop()
            if Path(f"/proc/{pid}").exists():
                found.append(pid)
            to_do += children.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        if self.kind == "cgroup v1":
            return int((self._groups[0] / "cpuacct.usage").read_text()) / 1e9
        if self.kind == "cgroup v2":
            lines = (self._groups[0] / "cpu.stat").read_text().splitlines()
            return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6
        total = 0
        for pid in self.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += sum(int(field) for field in fields[11:15])
        return total / _TICKS

    def resident_octets(self) -> int:
        """Resident memory now, shared pages counted in each process."""
        total = 0
        for pid in self.pids():
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
            except OSError:
                continue
        return total

    def peak_octets(self) -> int:
        """The sum of the most resident memory each process has had."""
        total = 0
        for pid in self.pids():
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        return total

    def forget_peak(self) -> None:
        """Let the peak begin anew from what is resident now."""
        for pid in self.pids():
            try:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            except OSError:
                continue

    def put_before_others(self, nice: int) -> None:
        """Set the autogroup niceness of every session in the account."""
        for pid in self.pids():
            try:
                Path(f"/proc/{pid}/autogroup").write_text(str(nice))
            except OSError:
                continue

    def end(self) -> None:
        """End what is left, one process at a time."""
        for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 3.0)):
            for pid in self.pids():
                try:
                    os.kill(pid, number)
                except OSError:
                    continue
            limit = time.monotonic() + patience
            while self.pids() and time.monotonic() < limit:
                time.sleep(0.05)
            if not self.pids():
                return

    def close(self) -> None:
        """Remove the cgroups."""
        for group in self._groups:
            for _ in range(20):
                try:
                    group.rmdir()
                    break
                except OSError:
                    time.sleep(0.05)
        self._groups = []
