"""`twistd mailgate`: the options, and the service they make.

The reactor is imported here and nowhere else; everything is given it.
"""

from __future__ import annotations

import os
from typing import ClassVar, NoReturn

from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.posixbase import PosixReactorBase
from twisted.python import usage

from mailgate import __version__
from mailgate.config.error import ConfigErrors
from mailgate.config.load import Loaded, load
from mailgate.config.paths import DEFAULT_CONFIG
from mailgate.service.build import Unbuildable, build
from mailgate.service.gateway import Gateway
from mailgate.service.log import LOG_FILE
from mailgate.service.supervisor import supervisor

# sysexits.h: EX_CONFIG.
EX_CONFIG = 78


class Options(usage.Options):
    """What `twistd mailgate` takes."""

    synopsis = "twistd [twistd options] mailgate [--config FILE] [--check]"
    longdesc = (
        "Runs the mail gateway. The configuration is one TOML file; all its errors are reported at once, "
        "each with file, line and key, and none of it is used while there is any (exit status 78)."
    )
    optParameters: ClassVar[list[list[object]]] = [
        ["config", "c", DEFAULT_CONFIG, "The configuration file."],
    ]
    optFlags: ClassVar[list[list[object]]] = [
        ["check", None, "Check the configuration, report, and exit: 0 when it can be used, else 78."],
    ]

    def opt_version(self) -> NoReturn:
        """Show mailgate's version and exit."""
        print(f"mailgate {__version__}")
        raise SystemExit(0)

    def postOptions(self) -> None:
        """Check only, where that was asked for; else have events written in mailgate's own form."""
        if self["check"]:
            for warning in _load_or_exit(self["config"]).warnings:
                print(warning)
            raise SystemExit(0)
        parent = getattr(self, "parent", None)
        if parent is None or parent.get("logger") or parent.get("syslog"):
            return
        # twistd takes the name of a function without arguments: the file's name goes by the environment.
        path = parent.get("logfile") or ("" if parent.get("nodaemon") else "twistd.log")
        os.environ[LOG_FILE] = "" if path == "-" else os.path.abspath(path) if path else ""
        if parent.get("uid") is not None and os.environ[LOG_FILE]:
            _hand_over(os.environ[LOG_FILE], parent["uid"])
        parent["logger"] = "mailgate.service.log.observer"


def _hand_over(log_file: str, uid: int) -> None:
    """Make the log belong to the user that writes it once root is given up; never through a symbolic link."""
    try:
        descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            os.fchown(descriptor, uid, -1)
        finally:
            os.close(descriptor)
    except OSError as failure:
        raise usage.UsageError(f"--logfile: cannot open {log_file}: {failure.strerror or failure}") from None


def _load_or_exit(path: str) -> Loaded:
    """The configuration; a report of all that is wrong with it, and status 78, when it cannot be used."""
    try:
        return load(path)
    except ConfigErrors as wrong:
        print(wrong.report(), end="")
        raise SystemExit(EX_CONFIG) from None


def makeService(options: Options) -> IService:
    """Load the configuration and build the gateway; ends the program with 78 when it cannot be used."""
    loaded = _load_or_exit(options["config"])
    if not isinstance(reactor, PosixReactorBase):
        raise TypeError(f"mailgate needs a reactor of Twisted's own for POSIX, not {type(reactor).__name__}")
    try:
        program = build(loaded.settings, reactor, loaded.secrets)
    except Unbuildable as wrong:
        for problem in wrong.problems:
            print(f"{options['config']}: {problem}")
        raise SystemExit(EX_CONFIG) from None
    # twistd may change its directory after this.
    return Gateway(program, loaded, os.path.abspath(options["config"]), supervisor(os.environ))
