"""Policies that have nothing to say: left out of a chain before any client has connected.

A stage file names its policies in running order, and in `IDLE` for each of
those that a rule can silence when that is. Where the rules of a listener are
constants, most are: what remains is what has to be asked of every client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from mailgate.config.schema.session import SessionSettings
from mailgate.session.chain import Chained, Policy

C = TypeVar("C", bound=Chained)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a listener's sessions: its rules, and whether the client has logged in."""

    rules: SessionSettings
    is_logged_in: bool


Idle = Mapping[Policy[C], Callable[[Known], bool]]
"""Where a policy lets everything pass, whatever the client says."""


def needed(policies: tuple[Policy[C], ...], idle: Idle[C], known: Known) -> tuple[Policy[C], ...]:
    """The policies that have something to say, in their order."""
    return tuple(policy for policy in policies if policy not in idle or not idle[policy](known))
