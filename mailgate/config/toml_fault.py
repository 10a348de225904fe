"""What to write instead of a text that is no TOML.

`tomllib` says where it stopped; what an operator most likely meant there is
guessed from the line. Text that is no TOML is the one error of its file.
"""

from __future__ import annotations

import re

from mailgate.config.error import ConfigError, dotted
from mailgate.config.place import places

_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_REPEATED = ("Cannot declare", "Cannot overwrite", "Cannot mutate", "Cannot define", "Duplicate inline table key")
_BARE_VALUE = re.compile(r"""(?:=|\[|,)[ \t]*([A-Za-z0-9_.:/@-]+)[ \t]*(?:#.*|[,\]}].*)?$""")
_SET = re.compile(r"""\{[ \t]*("[^"]*"|'[^']*')[ \t]*[,}]""")

_GENERAL = (
    ("'=' after a key", "write key = value, or [table]"),
    ("end of a table declaration", "write [table]"),
    ("Unclosed array", "after each element comes a comma or ]"),
    ("Unclosed inline table", "after each value comes a comma or }"),
    ("Expected newline", "write one value on a line, strings in quotes"),
    ("Invalid value", "write a value after =, strings in quotes"),
    ("Unterminated string", "close the string with the quotes it began with"),
    ('Expected "', "close the string with the quotes it began with"),
)
_ELSE = "the file has to be TOML 1.0"


def toml_fault(text: str, file: str, wrong: Exception) -> ConfigError:
    """The error for a text that `tomllib` refused with `wrong`."""
    if isinstance(wrong, RecursionError):
        return ConfigError(file, 1, "", "not TOML: nested too deeply", "nothing here needs brackets in brackets")
    told = str(wrong)
    place = _PLACE.search(told)
    problem = told[: place.start()] if place else told
    lines = text.split("\n")
    line = int(place[1]) if place and place[1] else len(lines)
    column = int(place[2]) if place and place[2] else len(lines[-1]) + 1
    before = "\n".join(lines[: line - 1] + [lines[line - 1][: column - 1]])
    if problem.startswith(_REPEATED):
        return _repeated(text, file, line, problem)
    found = places(before)
    shown = "".join(c if c.isprintable() else "?" for c in problem)
    key = dotted(found.last) if found.last_end in (None, line) else ""
    if problem.startswith("Exceeds the limit"):
        return ConfigError(file, line, key, "a number has too many digits", "19 are the most")
    at_end = not (place and place[1]) and not lines[line - 1].strip()
    at = line - 1 if line > 1 and at_end else line
    return ConfigError(file, at, key, f"not TOML: {shown}", _advice(lines[line - 1], column, problem))


def _repeated(text: str, file: str, line: int, problem: str) -> ConfigError:
    found = places(text)
    near = [one for one in found.repeated if one[2] <= line]
    if near:
        path, first, again = near[-1]
        return ConfigError(file, again, dotted(path), f"given twice, first in line {first}", "keep one of them")
    return ConfigError(file, line, dotted(found.last), "given twice", "keep one of them")


def _advice(line: str, column: int, problem: str) -> str:
    here = line[column - 1 :]
    before = line[: column - 1]
    if "Unescaped" in problem or "hex value" in problem:
        return r"""write the string as '...', or each backslash as \\"""
    if _ends_in_open_string(before, "'") and not here:
        return "close the string with ' on its line; one over several lines is written '''...'''"
    if _ends_in_open_string(before, '"') and not here:
        return 'close the string with " on its line; one over several lines is written """..."""'
    if _SET.search(line) and "key/value pair" in problem:
        return 'a list is written ["a", "b"]'
    if _in_inline_table(before) and ("key part" in problem or "inline table" in problem):
        return "an inline table is written on one line without a comma at its end, or as a table of its own"
    if (bare := _BARE_VALUE.search(line)) and not _is_literal(bare[1]) and not line.lstrip().startswith("["):
        return f'put the value into quotes: "{bare[1]}"'
    return next((advice for told, advice in _GENERAL if told in problem), _ELSE)


def _ends_in_open_string(before: str, quote: str) -> bool:
    rest = re.sub(r"""'[^']*'|"(?:[^"\\]|\\.)*\"""", "", before)
    return quote in rest


def _in_inline_table(before: str) -> bool:
    rest = re.sub(r"""'[^']*'|"(?:[^"\\]|\\.)*\"""", "", before)
    return rest.count("{") > rest.count("}")


def _is_literal(text: str) -> bool:
    return text in ("true", "false") or re.fullmatch(r"[+-]?\d+(\.\d+)?", text) is not None
