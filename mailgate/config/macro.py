"""Macros in string values: `%{env:NAME}%`, `%{file:PATH}%`, `%{cfg:key}%`.

They are expanded after TOML has been read and before a value is checked, in
this order. What the first two inserted is a secret: the paths of such values
are remembered, and no error shows them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from mailgate.config.kind import Step, Unfit

Path = tuple[Step, ...]
Report = Callable[[Path, str, str], None]
"""Takes an error: path, problem, advice."""

_ENV_OR_FILE = re.compile(r"%\{(env|file):([^{}\n]*)\}%")
_CFG = re.compile(r"%\{cfg:([^{}\n]*)\}%")
# What was meant as a macro and is none: it would be taken as it stands, a secret of its own name for example.
_BROKEN = re.compile(r"%\{(?:env|file|cfg)|\{(?:env|file|cfg):|%(?:env|file|cfg):|%\{[a-z]+:[^{}\n]*\}%")
_DEEPEST = 60
_LARGEST_FILE = 16 * 1024 * 1024


class Macros:
    """The expansion of one configuration's macros; `secrets` are the paths of values that hold inserted text."""

    def __init__(
        self,
        tree: Mapping[str, object],
        environ: Mapping[str, str],
        report: Report,
    ) -> None:
        """Expand nothing yet; `effective` has to be set before."""
        self._tree = tree
        self._environ = environ
        self.effective: Callable[[str], object] = self.configured
        """Gives what `%{cfg:key}%` inserts, defaults included; raises `LookupError` for what is no key."""
        self._report = report
        self._open: list[Path] = []
        self._done: dict[Path, str] = {}
        self.secrets: set[Path] = set()
        self.inserted: set[str] = set()
        """What variables and files gave."""
        self.failed: set[Path] = set()
        """Where a macro could not be expanded; this has been reported."""

    def expanded(self) -> dict[str, object]:
        """The tree with every macro expanded; what cannot be is reported and left as it stands."""
        return {name: self._expand(value, (name,)) for name, value in self._tree.items()}

    def _expand(self, value: object, path: Path) -> object:
        if isinstance(value, str):
            return self._string(value, path) if "%" in value or "{" in value else value
        if len(path) > _DEEPEST:
            if isinstance(value, (dict, list)):
                self._report(path[:4], "the value is nested too deeply", "")
                return None
            return value
        if isinstance(value, dict):
            return {name: self._expand(inner, (*path, name)) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._expand(inner, (*path, number)) for number, inner in enumerate(value)]
        return value

    def _string(self, value: str, path: Path) -> str:
        done = self._done.get(path)
        if done is None:
            try:
                done = self._expanded_string(value, path)
            except Unfit as unfit:
                self._report(path, unfit.problem, unfit.advice)
                self.failed.add(path)
                done = ""
            self._done[path] = done
        return done

    def _expanded_string(self, value: str, path: Path) -> str:
        if path in self._open:
            raise Unfit("the %{cfg:...}% macros of these values need one another", "write one of the values out")
        if _BROKEN.search(_CFG.sub("\n", _ENV_OR_FILE.sub("\n", value))):
            raise Unfit("a macro is not complete", "write %{env:NAME}%, %{file:/path}% or %{cfg:key}%")
        self._open.append(path)
        try:
            # One pass each: what a variable or a file inserted is never looked at again.
            parts = []
            rest = 0
            for match in _ENV_OR_FILE.finditer(value):
                parts.append(self._configured(value[rest : match.start()], path))
                inserted = self._inserted(match[1], match[2])
                self.inserted.add(inserted)
                parts.append(inserted)
                self.secrets.add(path)
                rest = match.end()
            parts.append(self._configured(value[rest:], path))
            return "".join(parts)
        finally:
            self._open.pop()

    def _inserted(self, macro: str, argument: str) -> str:
        if macro == "env":
            found = self._environ.get(argument)
            if found is None:
                raise Unfit(f"the environment variable {argument} is not set", "set it, or write the value out")
            return found
        name = argument[2:] if argument.startswith("//") else argument
        try:
            with open(name, "rb") as file:
                octets = file.read(_LARGEST_FILE + 1)
        except (OSError, ValueError) as wrong:
            reason = wrong.strerror if isinstance(wrong, OSError) else None
            raise Unfit(f"cannot read {name}: {(reason or 'not a usable path').lower()}") from None
        if len(octets) > _LARGEST_FILE:
            raise Unfit(f"{name} is larger than 16 MiB")
        try:
            return octets.decode()
        except UnicodeDecodeError:
            raise Unfit(f"{name} is not UTF-8 text") from None

    def _configured(self, text: str, path: Path) -> str:
        parts = []
        rest = 0
        for match in _CFG.finditer(text):
            parts.append(text[rest : match.start()])
            parts.append(self._value_of(match[1].strip(), path))
            rest = match.end()
        return text[rest:] if not parts else "".join([*parts, text[rest:]])

    def configured(self, key: str) -> object:
        """The expanded value the file has for a dotted key; None where it has none."""
        found = find(self._tree, key)
        if found is None:
            return None
        path, value = found
        return self._expand(value, path)

    def _value_of(self, key: str, path: Path) -> str:
        found = find(self._tree, key)
        if found is not None and found[0] in self._open:
            raise Unfit("the %{cfg:...}% macros of these values need one another", "write one of the values out")
        try:
            value = self.effective(key)
        except LookupError:
            raise Unfit(f"there is no key {key}", "write the full name of a key, such as server.hostname") from None
        if found is not None and found[0] in self.failed:
            raise Unfit(f"the value of {key} could not be expanded")
        if found is not None and found[0] in self.secrets:
            self.secrets.add(path)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, (str, int, float)):
            return str(value)
        raise Unfit(f"{key} has no value that is a string, number or boolean")


def find(tree: Mapping[str, object], key: str) -> tuple[Path, object] | None:
    """The value a dotted key leads to, and its path; names with dots in them are found, too."""
    return _find(tree, key.split("."), ())


def _find(tree: object, names: list[str], path: Path) -> tuple[Path, object] | None:
    if not names:
        return path, tree
    if not isinstance(tree, dict):
        return None
    for count in range(len(names), 0, -1):
        name = ".".join(names[:count]).strip('"')
        if name in tree and (found := _find(tree[name], names[count:], (*path, name))) is not None:
            return found
    return None
