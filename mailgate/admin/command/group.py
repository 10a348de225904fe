"""A group of commands of which only the one that is asked for is loaded.

Who reads the queue need not wait for Twisted, nor for the policy engine: this
is the one place where a module is imported late.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click

ROOM = "mailgate.admin.command"


class LazyGroup(click.Group):
    """A group whose commands are named by module and attribute: `queue_list:list_`."""

    places: Mapping[str, str] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name."""
        return sorted(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, loaded now."""
        place = self.places.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        found = getattr(import_module(f"{ROOM}.{module}"), attribute)
        return found if isinstance(found, click.Command) else None
