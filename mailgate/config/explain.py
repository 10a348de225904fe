"""The reference page of the configuration, from the declarations themselves.

`python -m mailgate.config.explain` writes it to standard output; `make doc`
keeps it in `doc/configuration.md`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mailgate.config.effective import ANY_ID
from mailgate.config.key import (
    Absent,
    Derived,
    EntriesDeclaration,
    KeyDeclaration,
    RuleDeclaration,
    TableDeclaration,
    TableListDeclaration,
    TablesDeclaration,
    layout,
)
from mailgate.config.schema.older import OLDER
from mailgate.config.schema.settings import Settings
from mailgate.config.schema.unsupported import REFUSAL, UNSUPPORTED, WITHOUT_EFFECT
from mailgate.expr.scope import Context

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_HEAD = """\
# Configuration reference

Made from the declarations in `mailgate/config/schema` by `make doc`: do not edit.

mailgate reads a file of TOML 1.0, and beside it `conf.d/*.toml` in the order of their names (neither
hidden files nor those that editors and package managers leave behind, such as `x.toml~`). Tables of
several files are merged, entries of `[[...]]` follow each other; any other key stands in one file
only. A configuration with any error is refused as a whole, with every error in it at once;
`mailgate config check FILE` shows them, `mailgate config show --effective --origin` what is in
effect and where it is written. Unknown keys are errors. Relative paths are relative to the
directory mailgate is started in. `mailgate.schema.json` beside this page is for editors that check
TOML by a JSON Schema.

| Type | How it is written |
|---|---|
| boolean | `true`, `false` |
| integer | `100`, or a string of digits |
| size | a number of bytes, or a string with `k`, `kb`, `m`, `mb`, `g`, `gb` (of 1024) |
| duration | a string such as `"5m"` (units `d h m s ms`), or a number of milliseconds; never zero |
| list | `["a", "b"]`; a single value stands for a list of one |
| socket address | `"192.0.2.1:25"`, `"[2001:db8::1]:25"`, `"[::]:25"` |
| expression | a string such as `"listener = 'smtp'"`, or `[ { if = "...", then = "..." }, { else = "..." } ]`; |
| | the word after it is the context that says which variables there are |

Values that may be unset are switched off by leaving them out. Strings may hold macros:
`%{env:NAME}%` an environment variable, `%{file:/path}%` the contents of a file, `%{cfg:key}%` the
value of another key. What the first two insert is never shown in an error or a log.

Where an expression cannot be answered because DNS, a directory or a list is out of reach, the
client is told to try again; an element `{ on-error = "accept" }` or `"reject"` says otherwise.
"""


def reference() -> str:
    """The whole page, in Markdown."""
    parts = [_HEAD]
    for entry in layout(Settings):
        parts += _section(entry.declaration, (entry.name,))
    parts += _closing()
    return "\n".join(parts).rstrip("\n") + "\n"


def _section(declaration: object, path: tuple[str, ...]) -> Iterator[str]:
    match declaration:
        case TableDeclaration(inherits=inherits) if inherits:
            yield f"## {_heading(path)}\n\nThe keys of `{inherits}`. One that is not given here is as given there.\n"
        case TableDeclaration(type=inner):
            yield from _table(inner, path, "")
        case TablesDeclaration() as many:
            yield from _tables(many, path)
        case TableListDeclaration(type=inner):
            yield from _table(inner, (*path, "[]"), "")
        case EntriesDeclaration(doc=doc):
            yield f"## {_heading((*path, ANY_ID))}\n\n{doc}\n"


def _tables(many: TablesDeclaration, path: tuple[str, ...]) -> Iterator[str]:
    for word, inner in many.variants.items():
        builtin = [name for name, values in many.builtin.items() if values.get("type", "") == word]
        note = "Built in: " + ", ".join(f"`{name}`" for name in builtin) + "." if builtin else ""
        yield from _table(inner, (*path, ANY_ID), note, word)


def _table(type: type[DataclassInstance], path: tuple[str, ...], note: str, word: str = "") -> Iterator[str]:
    told = " ".join(part for part in (inspect.cleandoc(type.__doc__ or ""), note) if part)
    title = _heading(path) + (f' of type "{word}"' if word else "")
    rows = [row for entry in layout(type) if (row := _row(entry.name, entry.declaration))]
    yield f"## {title}\n\n{told}\n"
    if word:
        rows.insert(0, f'| `type` | `"{word}"` | required | Says which keys there are. |')
    if rows:
        yield "| Key | Type | Default | |\n|---|---|---|---|"
        yield "\n".join(rows) + "\n"
    for entry in layout(type):
        yield from _section(entry.declaration, (*path, entry.name))


def _heading(path: tuple[str, ...]) -> str:
    return ".".join(path).replace(".[]", "[]")


def _row(name: str, declaration: object) -> str:
    match declaration:
        case KeyDeclaration() as key:
            kind = key.kind.name
        case RuleDeclaration() as key:
            kind = f"expression ({key.context.value}) for {key.wanted}"
        case _:
            return ""
    unit = f", {key.unit}" if key.unit else ""
    also = f" Also written {', '.join(f'`{one}`' for one in key.synonyms)}." if key.synonyms else ""
    inherits = key.inherits if isinstance(key, KeyDeclaration) else ""
    default = f"`{inherits}`, else {_shown(key.default)}" if inherits else _default(key.default)
    return f"| `{name}` | {_cell(kind + unit)} | {_cell(default)} | {_cell(key.doc + also)} |"


def _default(default: object) -> str:
    if isinstance(default, Derived):
        return default.doc
    if isinstance(default, Absent):
        return default.value
    return _shown(default)


def _shown(value: object) -> str:
    """A default as the file would say it."""
    return f"`{_toml(value)}`"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }"
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _closing() -> Iterator[str]:
    yield "## Contexts of expressions\n"
    yield "| Context | When |\n|---|---|"
    yield "\n".join(f"| {context.value} | {_CONTEXTS[context]} |" for context in Context) + "\n"
    yield "## Known keys that this version does not support\n"
    yield f'Each is refused as "{REFUSAL}". Values that only switch the feature off are accepted.\n'
    yield "| Key | Accepted |\n|---|---|"
    for one in UNSUPPORTED:
        off = ", ".join(f"`{_toml(value)}`" for value in one.off)
        yield f"| `{one.pattern.text}` | {off or '-'} |"
    effectless = ", ".join(f"`{pattern.text}`" for pattern in WITHOUT_EFFECT)
    yield f"\nAccepted with a warning, and without effect: {effectless}.\n"
    yield "## Keys of earlier releases\n\nThey are refused; the error says what to write.\n"
    yield "| Key | Now |\n|---|---|"
    for older in OLDER:
        yield f"| `{older.pattern.text}` | {older.advice} |"


_CONTEXTS = {
    Context.CONN: "a connection was accepted",
    Context.EHLO: "a client has said EHLO, HELO or LHLO",
    Context.MAIL: "a client gives the sender",
    Context.RCPT: "a client gives a recipient, and everything later in the transaction",
    Context.ADDR: "an address is looked up in a directory",
    Context.RECIPIENT: "delivery: one recipient of a queued message",
    Context.HOST: "delivery: one host a queued message is sent to",
}


if __name__ == "__main__":
    sys.stdout.write(reference())
