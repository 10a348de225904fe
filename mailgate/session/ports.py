"""Everything outside that inbound decisions may ask (DESIGN D2).

Production ports do I/O; tests and rehearsals answer from a table. There is no
second implementation of a policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mailgate.dns.budget import Budget
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
    metered: Callable[[Budget], Outside] | None = None
    """Makes an `outside` whose questions to DNS count against a budget; None where none is kept."""

    def for_session(self, budget: Budget) -> Ports:
        """The ports as one session has them."""
        if self.metered is None:
            return self
        return Ports(self.metered(budget), self.directories, self.addresses)
