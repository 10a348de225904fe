"""Everything outside that inbound decisions may ask (DESIGN D2).

Production ports do I/O; tests and rehearsals answer from a table. There is no
second implementation of a policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.expr.outside import Outside
from mailgate.lookup.outside import Directories
from mailgate.lookup.recipient import AddressRules


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one generation of the configuration."""

    outside: Outside
    directories: Directories
    addresses: AddressRules
    """Sub-addressing and catch-all."""
