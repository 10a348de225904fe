"""As much of JSON Schema (draft 7) as the schema of the configuration uses."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
KEYWORDS = {
    *("$schema", "$ref", "title", "description", "default", "definitions", "type", "properties"),
    *("required", "additionalProperties", "items", "anyOf", "allOf", "enum", "pattern"),
    *("minimum", "maximum", "exclusiveMinimum", "minLength"),
}


def keywords(schema: object) -> Iterator[str]:
    """Every keyword a schema uses."""
    if not isinstance(schema, dict):
        return
    yield from schema
    for inner in (*schema.get("properties", {}).values(), *schema.get("definitions", {}).values()):
        yield from keywords(inner)
    for inner in (*schema.get("anyOf", ()), *schema.get("allOf", ())):
        yield from keywords(inner)
    for name in ("items", "additionalProperties"):
        yield from keywords(schema.get(name))


def faults(value: object, schema: dict, root: dict, path: str = "") -> list[str]:
    """What is wrong with a value, one line each; of several schemas that might fit, the nearest speaks."""
    if "$ref" in schema:
        return faults(value, root["definitions"][schema["$ref"].rpartition("/")[2]], root, path)
    found = []
    wanted = schema.get("type")
    if wanted is not None and not any(_is(value, name) for name in ([wanted] if isinstance(wanted, str) else wanted)):
        return [f"{path}: no {wanted}"]
    if "enum" in schema and not any(type(one) is type(value) and one == value for one in schema["enum"]):
        found.append(f"{path}: none of {schema['enum']}")
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            found.append(f"{path}: does not match")
        if len(value) < schema.get("minLength", 0):
            found.append(f"{path}: too short")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            found.append(f"{path}: out of bounds")
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
            found.append(f"{path}: out of bounds")
    if isinstance(value, list) and "items" in schema:
        for number, one in enumerate(value):
            found += faults(one, schema["items"], root, f"{path}.{number:04}")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{path}.{name}: missing" for name in schema.get("required", ()) if name not in value]
        for name, inner in value.items():
            below = known.get(name, schema.get("additionalProperties", True))
            if below is False:
                found.append(f"{path}.{name}: not allowed")
            elif below is not True:
                found += faults(inner, below, root, f"{path}.{name}")
    for one in schema.get("allOf", ()):
        found += faults(value, one, root, path)
    if "anyOf" in schema:
        each = [faults(value, one, root, path) for one in schema["anyOf"]]
        found += min(each, key=len)
    return found


def _is(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name])
