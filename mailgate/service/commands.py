"""What the daemon does for those who ask through the control socket."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mailgate import __version__
from mailgate.admin.control import Answer, Request
from mailgate.admin.control_socket import Caller, Command
from mailgate.admin.failure import Failed, Status
from mailgate.decisions.explain import timestamp
from mailgate.deliver.wake import Wake
from mailgate.service.listeners import Listeners
from mailgate.service.reload import Refused, Reloader


class Commands:
    """The commands, over the running program."""

    def __init__(self, reloader: Reloader, listeners: Listeners, wake: Wake) -> None:
        self._reloader = reloader
        self._listeners = listeners
        self._wake = wake

    def table(self) -> Mapping[str, Command]:
        """Every command by its name."""
        return {"reload": self.reload, "status": self.status}

    async def reload(self, request: Request, caller: Caller) -> Answer:
        """Read the configuration again; 78 with the report when it is refused."""
        self.right_daemon(request)
        try:
            in_use = await self._reloader.reload(f"uid:{caller.uid}")
        except Refused as refused:
            return Answer(Status.CONFIG, f"{refused}\n", {"generation": self._reloader.in_use.number})
        warnings = "".join(f"{warning} (warning)\n" for warning in in_use.warnings)
        text = f"{warnings}generation {in_use.number} is in use\n"
        return Answer(Status.OK, text, {"generation": in_use.number, "warnings": list(in_use.warnings)})

    async def status(self, request: Request, caller: Caller) -> Answer:
        """What runs."""
        in_use = self._reloader.in_use
        return Answer(
            Status.OK,
            "",
            {
                "version": __version__,
                "pid": os.getpid(),
                "config": self._reloader.file,
                "generation": in_use.number,
                "since": timestamp(int(in_use.since * 1000)),
                "listeners": [
                    {
                        "id": each.id,
                        "protocol": each.protocol,
                        "addresses": list(each.addresses),
                        "connections": each.connections,
                    }
                    for each in self._listeners.report()
                ],
                "attempts": self._wake.running,
            },
        )

    def right_daemon(self, request: Request) -> None:
        """A file that does not say where its socket is must not reload the daemon of another."""
        asked = request.arguments.get("config")
        if isinstance(asked, str) and os.path.realpath(asked) != os.path.realpath(self._reloader.file):
            raise Failed(Status.UNREACHABLE, f"the daemon behind this socket serves {self._reloader.file}, not {asked}")
