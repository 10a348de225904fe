"""Every function of the language by its name."""

from __future__ import annotations

from mailgate.expr.functions import array, lookup, mail, text
from mailgate.expr.functions.function import Function

FUNCTIONS: dict[str, Function] = {
    function.name: function
    for room in (text.FUNCTIONS, array.FUNCTIONS, mail.FUNCTIONS, lookup.FUNCTIONS)
    for function in room
}
