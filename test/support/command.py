"""The command line within the test's own process: what it prints and how it ends, without a second to start."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

from mailgate.admin.main import main


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def command(config, *arguments):
    """Run `mailgate --config CONFIG ARGUMENTS`."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["--config", str(config), *arguments])
    return Done(int(status), out.buffer.getvalue().decode(), err.buffer.getvalue().decode())
