"""Manual pages from the Markdown the documents are written in.

Only what they use is understood: headings, paragraphs, lists, indented code,
tables, and `code` and **bold** in a line. A table becomes a list: the first
cell is the term, the others are told below it.

`python -m mailgate.config.manual` writes mailgate.toml(5), the reference page
of the configuration, to standard output.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from mailgate import __version__
from mailgate.config.explain import reference

_SEE_ALSO = """
## FILES

| File | |
|---|---|
| `/etc/mailgate/mailgate.toml` | The configuration. |
| `/etc/mailgate/conf.d/*.toml` | Further parts of it. |
| `/usr/share/doc/mailgate/expressions.md` | The language of its rules. |
| `/usr/share/doc/mailgate/mailgate.schema.json` | For editors: a JSON Schema. |

## SEE ALSO

**mailgate**(8)
"""

_CODE = re.compile(r"``?([^`]+)``?")
_BOLD = re.compile(r"\*\*([^*]+)\*\*")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
_CELL = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r"\|[-| :]+\|$")


def page(name: str, section: int, summary: str, markdown: str) -> str:
    """A manual page: its name and what it is in a line, then the sections of a text."""
    head = [
        f'.TH "{name.upper()}" {section} "" "mailgate {__version__}" "mailgate"',
        ".nh",
        ".ad l",
        ".SH NAME",
        f"{_plain(name)} \\- {_inline(summary)}",
    ]
    return "\n".join([*head, *_lines(markdown)]) + "\n"


def _lines(markdown: str) -> Iterator[str]:
    waiting: list[str] = []
    headings: list[str] = []
    for line in [*markdown.splitlines(), ""]:
        is_table = line.startswith("|")
        if waiting and (not line or is_table or line.startswith(("#", "    ", "- "))):
            yield from _paragraph(waiting)
            waiting = []
        if not is_table:
            headings = []
        if line.startswith("#"):
            level, _, title = line.partition(" ")
            if len(level) > 1:
                yield f'.{"SH" if len(level) == 2 else "SS"} "{_quoted(title)}"'
        elif line.startswith("    ") and not waiting:
            yield from (".PP", ".nf", f"    {_plain(line[4:])}", ".fi")
        elif is_table:
            cells = [cell.strip().replace("\\|", "|") for cell in _CELL.split(line)[1:-1]]
            if not headings:
                headings = cells or [""]
            elif not _RULE.match(line):
                yield from _row(headings, cells)
        elif line:
            waiting.append(line)


def _paragraph(lines: list[str]) -> Iterator[str]:
    text = " ".join(line.strip() for line in lines)
    if text.startswith("- "):
        yield '.IP "\\(bu" 2'
        text = text[2:]
    else:
        yield ".PP"
    yield _safe(_inline(text))


def _row(headings: list[str], cells: list[str]) -> Iterator[str]:
    if not cells[0]:
        # It goes on with the row above.
        yield from (_safe(_inline(cell)) for cell in cells[1:] if cell)
        return
    yield from (".TP", _safe(_inline(cells[0])))
    for heading, cell in zip(headings[1:], cells[1:], strict=False):
        if cell:
            named = f"{heading.lower()}: " if heading and len(cells) > 2 else ""
            yield _safe(_inline(named + cell))
            yield ".br"


def _inline(text: str) -> str:
    """A line of Markdown: code and bold in bold, links as what they say."""
    parts = []
    rest = 0
    for match in re.finditer(rf"{_CODE.pattern}|{_BOLD.pattern}|{_LINK.pattern}", text):
        parts.append(_plain(text[rest : match.start()]))
        code, bold, link = match.groups()
        parts.append(_plain(link) if link else f"\\fB{_plain(code or bold)}\\fR")
        rest = match.end()
    return "".join([*parts, _plain(text[rest:])])


def _plain(text: str) -> str:
    """Text that roff takes as it stands."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")


def _quoted(text: str) -> str:
    return _plain(text.replace("`", "")).replace('"', "\\(dq")


def _safe(line: str) -> str:
    """A line that does not begin as a request."""
    return f"\\&{line}" if line.startswith((".", "'")) else line


def configuration_page() -> str:
    """mailgate.toml(5): what the reference page says."""
    _, _, text = reference().partition("do not edit.\n")
    return page("mailgate.toml", 5, "the configuration of mailgate", f"## DESCRIPTION\n{text}{_SEE_ALSO}")


if __name__ == "__main__":
    sys.stdout.write(configuration_page())
