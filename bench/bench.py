"""mailgate beside tuned Postfix and stock Twisted, in one run on one machine: `make bench`.

The servers take turns within each round, so that what the machine does besides
hits all alike; a ratio is the median of the rounds' ratios to Postfix. Needs
root, Postfix (with smtp-source and smtp-sink) and a C compiler. Work files go
to BENCH_WORK (/var/tmp/mailgate-bench), which has to be on the disk that is to
be measured; each measurement is also a line of JSON in results.jsonl there.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "test"))

from pace import Pace
from servers import DOMAIN, Mailgate, Server, Sink, StockTwisted, TunedPostfix, UnrecordedMailgate
from support.large_configuration import large

HERE = Path(__file__).resolve().parent
KIB, MIB = 1024, 1024 * 1024
SESSIONS = 20

SERVERS: dict[str, type[Server]] = {kind.name: kind for kind in (TunedPostfix, Mailgate, StockTwisted)}


class Cell(NamedTuple):
    """One way to send mail in."""

    name: str
    octets: int
    kept: bool


ACCEPT = (
    Cell("4 KiB, kept sessions", 4 * KIB, True),
    Cell("4 KiB, a connection each", 4 * KIB, False),
    Cell("100 KiB, kept sessions", 100 * KIB, True),
    Cell("100 KiB, a connection each", 100 * KIB, False),
)

Result = dict[str, float | str | None]


class Bench:
    """The measurements of one run."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arguments = arguments
        self.work = work
        names = arguments.server or list(SERVERS)
        self.servers = [SERVERS[name](work, 25100 + number) for number, name in enumerate(names)]
        self.pace = Pace(arguments.settle)
        self._lines = open(work / "results.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - for the whole run
        self.rows: list[tuple[str, str, dict[str, list[Result]], str]] = []

    # --- generators --------------------------------------------------------------
    def _costs(self, server: Server, run: Callable[[], Result]) -> Result:
        """Run a generator and add what the server used meanwhile."""
        before = server.account.cpu_seconds()
        result = run()
        time.sleep(0.05)
        done = result.get("done")
        if isinstance(done, int | float) and done:
            result["cpu_per_1000"] = (server.account.cpu_seconds() - before) * 1000 / done
        return result

    def source(self, server: Server, cell: Cell, messages: int) -> Result:
        """smtp-source, from its start to its end."""
        command = ["/usr/sbin/smtp-source", "-s", str(SESSIONS), "-m", str(messages), "-l", str(cell.octets)]
        command += ["-d"] if cell.kept else []
        command += ["-f", "bench@load.bench.test", "-t", f"u0@{DOMAIN}", f"127.0.0.1:{server.port}"]

        def run() -> Result:
            start = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            took = time.monotonic() - start
            if done.returncode:
                return {"rate": None, "error": done.stderr.strip()[-200:]}
            return {"rate": messages / took, "done": messages}

        return self._costs(server, run)

    def load(self, server: Server, cell: Cell, seconds: float) -> Result:
        """Our own generator, for so many seconds."""
        command = [self.work / "load", "-p", str(server.port), "-s", str(SESSIONS), "-t", str(seconds)]
        command += ["-l", str(cell.octets), *(["-k"] if cell.kept else [])]

        def run() -> Result:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            result: Result = json.loads(done.stdout)
            return result if result["done"] else {**result, "rate": None, "p99": None}

        return self._costs(server, run)

    # --- rounds ---------------------------------------------------------------------
    def rounds(
        self,
        what: str,
        key: str,
        measure: Callable[[Server], Result],
        *,
        servers: Sequence[Server] | None = None,
        start: Callable[[Server], None] | None = None,
        warm: Callable[[Server], object] | None = None,
    ) -> None:
        """All servers up at once, taking turns; then the row of the table."""
        results: dict[str, list[Result]] = {}
        up: list[Server] = []
        try:
            for server in servers or self.servers:
                try:
                    (start or (lambda s: s.start(nice=self.arguments.autogroup)))(server)
                except RuntimeError as error:
                    print(f"  {error}", file=sys.stderr)
                    continue
                up.append(server)
                results[server.name] = []
                if warm:
                    warm(server)
            for number in range(self.arguments.rounds):
                for server in up if number % 2 == 0 else up[::-1]:
                    pace = self.pace.settle()
                    result = {**measure(server), "pace_ms": pace}
                    results[server.name].append(result)
                    line = {"at": time.time(), "what": what, "server": server.name, "round": number, **result}
                    self._lines.write(json.dumps(line) + "\n")
                    self._lines.flush()
        finally:
            for server in up:
                server.stop()
        self.rows.append((what, key, results, servers[0].name if servers else self.servers[0].name))
        self._print(*self.rows[-1])

    def _print(self, what: str, key: str, results: dict[str, list[Result]], base: str) -> None:
        paces = [pace for of_one in results.values() for pace in numbers(of_one, "pace_ms")]
        pace = f"; a fixed loop took {min(paces):.1f} to {max(paces):.1f} ms" if paces else ""
        print(f"\n{what}   [{key}: median (least..most) of {self.arguments.rounds}{pace}]")
        for name, list_of_results in results.items():
            values = numbers(list_of_results, key)
            errors = {str(result["error"]) for result in list_of_results if result.get("error")}
            if not values:
                print(f"  {name:10} failed: {'; '.join(sorted(errors))}")
                continue
            text = f"  {name:10} {shown(statistics.median(values)):>8} ({shown(min(values))}..{shown(max(values))})"
            found = ratios(results, name, base, key)
            if found:
                text += f"  x{statistics.median(found):.2f}"
            cpu = numbers(list_of_results, "cpu_per_1000")
            if cpu:
                text += f"  {statistics.median(cpu):.3f} CPU s per 1,000"
            print(text + (f"  errors: {'; '.join(sorted(errors))}" if errors else ""))
        sys.stdout.flush()

    # --- what is measured -------------------------------------------------------------
    def accept(self) -> None:
        """Messages accepted a second."""
        wanted = self.arguments.cell or [""]
        for cell in [cell for cell in ACCEPT if any(text in cell.name for text in wanted)]:
            self.rates(f"accepted a second, {cell.name}", cell)

    def record(self) -> None:
        """Messages accepted a second, decisions recorded and not; ratios are to the daemon that records nothing."""
        servers = [UnrecordedMailgate(self.work, 25200), Mailgate(self.work, 25201)]
        wanted = self.arguments.cell or ["4 KiB"]
        for cell in [cell for cell in ACCEPT if any(text in cell.name for text in wanted)]:
            self.rates(f"accepted a second, decisions recorded and not, {cell.name}", cell, servers)

    def check(self) -> None:
        """Seconds that `mailgate config check` takes for a configuration of 5,000 lines, from its start to its end."""
        path = self.work / "large.toml"
        path.write_text("".join(large()), encoding="utf-8")
        command = [sys.executable, "-m", "mailgate.admin.main", "config", "check", str(path)]
        took = []
        for number in range(self.arguments.rounds + 1):
            start = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            # The first one pays for files that are read for the first time.
            took += [time.monotonic() - start] if number else []
        told = f"{statistics.median(took):.2f} ({min(took):.2f}..{max(took):.2f})"
        print(f"\nconfig check of {path.read_text('utf-8').count(chr(10)):,} lines, seconds: {told}")

    def rates(self, what: str, cell: Cell, servers: Sequence[Server] | None = None) -> None:
        """Messages accepted a second, sent in one way."""
        counts: dict[str, int] = {}

        def warm(server: Server) -> None:
            """The first messages pay for processes that start; then find a count that takes long enough."""
            count = 5 * SESSIONS
            for _ in range(4):
                rate = self.source(server, cell, count)["rate"]
                if not isinstance(rate, float):
                    break
                limit = min(30_000, 600 * MIB // cell.octets)
                count = max(5 * SESSIONS, min(limit, int(rate * self.arguments.seconds)))
                if count / rate > self.arguments.seconds / 2 and count > 10 * SESSIONS:
                    break
            counts[server.name] = count

        self.rounds(
            what, "rate", lambda server: self.source(server, cell, counts[server.name]), servers=servers, warm=warm
        )

    def latency(self) -> None:
        """Milliseconds from the final dot to its 250."""
        cell = ACCEPT[0]
        self.rounds(
            "p99 from final dot to 250 in ms, 4 KiB, kept sessions",
            "p99",
            lambda server: self.load(server, cell, self.arguments.seconds),
            warm=lambda server: self.load(server, cell, 0.7),
        )

    def memory(self) -> None:
        """How much memory a message of 10 MiB takes at its peak."""
        cell = Cell("10 MiB", 10 * MIB, False)

        def measure(server: Server) -> Result:
            server.account.forget_peak()
            before = server.account.resident_octets()
            command = [self.work / "load", "-p", str(server.port), "-m", "1", "-l", str(cell.octets)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            result: Result = json.loads(done.stdout)
            result["growth"] = (server.account.peak_octets() - before) / MIB if result["done"] else None
            return result

        self.rounds(
            "peak memory growth in MiB, one message of 10 MiB",
            "growth",
            measure,
            servers=[server for server in self.servers if server.name != "postfix"],
            warm=lambda server: self.load(server, ACCEPT[0], 0.5),
        )

    def relay(self) -> None:
        """Accept, queue and relay: until the sink has counted every message."""
        servers = [server for server in self.servers if server.relays]
        sinks = {server.name: Sink(self.work, 25300 + number) for number, server in enumerate(servers)}
        count = self.arguments.relay_messages

        def measure(server: Server) -> Result:
            sink = sinks[server.name]
            before = sink.count()
            command = ["/usr/sbin/smtp-source", "-s", str(SESSIONS), "-m", str(count), "-l", str(4 * KIB), "-d"]
            command += ["-f", "bench@load.bench.test", "-t", f"u0@{DOMAIN}", f"127.0.0.1:{server.port}"]

            def run() -> Result:
                start = time.monotonic()
                generator = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                done = 0
                while done < count and time.monotonic() - start < 60:
                    time.sleep(0.01)
                    done = sink.count() - before
                took = time.monotonic() - start
                generator.kill()
                generator.wait(10)
                if done < count:
                    return {"rate": None, "done": done, "error": f"only {done} of {count} arrived"}
                return {"rate": done / took, "done": done}

            return self._costs(server, run)

        try:
            self.rounds(
                "accepted, queued and relayed a second, 4 KiB, kept sessions",
                "rate",
                measure,
                servers=servers,
                start=lambda server: server.start(sinks[server.name].port, nice=self.arguments.autogroup),
                warm=measure,
            )
        finally:
            for sink in sinks.values():
                sink.stop()

    # --- the table ---------------------------------------------------------------------
    def table(self) -> str:
        """Markdown: medians, ratio to the first server in brackets."""
        names = list(dict.fromkeys(name for row in self.rows for name in row[2]))
        lines = ["| what | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for what, key, results, base in self.rows:
            line = [what, *(self._entry(results, name, base, key) for name in names)]
            lines.append("| " + " | ".join(line) + " |")
            if key == "rate":
                cpu = [numbers(results.get(name, []), "cpu_per_1000") for name in names]
                entries = [f"{statistics.median(values):.3f}" if values else "-" for values in cpu]
                lines.append("| ... CPU seconds per 1,000 | " + " | ".join(entries) + " |")
        return "\n".join(lines)

    def _entry(self, results: dict[str, list[Result]], name: str, base: str, key: str) -> str:
        values = numbers(results.get(name, []), key)
        if not values:
            return "-"
        text = shown(statistics.median(values))
        found = ratios(results, name, base, key)
        return f"{text} ({statistics.median(found):.2f} x)" if found and name != base else text


def numbers(results: Sequence[Result], key: str) -> list[float]:
    """The values that are there."""
    return [value for result in results if isinstance(value := result.get(key), int | float)]


def ratios(results: dict[str, list[Result]], name: str, base: str, key: str) -> list[float]:
    """Round by round, one server's value over the base's."""
    out = []
    for mine, theirs in zip(results.get(name, []), results.get(base, []), strict=False):
        a, b = mine.get(key), theirs.get(key)
        if isinstance(a, int | float) and isinstance(b, int | float) and b:
            out.append(a / b)
    return out


def shown(value: float) -> str:
    """Three digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def loopback_only() -> bool:
    """Move into a network namespace that has nothing but loopback."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = struct.pack("16sh", b"lo", 0x1 | 0x40) + bytes(14)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
    for name, value in (
        ("ip_local_port_range", "10240 65000"),
        ("tcp_tw_reuse", "1"),
        ("../core/somaxconn", "4096"),
    ):
        try:
            Path("/proc/sys/net/ipv4", name).write_text(value)
        except OSError:
            continue
    return True


def main() -> int:
    """Run the measurements asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measurements = ("accept", "latency", "memory", "relay", "record", "check")
    parser.add_argument("what", nargs="*", default=[], help=f"of {', '.join(measurements)}; all when none is named")
    parser.add_argument("--server", action="append", choices=list(SERVERS), help="ratios are to the first one")
    parser.add_argument(
        "--cell", action="append", metavar="TEXT", help="of accept and record: those whose name holds this"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="aimed length of one measurement")
    parser.add_argument(
        "--settle",
        type=float,
        default=0,
        help="seconds each measurement may wait for the machine's best pace",
    )
    parser.add_argument("--relay-messages", type=int, default=2000)
    parser.add_argument("--autogroup", type=int, default=0, help="niceness of servers and generators, such as -10")
    arguments = parser.parse_args()
    if wrong := set(arguments.what) - set(measurements):
        parser.error(f"no such measurement: {', '.join(sorted(wrong))}")
    if os.geteuid() != 0:
        print("bench: root is needed to start Postfix and to have a network of its own", file=sys.stderr)
        return 77
    work = Path(os.environ.get("BENCH_WORK", "/var/tmp/mailgate-bench"))
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o755)
    missing = [name for name in ("postfix", "smtp-source", "smtp-sink") if not Path("/usr/sbin", name).exists()]
    compiler = shutil.which("cc") or shutil.which("gcc")
    if missing or compiler is None:
        print(f"bench: not installed: {' '.join([*missing, *([] if compiler else ['gcc'])])}", file=sys.stderr)
        return 69
    subprocess.run([compiler, "-O2", "-pthread", "-o", work / "load", HERE / "load.c"], check=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if not loopback_only():
        print("bench: no network namespace; staying on 127.0.0.1", file=sys.stderr)
    if arguments.autogroup:
        os.setsid()
        Path("/proc/self/autogroup").write_text(str(arguments.autogroup))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    bench = Bench(arguments, work)
    print(f"{os.cpu_count()} processors, {SESSIONS} sessions, work files in {work}")
    for server in bench.servers:
        print(f"  {server.name:10} {server.version()}")
    try:
        for name in arguments.what or measurements:
            getattr(bench, name)()
    finally:
        shutil.rmtree(work / "trash", ignore_errors=True)
    print(f"\n{bench.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
