"""Redis and PostgreSQL with files of their own, on free loopback ports."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from support import needs
from support.ports import free_port, is_listening, wait_until

PASSWORD = "opensesame"


class RedisServer:
    """One Redis that keeps nothing on disk and wants a password."""

    def __init__(self) -> None:
        self._program = needs.program("redis-server")
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="mgrd", dir="/tmp"))
        self.socket = self.folder / "s"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address, password included."""
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, empty, and wait for its port."""
        command = [self._program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self.folder), "--requirepass", PASSWORD, "--unixsocket", str(self.socket)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: is_listening(self.port), 10, "Redis's port")

    def kill(self) -> None:
        """End it at once; its files stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def stop(self) -> None:
        """End it and remove its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgresqlServer:
    """One PostgreSQL cluster with the database `mail`, of role `mailgate`; it does not run as root."""

    def __init__(self) -> None:
        needs.root()
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            needs.missing("postgresql is not installed")
        self._bin = found[-1].parent
        self.port = free_port()
        # The path of a Unix socket is short.
        self.folder = Path(tempfile.mkdtemp(prefix="mgpg", dir="/tmp"))
        self._data = self.folder / "data"

    def start(self) -> None:
        """Make the cluster where there is none, start it, and wait until it answers."""
        if not self._data.exists():
            shutil.chown(self.folder, "postgres")
            # A file of a shell's <(...) would be root's.
            secret = self.folder / "secret"
            secret.write_text(PASSWORD + "\n")
            shutil.chown(secret, "postgres")
            self._as_postgres(
                "initdb", "-D", self._data, "-A", "scram-sha-256", f"--pwfile={secret}", "-U", "mailgate", "-N"
            )
        settings = (
            f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self.folder} -c fsync=off "
            "-c log_min_messages=fatal"
        )
        self._as_postgres("pg_ctl", "-D", self._data, "-w", "-l", self.folder / "log", "-o", settings, "start")
        exists = self.run("SELECT 1 FROM pg_database WHERE datname = 'mail'", "postgres")
        if not exists.strip():
            self.run("CREATE DATABASE mail", "postgres")

    def run(self, statement: str, database: str = "mail") -> str:
        """Run a statement with psql; its output without a frame."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "mailgate", "-d", database]
        done = subprocess.run(
            [self._bin / "psql", *where, "-Atc", statement],
            env={**os.environ, "PGPASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def kill(self) -> None:
        """Stop it as a crash would; its files stay."""
        self._as_postgres("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    def stop(self) -> None:
        """Stop it where it runs, and remove its files."""
        if (self._data / "postmaster.pid").exists():
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _as_postgres(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            ["runuser", "-u", "postgres", "--", str(self._bin / program), *map(str, arguments)],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if program != "pg_ctl" else subprocess.DEVNULL,
            timeout=120,
        )
        assert done.returncode == 0, f"{program}: {(done.stdout or b'').decode(errors='replace')}"
