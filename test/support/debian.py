"""Debian packages and a Debian of their own to try them in.

A `Root` is a file tree in namespaces: its processes, network, mounts and host
name are apart from those of the machine, so the ports below 1024 are free, and
whatever was started in it ends with it. Nothing reaches the network from there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from support import needs

REPOSITORY = Path(__file__).resolve().parents[2]

# The system's own tools: no other Python that happens to be found first.
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# What a fresh system has, and what the package asks for. systemd is there and only runs where it is booted.
_INCLUDED = "adduser,python3,logrotate,systemd-sysv"

# Nobody has booted it: this is what runlevel(8) answers then.
_RUNLEVEL = ("RUNLEVEL=2", "PREVLEVEL=N")

# Process 1 of a root: its own mounts, then it waits for the end of its input. bash reaps orphans.
_PROCESS_1 = r"""
set -e
cd "$1"
mount --bind . .
cd "$1"
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm run/lock .old
chmod 1777 dev/shm run/lock
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
ln -s /proc/self/fd dev/fd
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ip link set lo up
hostname fresh.test
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
echo ready
while read -r line; do :; done
"""


def outside(*command: str, timeout: float = 600, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the system; an AssertionError with its output when it fails."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "PYTEST", "MAILGATE", "LC_", "LANG"))
    }
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        start_new_session=True,
        env={**environment, "PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", **more},
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout[-6000:]}"
    return done


def quickly(*command: str) -> tuple[str, ...]:
    """A command that need not wait for the disk, where eatmydata is installed: what it makes is thrown away."""
    found = shutil.which("eatmydata")
    return (found, *command) if found else command


def build(into: Path) -> Path:
    """Build the package with `make deb`; the path of its .changes file."""
    source = into / "source"
    source.mkdir()
    for name in ("debian", "doc", "etc", "mailgate", "requirements", "twisted"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
    for path in REPOSITORY.iterdir():
        if path.suffix in (".md", ".cfg", ".toml", ".in") or path.name == "Makefile":
            shutil.copy(path, source)
    outside(*quickly("make", "-C", str(source), "deb"), COMPRESSION="gzip")
    (changes,) = (source / "dist").glob("*.changes")
    return changes


def bootstrap(into: Path) -> Path:
    """Make a minimal Debian 12 from the package sources of this machine; the path of its archive."""
    sources = [Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")]
    found = next((path for path in sources if path.exists() and path.stat().st_size), None)
    if found is None:
        needs.missing("the package sources of a Debian system")
    archive = into / "base.tar"
    leave_out = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "info")]
    outside(
        *quickly("mmdebstrap", "--quiet", "--variant=minbase", f"--include={_INCLUDED}"),
        '--aptopt=APT::Install-Recommends "false"',
        "--dpkgopt=force-unsafe-io",
        *leave_out,
        "--dpkgopt=path-include=/usr/share/man/man*/mailgate*",
        "bookworm",
        str(archive),
        str(found),
    )
    return archive


def newer(package: Path, version: str, change: Callable[[Path], None], into: Path) -> Path:
    """The package as another version, with a change to its tree."""
    tree = into / f"tree-{version}"
    outside("dpkg-deb", "-R", str(package), str(tree))
    control = tree / "DEBIAN" / "control"
    lines = control.read_text(encoding="utf-8").splitlines(keepends=True)
    control.write_text("".join(f"Version: {version}\n" if line.startswith("Version:") else line for line in lines))
    change(tree)
    made = into / f"mailgate_{version}_amd64.deb"
    outside(*quickly("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", str(tree), str(made)))
    shutil.rmtree(tree)
    return made


def unpack(archive: Path, directory: Path) -> None:
    """A fresh file tree."""
    directory.mkdir()
    outside("tar", "-C", str(directory), "--exclude=./dev/*", "-xf", str(archive))
    directory.chmod(0o755)
    (directory / "etc" / "hostname").write_text("fresh\n")
    (directory / "etc" / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")


class Root:
    """A fresh Debian in which commands are run as root."""

    def __init__(self, archive: Path, directory: Path) -> None:
        self.path = directory
        self._archive = archive
        self._unshare: subprocess.Popen[str] | None = None
        self._process_1 = ""

    def __enter__(self) -> Root:
        """Unpack it and start its process 1."""
        unpack(self._archive, self.path)
        self._unshare = subprocess.Popen(
            [
                *("unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
                *("bash", "-c", _PROCESS_1, "process-1", str(self.path)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": SYSTEM_PATH},
        )
        assert self._unshare.stdout is not None
        said = self._unshare.stdout.readline()
        assert said == "ready\n", said + self._unshare.stdout.read()
        pid = self._unshare.pid
        self._process_1 = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything in it and remove it."""
        assert self._unshare is not None
        self._unshare.kill()
        self._unshare.communicate()
        shutil.rmtree(self.path)

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command in it, standard error in the same text as the output."""
        return subprocess.run(
            [
                *("nsenter", "--target", self._process_1, "--mount", "--net", "--pid", "--ipc", "--uts", "--"),
                *(
                    "env",
                    "-i",
                    f"PATH={SYSTEM_PATH}",
                    "LC_ALL=C.UTF-8",
                    "DEBIAN_FRONTEND=noninteractive",
                    *_RUNLEVEL,
                ),
                # apt stops itself for a moment; nsenter would stop with it and never go on.
                *("sh", "-c", '"$@"; exit $?', "sh", *command),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            start_new_session=True,
        )

    def ok(self, *command: str) -> str:
        """Run a command that must succeed; its output."""
        done = self.run(*command)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    def shell(self, script: str) -> str:
        """Run a script that must succeed; its output."""
        return self.ok("sh", "-euc", script)

    def apt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """apt-get, without questions."""
        return self.run("apt-get", "-y", "-o", "Dpkg::Use-Pty=0", *arguments)

    def init(self, action: str) -> subprocess.CompletedProcess[str]:
        """The init script of mailgate."""
        return self.run("/etc/init.d/mailgate", action)

    def read(self, name: str) -> str:
        """A file of it, by the path it has inside."""
        return (self.path / name.lstrip("/")).read_text(encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text that is there in a file, as an operator does; user and mode stay."""
        text = self.read(name)
        assert old in text, f"{name} has no {old!r}"
        (self.path / name.lstrip("/")).write_text(text.replace(old, new, 1), encoding="utf-8")
