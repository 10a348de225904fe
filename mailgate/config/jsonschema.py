"""The configuration as JSON Schema (draft 7), from the declarations themselves, for editors that check TOML.

`python -m mailgate.config.jsonschema` writes it to standard output; `make doc`
keeps it in `doc/mailgate.schema.json`. Whatever loads fits the schema; what
only the loader can see (names, expressions, files) the schema lets pass.
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import TYPE_CHECKING

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
from mailgate.config.kind import any_of, words_schema
from mailgate.config.reader import DESCRIPTION
from mailgate.config.schema.settings import Settings
from mailgate.config.schema.unsupported import UNSUPPORTED, WITHOUT_EFFECT

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Schema = dict[str, object]

_EXPRESSION: Schema = {
    "anyOf": [
        {"type": ["string", "boolean", "number"]},
        {"type": "array", "items": {"type": ["string", "boolean", "number"]}},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "if": {"type": ["string", "boolean", "number"]},
                    "then": {},
                    "else": {},
                    "on-error": {"enum": ["tempfail", "accept", "reject"]},
                },
                "additionalProperties": False,
            },
        },
    ]
}


def schema() -> Schema:
    """The whole schema."""
    whole = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "mailgate.toml",
        **_table(Settings),
        "definitions": {"expression": _EXPRESSION},
    }
    for one in UNSUPPORTED:
        if one.off:
            _allow(whole, one.pattern.parts, _off(one.off))
    for pattern in WITHOUT_EFFECT:
        _allow(whole, pattern.parts, {"description": "Accepted, and without effect."})
    return whole


def text() -> str:
    """The schema as the file has it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _table(type: type[DataclassInstance], word: str | None = None, named: bool = False) -> Schema:
    """One table; `word` is what its key `type` says, `named` whether the operator chose its name."""
    properties: Schema = {}
    required = []
    if word is not None:
        properties["type"] = dict(words_schema([word]))
        required.append("type")
    if named:
        properties[DESCRIPTION] = {"type": "string", "description": "For people."}
    for entry in layout(type):
        below = _declared(entry.declaration)
        properties.update(dict.fromkeys(entry.spellings, below))
        if isinstance(entry.declaration, KeyDeclaration) and entry.declaration.default is Absent.REQUIRED:
            required.append(entry.name)
    return {
        "type": "object",
        "description": inspect.cleandoc(type.__doc__ or ""),
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _declared(declaration: object) -> Schema:
    match declaration:
        case KeyDeclaration() as key:
            return {"description": key.doc, **_default(key.default), **key.kind.json}
        case RuleDeclaration() as key:
            told = f"{key.doc} An expression for {key.wanted}."
            return {"description": told, **_default(key.default), "allOf": [{"$ref": "#/definitions/expression"}]}
        case TableDeclaration(type=inner):
            return _table(inner)
        case TableListDeclaration(type=inner):
            return dict(any_of({"type": "array", "items": _table(inner)}, _table(inner)))
        case TablesDeclaration(variants=variants):
            tables = [_table(inner, word or None, named=True) for word, inner in variants.items()]
            each = tables[0] if len(tables) == 1 else dict(any_of(*tables))
            named: Schema = {"type": "object", "additionalProperties": each}
            return dict(any_of(named, {"type": "array", "items": each})) if declaration.listed else named
        case EntriesDeclaration() as entries:
            return {"type": "object", "description": entries.doc, "additionalProperties": dict(entries.kind.json)}
    raise TypeError(f"{declaration!r} is no declaration")


def _default(default: object) -> Schema:
    return {} if isinstance(default, (Absent, Derived)) else {"default": default}


def _off(values: tuple[object, ...]) -> Schema:
    others = [value for value in values if not isinstance(value, str)]
    words = words_schema(word for value in values if isinstance(value, str) for word in (value, f"'{value}'"))
    told = any_of(words, {"enum": others}) if others else words
    return {"description": "Known, not supported by this version: it can only be switched off.", **told}


def _allow(node: object, parts: tuple[str, ...], leaf: Schema) -> None:
    """Let a table have a key that nobody declared; tables on the way to it are made."""
    if not isinstance(node, dict):
        return
    variants = node.get("anyOf")
    if isinstance(variants, list):
        for variant in variants:
            _allow(variant, parts, leaf)
        return
    first, rest = parts[0], parts[1:]
    if first == "*":
        _allow(node.get("additionalProperties"), rest, leaf)
        return
    properties = node.get("properties")
    if not isinstance(properties, dict):
        return
    if not rest or rest == ("**",):
        properties.setdefault(first, leaf)
        return
    made: Schema = {"type": "object", "properties": {}, "additionalProperties": False}
    below = properties.setdefault(first, made)
    if not _has_tables(below):
        properties[first] = below = dict(any_of(below, made))
    _allow(below, rest, leaf)


def _has_tables(node: Schema) -> bool:
    variants = node.get("anyOf")
    each = variants if isinstance(variants, list) else [node]
    return any("properties" in one or "additionalProperties" in one for one in each)


if __name__ == "__main__":
    sys.stdout.write(text())
