"""What a test needs of the machine: skip without it and say what is missing; with CI=true that is a failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def program(name: str) -> str:
    """The path of an installed program; ends the test when there is none."""
    path = shutil.which(name, path=_SBIN)
    if path is None:
        missing(f"{name} is not installed")
    return path


def unpacked(name: str) -> Path:
    """The folder with the files of a package that is not installed (`.ci/unpack-peers`); ends the test without one."""
    folder = Path(os.environ.get("MAILGATE_PEERS", "/var/cache/mailgate-peers")) / name
    if not folder.is_dir():
        missing(f"{name} is not unpacked at {folder}: run .ci/unpack-peers")
    return folder


def root() -> None:
    """Skip the test unless it runs as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the daemons of this peer change their user")


def missing(what: str) -> None:
    """End the test: something is not there that a full machine has."""
    if os.environ.get("CI") == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)
