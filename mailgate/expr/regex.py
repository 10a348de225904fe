r"""Regular expressions of `matches()`: the syntax of RE2, run by Python's `re`.

What RE2 and Rust's regex have no notion of (look-around, back-references, atomic
groups, possessive repetition) is refused when the configuration is loaded, so
that a rule written today keeps its meaning if the engine is replaced by a linear
one. Where both have a form but mean different things, the form is translated:
`$` is the very end of the text, `\z` likewise, flags such as `(?i)` may stand
anywhere, `(?<name>...)` names a group, `[[:alpha:]]` is a class.

Python's engine backtracks: a pattern that repeats an ambiguous group can take
very long on a hostile text. Two bounds stand against that: the plainest form of
it, a repeated group that holds nothing but a repetition such as `(a+)+`, is
refused, and so is any text beyond `LONGEST_SUBJECT` characters (the answer is
unknown then). They do not make every pattern safe: the operator's guide says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mailgate.expr.value import BadValue

Pattern = re.Pattern[str]

LONGEST_PATTERN = 4096
LONGEST_SUBJECT = 8192
_MOST_REPEATS = 1000

_REPEAT = re.compile(r"[*+?]|\{([0-9]+)(?:(,)([0-9]*))?\}")
_FLAGS = re.compile(r"\(\?([a-zA-Z]*)(-[a-zA-Z]*)?([:)])")
_NAMED = re.compile(r"\(\?P?<([A-Za-z_][A-Za-z0-9_]*)>")
_HEX = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_POSIX = re.compile(r"\[:([a-z]+):\]")
_POSIX_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_UNSUPPORTED_GROUPS = (
    ("(?=", "look-ahead"),
    ("(?!", "look-ahead"),
    ("(?<=", "look-behind"),
    ("(?<!", "look-behind"),
    ("(?P=", "a back-reference"),
    ("(?>", "an atomic group"),
    ("(?(", "a conditional group"),
    ("(?#", "a comment"),
)
_PLAIN = "test for it with a second matches()"


def compile_pattern(written: str) -> Pattern:
    """Compile, or raise `BadValue` with what is wrong and what to write instead."""
    if len(written) > LONGEST_PATTERN:
        raise BadValue(
            f"a regular expression of {len(written)} characters",
            f"keep it below {LONGEST_PATTERN}, or keep the entries in a store and use key_exists()",
        )
    try:
        return re.compile(_Translation(written).result())
    except re.error as error:
        raise BadValue(
            f"'{written}' is no regular expression: {error.msg}", "check its brackets and backslashes"
        ) from error
    except (OverflowError, RecursionError) as error:
        raise BadValue(f"'{written}' is too deep a regular expression", "make it simpler") from error


@dataclass(slots=True)
class _Group:
    """What is known of an open group while its body is read."""

    multiline: bool
    flags: list[str] = field(default_factory=list)
    """What each `(?i)` in it became: a group that ends with the alternative and begins again with the next."""
    atoms: int = 0
    """Atoms in the current alternative."""
    endless: bool = False
    """The last atom is repeated without end, or is a group that is nothing else."""
    ambiguous: bool = False
    """A finished alternative was one endless atom alone."""

    def end_alternative(self) -> None:
        self.ambiguous = self.ambiguous or (self.atoms == 1 and self.endless)
        self.atoms = 0
        self.endless = False


@dataclass(slots=True)
class _Translation:
    written: str
    at: int = 0
    out: list[str] = field(default_factory=list)
    groups: list[_Group] = field(default_factory=lambda: [_Group(False)])
    atom_is_ambiguous: bool = False
    """The last atom is a group that must not be repeated without end."""

    def result(self) -> str:
        while self.at < len(self.written):
            self.step()
        self.out.append(")" * len(self.groups[0].flags))
        return "".join(self.out)

    def step(self) -> None:
        character = self.written[self.at]
        if character == "\\":
            self.escape()
        elif character == "[":
            self.bracket()
        elif character == "(":
            self.open_group()
        elif character == ")":
            self.close_group()
        elif character == "|":
            group = self.groups[-1]
            group.end_alternative()
            self.put(")" * len(group.flags) + "|" + "".join(group.flags))
        elif repeat := _REPEAT.match(self.written, self.at):
            self.repetition(repeat)
        elif character == "$":
            self.put("$" if self.groups[-1].multiline else r"\Z")
        elif character == "^":
            self.put("^")
        elif character == "{":
            # Python takes {,3} for a repetition, RE2 for the characters.
            self.atom(r"\{", 1)
        else:
            self.atom(character, 1)

    def put(self, translated: str, length: int = 1) -> None:
        self.out.append(translated)
        self.at += length

    def atom(self, translated: str, length: int, ambiguous: bool = False) -> None:
        self.put(translated, length)
        self.groups[-1].atoms += 1
        self.groups[-1].endless = ambiguous
        self.atom_is_ambiguous = ambiguous

    def escape(self) -> None:
        if found := _HEX.match(self.written, self.at):
            code = int(found[1], 16)
            if code > 0x10FFFF:
                raise BadValue(f"{found[0]} is no character", "write at most \\x{10FFFF}")
            self.atom(re.escape(chr(code)), len(found[0]))
            return
        letter = self.written[self.at + 1 : self.at + 2]
        if not letter:
            raise BadValue(f"'{self.written}' ends with a backslash", "write \\\\ for the character itself")
        if letter.isdigit():
            raise BadValue(f"back-reference \\{letter}: not supported", _PLAIN)
        if letter in "pPQECGKkNRX":
            raise BadValue(
                f"\\{letter} is not supported in regular expressions", "write the characters as a class [...]"
            )
        if letter == "Z":
            raise BadValue("\\Z is not supported in regular expressions", "write \\z or $")
        if letter in "zAbB":
            self.put("\\Z" if letter == "z" else f"\\{letter}", 2)
        else:
            self.atom(self.written[self.at : self.at + 2], 2)

    def bracket(self) -> None:
        """Read a class up to its `]`."""
        start = self.at
        parts = ["[^"] if self.written.startswith("[^", start) else ["["]
        at = start + len(parts[0])
        first = True
        while first or self.written[at : at + 1] != "]":
            character = self.written[at : at + 1]
            if not character:
                raise BadValue(f"'{self.written}' has a [ without its ]", "close the class, or write \\[")
            if posix := _POSIX.match(self.written, at):
                if posix[1] not in _POSIX_CLASSES:
                    raise BadValue(f"{posix[0]} is no class", f"known are {', '.join(_POSIX_CLASSES)}")
                parts.append(_POSIX_CLASSES[posix[1]])
                at += len(posix[0])
            elif found := _HEX.match(self.written, at):
                parts.append(re.escape(chr(min(int(found[1], 16), 0x10FFFF))))
                at += len(found[0])
            elif character == "\\":
                pair = self.written[at : at + 2]
                if pair[1:] in ("p", "P"):
                    raise BadValue(f"{pair} is not supported in regular expressions", "write the characters themselves")
                parts.append(pair)
                at += 2
            else:
                # Python reserves [, &&, ||, ~~ and -- inside classes.
                doubled = character == "-" and parts[-1] == "-"
                parts.append(f"\\{character}" if character in "[&|~]" or doubled else character)
                at += 1
            first = False
        parts.append("]")
        self.atom("".join(parts), at + 1 - start)

    def open_group(self) -> None:
        for opening, name in _UNSUPPORTED_GROUPS:
            if self.written.startswith(opening, self.at):
                raise BadValue(f"{name} {opening}...): not supported in regular expressions", _PLAIN)
        group = _Group(self.groups[-1].multiline)
        if found := _NAMED.match(self.written, self.at):
            self.put(f"(?P<{found[1]}>", len(found[0]))
        elif flags := _FLAGS.match(self.written, self.at):
            self.flags(flags, group)
            if flags[3] == ")":
                return
        elif self.written.startswith("(?", self.at):
            raise BadValue(f"'{self.written}' has a group of an unknown kind", "write (...), (?:...) or (?i)")
        else:
            self.put("(")
        self.groups.append(group)

    def flags(self, found: re.Match[str], group: _Group) -> None:
        on, off = found[1], (found[2] or "-")[1:]
        if unknown := set(on + off) - set("ims"):
            raise BadValue(f"flag {min(unknown)} in {found[0]} is not supported", "the flags are i, m and s")
        if set(on) & set(off):
            raise BadValue(f"{found[0]} sets and clears the same flag", "write it once")
        multiline = ("m" in on) or (group.multiline and "m" not in off)
        opening = "(?" + on + (f"-{off}" if off else "") + ":"
        self.put(opening, len(found[0]))
        if found[3] == ")":
            # To the end of the group that it stands in, further alternatives included.
            self.groups[-1].flags.append(opening)
            self.groups[-1].multiline = multiline
        else:
            group.multiline = multiline

    def close_group(self) -> None:
        if len(self.groups) == 1:
            raise BadValue(f"'{self.written}' has a ) without its (", "remove it, or write \\)")
        group = self.groups.pop()
        group.end_alternative()
        self.atom(")" * (len(group.flags) + 1), 1, group.ambiguous)

    def repetition(self, found: re.Match[str]) -> None:
        least, comma, most = found[1], found[2], found[3]
        if any(int(count) > _MOST_REPEATS for count in (least, most) if count):
            raise BadValue(f"{found[0]} repeats more than {_MOST_REPEATS} times", "repeat less, or without a limit")
        self.put(found[0], len(found[0]))
        following = self.written[self.at : self.at + 1]
        if following == "?":
            self.put("?")
        elif following == "+":
            raise BadValue(f"{found[0]}+ is a possessive repetition: not supported", f"write {found[0]}")
        if found[0] in "*+" or (comma and not most):
            if self.atom_is_ambiguous:
                raise BadValue(
                    f"'{self.written}' repeats a group that is itself only a repetition",
                    "repeat once: (a+) instead of (a+)+, or a separator between them",
                )
            self.groups[-1].endless = True
