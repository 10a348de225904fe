"""Load a configuration file: all of it, or all that is wrong with it.

TOML text -> tree (`tomllib`) and places -> macros -> settings by the schema ->
checks between keys. A configuration with any error never loads. Relative paths
in it are relative to the working directory of the process.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from mailgate.config.check import check
from mailgate.config.effective import Effective
from mailgate.config.error import ConfigError, ConfigErrors, ConfigWarning
from mailgate.config.macro import Macros, find
from mailgate.config.place import places
from mailgate.config.reader import Findings, Reader
from mailgate.config.schema.server import FOREIGN_PROTOCOLS
from mailgate.config.schema.settings import Settings
from mailgate.config.schema.storage import STANDARD_LISTS, LookupSettings
from mailgate.config.toml_fault import toml_fault

_LARGEST_FILE = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that may be served."""

    settings: Settings
    warnings: tuple[ConfigWarning, ...]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What `mailgate config check` has to tell."""

    errors: tuple[ConfigError, ...]
    warnings: tuple[ConfigWarning, ...]


def check_file(path: str, environ: Mapping[str, str] | None = None) -> CheckResult:
    """Check a configuration file without using it; raises nothing for what is wrong with it."""
    try:
        return CheckResult((), load(path, environ).warnings)
    except ConfigErrors as wrong:
        return CheckResult(wrong.errors, ())


def load(path: str, environ: Mapping[str, str] | None = None) -> Loaded:
    """Read, check and complete a configuration file.

    Raises `ConfigErrors` with everything that is wrong; the file not being
    readable is one such error. `environ` is what `%{env:NAME}%` sees.
    """
    try:
        with open(path, "rb") as file:
            octets = file.read(_LARGEST_FILE + 1)
    except OSError as wrong:
        raise ConfigErrors([ConfigError(path, 1, "", f"cannot be read: {(wrong.strerror or str(wrong)).lower()}")])
    if len(octets) > _LARGEST_FILE:
        raise ConfigErrors([ConfigError(path, 1, "", "larger than 64 MiB, no configuration")])
    try:
        text = octets.decode()
    except UnicodeDecodeError as wrong:
        line = octets.count(b"\n", 0, wrong.start) + 1
        raise ConfigErrors([ConfigError(path, line, "", "not UTF-8 text", "save the file as UTF-8")])
    return load_text(text, path, environ)


def load_text(text: str, file: str = "mailgate.toml", environ: Mapping[str, str] | None = None) -> Loaded:
    """As `load`, for the text of a file; `file` is what errors call it."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    try:
        tree: dict[str, object] = tomllib.loads(text)
    except (ValueError, RecursionError) as wrong:
        raise ConfigErrors([toml_fault(text, file, wrong)])
    findings = Findings(file, places(text))
    macros = Macros(tree, os.environ if environ is None else environ, findings.error)
    macros.effective = Effective(Settings, macros.configured)
    expanded = macros.expanded()
    effective = Effective(Settings, lambda key: found[1] if (found := find(expanded, key)) is not None else None)
    reader = Reader(Settings, expanded, macros, effective, findings)
    settings = reader.settings()
    check(reader, expanded, findings)
    if findings.errors or not isinstance(settings, Settings):
        raise ConfigErrors(findings.errors)
    warnings = sorted(dict.fromkeys(findings.warnings), key=lambda warning: warning.line)
    return Loaded(_completed(settings), tuple(warnings))


def _completed(settings: Settings) -> Settings:
    """Leave out listeners of protocols that are not ours, add the lists that always exist."""
    ours = {id: one for id, one in settings.server.listener.items() if one.protocol not in FOREIGN_PROTOCOLS}
    none = LookupSettings(entries={})
    standard = {name: none for name in STANDARD_LISTS if name not in settings.store}
    return dataclasses.replace(
        settings,
        server=dataclasses.replace(settings.server, listener=ours),
        lookup={**standard, **settings.lookup},
    )
