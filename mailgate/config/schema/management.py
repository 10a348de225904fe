"""`management.*`: how operators reach the running daemon."""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.config.key import key
from mailgate.config.kind import PATH
from mailgate.config.system import DEFAULT_CONTROL


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementSettings:
    """How operators reach the running daemon."""

    socket: str = key(
        PATH,
        default=DEFAULT_CONTROL,
        doc="Socket through which `mailgate` speaks with the daemon; mode 0660, so the group of the daemon may. "
        "Its directory is made when it is not there.",
    )
