"""What is said through the control socket: one line asks, one line answers, both JSON.

    {"version": 1, "command": "reload", "arguments": {"config": "/etc/mailgate/mailgate.toml"}}
    {"version": 1, "status": 0, "text": "", "result": {"generation": 2}}

`status` is the exit status the command line ends with, `text` what it prints
for people. `control_socket.py` is the daemon's side of the socket, `ask` here
the operator's.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from mailgate.admin.failure import Failed, Status

VERSION = 1
MAX_REQUEST_OCTETS = 64 * 1024
MAX_ANSWER_OCTETS = 4 * 1024 * 1024
# A daemon under load reads thousands of rules beside its mail, and a reload waits for the one before it.
ANSWER_SECONDS = 120.0
_CUT = "\n(cut here: the log has all of it)"


class BadMessage(Exception):
    """Octets that are no request or answer of this version; the text says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """A command, and what it is told."""

    command: str
    arguments: Mapping[str, object] = field(default_factory=dict)

    def octets(self) -> bytes:
        """As it is sent."""
        return _line({"version": VERSION, "command": self.command, "arguments": dict(self.arguments)})

    @classmethod
    def of(cls, line: bytes) -> Request:
        """Read one line, without its end. Raises `BadMessage`."""
        document = _document(line)
        command, arguments = document.get("command"), document.get("arguments", {})
        if not isinstance(command, str) or not isinstance(arguments, dict):
            raise BadMessage("no command")
        return cls(command, arguments)


@dataclass(frozen=True, slots=True)
class Answer:
    """How it ended, what to print for people, and what a program wants to know."""

    status: Status
    text: str = ""
    result: Mapping[str, object] = field(default_factory=dict)

    def octets(self) -> bytes:
        """As it is sent; a text that is too long is cut."""
        document: dict[str, object] = {"version": VERSION, "status": int(self.status)}
        line = _line({**document, "text": self.text, "result": dict(self.result)})
        if len(line) > MAX_ANSWER_OCTETS:
            # Twelve octets are the most a character can become.
            line = _line({**document, "text": self.text[: MAX_ANSWER_OCTETS // 16] + _CUT, "result": {}})
        return line

    @classmethod
    def of(cls, line: bytes) -> Answer:
        """Read one line, without its end. Raises `BadMessage`."""
        document = _document(line)
        status, text, result = document.get("status"), document.get("text", ""), document.get("result", {})
        if not isinstance(text, str) or not isinstance(result, dict) or type(status) is not int:
            raise BadMessage("no answer")
        try:
            return cls(Status(status), text, result)
        except ValueError:
            raise BadMessage("an unknown status") from None


def _line(document: dict[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"


def _document(line: bytes) -> dict[str, object]:
    try:
        document = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadMessage("not a line of JSON") from None
    if not isinstance(document, dict):
        raise BadMessage("not a JSON object")
    if document.get("version") != VERSION or isinstance(document.get("version"), bool):
        raise BadMessage(f"this is version {VERSION} of the protocol")
    return document


def ask(path: str, request: Request, seconds: float = ANSWER_SECONDS) -> Answer:
    """Ask the daemon behind a socket. Raises `Failed` where there is none, or it may not be asked."""
    octets = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(path)
            connection.sendall(request.octets())
            while not octets.endswith(b"\n") and len(octets) <= MAX_ANSWER_OCTETS:
                more = connection.recv(65536)
                if not more:
                    break
                octets += more
    except PermissionError:
        raise Failed(Status.PERMISSION, f"no permission for {path}") from None
    except TimeoutError:
        raise Failed(Status.UNREACHABLE, f"the daemon behind {path} did not answer within {seconds:g} s") from None
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise Failed(Status.UNREACHABLE, f"mailgate cannot be reached through {path}: {reason}") from None
    if not octets.endswith(b"\n"):
        raise Failed(Status.UNREACHABLE, f"the daemon behind {path} ended without an answer")
    try:
        return Answer.of(bytes(octets[:-1]))
    except BadMessage as bad:
        raise Failed(Status.UNREACHABLE, f"what is behind {path} is no mailgate of this version: {bad}") from None
