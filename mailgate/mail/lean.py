"""Frozen values that are made as fast as any other.

A frozen dataclass stores each field by a call of its own, because its guard
against assignment would refuse the plain one; making a context of ten fields
takes four times as long for it, and a message passes through a dozen such
values. `lean` takes the guard away at run time and stores plainly. That
nobody assigns is what the type checker sees to: to it the class is frozen.
"""

from __future__ import annotations

from dataclasses import MISSING, Field
from typing import TypeVar

T = TypeVar("T")


def lean(cls: type[T]) -> type[T]:
    """Give a frozen dataclass a plain `__init__`; its bases have to be lean as well.

    Raises `TypeError` for what is no frozen dataclass, and for fields that are
    made by a factory or not given at all.
    """
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise TypeError(f"{cls.__name__} is no frozen dataclass")
    names: dict[str, object] = {}
    given = ["self"]
    body = []
    fields: dict[str, Field[object]] = vars(cls)["__dataclass_fields__"]
    for field in fields.values():
        if not field.init or field.default_factory is not MISSING:
            raise TypeError(f"{cls.__name__}.{field.name} is made by more than its name")
        default = f"_default_{field.name}"
        if field.default is MISSING:
            given.append(field.name)
        else:
            names[default] = field.default
            given.append(f"{field.name}={default}")
        body.append(f" self.{field.name} = {field.name}")
    source = f"def __init__({', '.join(given)}):\n" + "\n".join(body)
    made: dict[str, object] = {}
    exec(compile(source, f"<lean {cls.__name__}>", "exec"), names, made)
    for name in ("__setattr__", "__delattr__"):
        if name in cls.__dict__:
            delattr(cls, name)
    setattr(cls, "__init__", made["__init__"])  # noqa: B010 - the type checker takes offence at the plain form
    return cls
