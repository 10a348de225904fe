"""A disk that fails as it is told, and that forgets what was not synced when its power is cut.

disk = Disk(directory, library)          # library: built(directory), None without a C compiler
run a daemon with disk.environment(), its files below disk.root
disk.fail(WRITE | SYNC, "queue.sqlite-wal", errno.EIO, count=3); disk.heal()
kill the daemon; disk.cut_power(random.Random(1)); start it again

How it is done: `test/crash/disk.c`, loaded into the daemon, keeps a log of what undoes each change.
What a power cut leaves of changes that were not synced is drawn at random: each block of a file in one
of the states it has had since its last sync, its length likewise, and of the names in a directory that
were made, moved and removed since its last sync the first few.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import struct
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "crash" / "disk.c"

WRITE, SYNC, RENAME, OPEN, UNLINK = 1, 2, 4, 8, 16

_HEAD = struct.Struct("<IIQQqqqII")
_MAGIC = 0x6B736964
_CONTROL = struct.Struct("<IIiiii104s")
_KINDS = ("", "write", "truncate", "sync", "create", "rename", "unlink", "mkdir", "dirsync")
_BLOCK = 4096
_SECTOR = 512


def built(directory: Path) -> Path | None:
    """The library, made from its source; None where there is no C compiler."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        return None
    library = directory / "disk.so"
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"],
        check=True,
    )
    return library


@dataclass(frozen=True)
class Change:
    """One entry of the log."""

    kind: str
    seq: int
    inode: int
    offset: int
    length: int
    old_size: int
    first: bytes
    second: bytes


class Disk:
    """What lies below `root` of one daemon after the other."""

    def __init__(self, directory: Path, library: Path) -> None:
        directory = directory.resolve()
        self.root = directory / "disk"
        self._library = library
        self._log = directory / "disk.log"
        self._inodes = directory / "inodes"
        self._control_file = directory / "disk.control"
        self.root.mkdir(parents=True, exist_ok=True)
        self._inodes.mkdir(exist_ok=True)
        self._control_file.write_bytes(bytes(_CONTROL.size))
        with open(self._control_file, "r+b") as file:
            self._control = mmap.mmap(file.fileno(), _CONTROL.size)

    def environment(self) -> dict[str, str]:
        """What a process needs to have this disk."""
        return {
            "LD_PRELOAD": str(self._library),
            "DISK_ROOT": str(self.root),
            "DISK_LOG": str(self._log),
            "DISK_INODES": str(self._inodes),
            "DISK_CONTROL": str(self._control_file),
        }

    # --- faults --------------------------------------------------------------------------
    def fail(
        self, operations: int, path: str, error: int, *, skip: int = 0, count: int = -1, half: bool = False
    ) -> None:
        """Let calls on files with `path` in their name fail: after `skip` good ones, `count` of them (-1: all).

        `half`: the first write that would fail writes half of its octets instead.
        """
        self.heal()
        rule = _CONTROL.pack(0, operations, error, skip, count, int(half), path.encode())
        self._control[: _CONTROL.size] = rule
        self._control[:4] = b"\1\0\0\0"

    def heal(self) -> None:
        """Let nothing fail any more."""
        self._control[:4] = bytes(4)

    # --- power ---------------------------------------------------------------------------
    def forget(self) -> None:
        """What is there now counts as synced. Between two daemons."""
        self._log.write_bytes(b"")
        for link in os.scandir(self._inodes):
            os.unlink(link.path)

    def cut_power(self, chance: random.Random, *, all_lost: bool = False) -> dict[str, int]:
        """Take back what a power cut may have lost, or with `all_lost` everything it could have; what, by kind."""
        changes = self._changes()
        undone = _undo_names(changes, chance, all_lost, self._inodes)
        by_file: dict[int, list[Change]] = defaultdict(list)
        for change in changes:
            if change.kind in ("write", "truncate"):
                by_file[change.inode].append(change)
            elif change.kind == "sync":
                by_file.pop(change.inode, None)
        for inode, unsynced in by_file.items():
            if _undo_contents(self._inodes / str(inode), unsynced, chance, all_lost):
                undone["contents"] += 1
        self.forget()
        return dict(undone)

    def _changes(self) -> list[Change]:
        try:
            octets = self._log.read_bytes()
        except FileNotFoundError:
            return []
        changes = []
        at = 0
        while at + _HEAD.size <= len(octets):
            magic, kind, seq, inode, offset, length, old_size, one, two = _HEAD.unpack_from(octets, at)
            assert magic == _MAGIC, f"the disk's log is broken at {at}"
            at += _HEAD.size
            if at + one + two > len(octets):
                # The process was killed while it wrote this entry: the change was not made.
                break
            first, second = octets[at : at + one], octets[at + one : at + one + two]
            changes.append(Change(_KINDS[kind], seq, inode, offset, length, old_size, first, second))
            at += one + two
        return changes


