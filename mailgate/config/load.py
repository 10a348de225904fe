"""Load a configuration: all of it, or all that is wrong with it.

Texts -> one tree (`sources.py`) -> macros -> settings by the schema -> checks
between keys. A configuration with any error never loads. Relative paths in it
are relative to the working directory of the process.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mailgate.config.check import check
from mailgate.config.effective import Effective
from mailgate.config.error import ConfigError, ConfigErrors, ConfigWarning
from mailgate.config.macro import Macros, find
from mailgate.config.place import Path
from mailgate.config.reader import Findings, Reader
from mailgate.config.schema.server import FOREIGN_PROTOCOLS
from mailgate.config.schema.settings import Settings
from mailgate.config.schema.storage import STANDARD_LISTS, LookupSettings
from mailgate.config.sources import Source, Written, merged, written

# What is shorter stands in too many texts by chance.
_SHORTEST_SECRET = 5


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that may be served."""

    settings: Settings
    warnings: tuple[ConfigWarning, ...]
    files: tuple[str, ...]
    """The files it was made of, the main one first."""
    secrets: frozenset[str] = field(repr=False)
    """What `%{env:...}%` and `%{file:...}%` inserted, where it has at least five characters: never to be shown."""
    written: Written = field(repr=False)
    """What the files say, macros not expanded."""
    expanded: Mapping[str, object] = field(repr=False)
    """The same with macros expanded."""
    secret_paths: frozenset[Path] = field(repr=False)
    """The values that hold inserted text."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What `mailgate config check` has to tell."""

    errors: tuple[ConfigError, ...]
    warnings: tuple[ConfigWarning, ...]


def check_file(path: str, environ: Mapping[str, str] | None = None) -> CheckResult:
    """Check a configuration without using it; raises nothing for what is wrong with it."""
    try:
        return CheckResult((), load(path, environ).warnings)
    except ConfigErrors as wrong:
        return CheckResult(wrong.errors, ())


def load(path: str, environ: Mapping[str, str] | None = None) -> Loaded:
    """Read, check and complete a configuration: the file, and `conf.d/*.toml` beside it.

    Raises `ConfigErrors` with everything that is wrong; a file not being
    readable is one such error. `environ` is what `%{env:NAME}%` sees.
    """
    return _loaded(written(path), environ)


def load_text(text: str, file: str = "mailgate.toml", environ: Mapping[str, str] | None = None) -> Loaded:
    """As `load`, for the text of one file; `file` is what errors call it."""
    return load_texts([Source(file, text)], environ)


def load_texts(sources: Iterable[Source], environ: Mapping[str, str] | None = None) -> Loaded:
    """As `load`, for the texts of the files, the main one first."""
    return _loaded(merged(sources), environ)


def _loaded(found: Written, environ: Mapping[str, str] | None) -> Loaded:
    if not found.is_complete and not found.tree:
        raise ConfigErrors(found.errors, found.files)
    findings = Findings(found.origins, list(found.errors))
    macros = Macros(found.tree, os.environ if environ is None else environ, findings.error)
    macros.effective = Effective(Settings, macros.configured)
    expanded = macros.expanded()
    effective = Effective(Settings, lambda key: at[1] if (at := find(expanded, key)) is not None else None)
    reader = Reader(Settings, expanded, macros, effective, findings, found.is_complete)
    settings = reader.settings()
    if found.is_complete:
        # What a name leads to may stand in a file that could not be read.
        check(reader, expanded, findings)
    if findings.errors or not isinstance(settings, Settings):
        raise ConfigErrors(findings.errors, found.files)
    order = {file: number for number, file in enumerate(found.files)}
    warnings = sorted(dict.fromkeys(findings.warnings), key=lambda warning: (order[warning.file], warning.line))
    return Loaded(
        _completed(settings),
        tuple(warnings),
        found.files,
        _secrets(macros.inserted),
        found,
        expanded,
        frozenset(macros.secrets),
    )


def _secrets(inserted: Iterable[str]) -> frozenset[str]:
    """The inserted values worth hiding; one from a file also without its last line end."""
    each = {form for value in inserted for form in (value, value.strip())}
    return frozenset(value for value in each if len(value) >= _SHORTEST_SECRET)


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
