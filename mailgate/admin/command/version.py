"""`mailgate version`."""

from __future__ import annotations

import click

from mailgate import __version__
from mailgate.admin.failure import Status
from mailgate.admin.output import print_text


@click.command()
def version() -> int:
    """Print the version of this program."""
    print_text(f"mailgate {__version__}\n")
    return Status.OK