def _undo_names(changes: list[Change], chance: random.Random, all_lost: bool, inodes: Path) -> dict[str, int]:
    """Take back unsynced names; per directory the later ones."""
    undone: dict[str, int] = defaultdict(int)
    pending: dict[bytes, list[Change]] = defaultdict(list)
    for change in changes:
        if change.kind == "dirsync":
            pending.pop(change.first.rstrip(b"/"), None)
        elif change.kind in ("create", "unlink", "mkdir"):
            pending[os.path.dirname(change.first)].append(change)
        elif change.kind == "rename":
            pending[os.path.dirname(change.second)].append(change)
    lost = []
    for those in pending.values():
        lost += those[0 if all_lost else chance.randrange(len(those) + 1) :]
    for change in sorted(lost, key=lambda change: -change.seq):
        undone[change.kind] += _undo_name(change, inodes)
    return undone


def _undo_name(change: Change, inodes: Path) -> int:
    if change.kind == "create":
        if _inode(change.first) == change.inode:
            os.unlink(change.first)
            return 1
    elif change.kind == "mkdir":
        if os.path.isdir(change.first):
            shutil.rmtree(change.first)
            return 1
    elif change.kind == "rename":
        if _inode(change.second) == change.inode and os.path.isdir(os.path.dirname(change.first)):
            os.rename(change.second, change.first)
            if change.offset:
                os.link(inodes / str(change.offset), change.second)
            return 1
    elif change.kind == "unlink" and not os.path.lexists(change.first) and change.inode:
        with contextlib.suppress(FileNotFoundError):
            os.link(inodes / str(change.inode), change.first)
            return 1
    return 0


def _inode(path: bytes) -> int:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return 0


def _undo_contents(file: Path, unsynced: list[Change], chance: random.Random, all_lost: bool) -> bool:
    """Bring a file into one of the states it may have after a power cut; whether that is another one."""
    before = file.read_bytes()
    octets = bytearray(before)
    sizes = [change.old_size for change in unsynced] + [len(octets)]
    size = sizes[0] if all_lost else chance.choice(sizes)
    unit = _SECTOR if chance.random() < 0.25 else _BLOCK
    touching: dict[int, int] = defaultdict(int)
    for change in unsynced:
        for block in _blocks(change, unit):
            touching[block] += 1
    kept = {block: 0 if all_lost else chance.randint(0, count) for block, count in touching.items()}
    for change in reversed(unsynced):
        start = change.offset
        end = start + change.length if change.kind == "write" else change.old_size
        if end > len(octets):
            octets.extend(bytes(end - len(octets)))
        old = change.first + bytes(max(0, end - start - len(change.first)))
        for block in _blocks(change, unit):
            touching[block] -= 1
            if touching[block] >= kept[block]:
                low, high = max(start, block * unit), min(end, (block + 1) * unit)
                octets[low:high] = old[low - start : high - start]
    if size > len(octets):
        octets.extend(bytes(size - len(octets)))
    del octets[size:]
    if octets == before:
        return False
    with open(file, "r+b") as out:
        out.write(octets)
        out.truncate(len(octets))
    return True


def _blocks(change: Change, unit: int) -> range:
    """The blocks a write or a truncation touches."""
    end = change.offset + change.length if change.kind == "write" else max(change.old_size, change.offset)
    return range(change.offset // unit, -(-end // unit))
