"""Text of an expression to tokens, each with the column it starts at.

A dashed word such as `authenticated-as` is one token where it is exactly the name
of a variable; anywhere else a dash is the operator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from mailgate.expr.error import ExpressionError
from mailgate.expr.scope import NAMES
from mailgate.expr.value import INTEGER_MAX, UNIT_MILLISECONDS, Type, Value

LONGEST_EXPRESSION = 16384


class Kind(Enum):
    """What a token is."""

    LITERAL = "literal"
    WORD = "word"
    CAPTURE = "capture"
    OPERATOR = "operator"
    END = "end"


@dataclass(frozen=True, slots=True)
class Token:
    """One token; `text` is its canonical spelling, `column` counts from 1."""

    kind: Kind
    text: str
    column: int
    value: Value = 0
    type: Type = Type.NOTHING
    written: str | None = None
    """For texts what stands between the quotes, only escaped quotes resolved; for durations the spelling."""

    @property
    def shown(self) -> str:
        """For error messages."""
        return "the end" if self.kind is Kind.END else self.text


_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\r\n]+)
    | (?P<number>[0-9][0-9A-Za-z_.$]*)
    | (?P<word>[A-Za-z_][0-9A-Za-z_.$]*(?P<dashed>(?:-[0-9A-Za-z_.$]+)*))
    | (?P<dollar>\$[0-9A-Za-z_.$]*)
    | (?P<string>'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*")
    | (?P<operator>>=|=>|<=|=<|==|!=|&&|\|\||[-+*/()\[\],=<>!^&|])
    """,
    re.VERBOSE | re.DOTALL,
)
_CANONICAL = {"=>": ">=", "=<": "<=", "==": "=", "&&": "&", "||": "|"}
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}
_NUMBER = re.compile(r"([0-9]+)(\.[0-9]+)?")
_DURATION = re.compile(r"([0-9]+)(ms|[dhms])")
_ADVICE_FOR = {
    "{": "functions take (...), arrays [...]",
    "}": "functions take (...), arrays [...]",
    "'": "a text ends with the quote it began with",
    '"': "a text ends with the quote it began with",
    ";": "an expression is one value; leave it out",
    "~": "for regular expressions write matches('...', x)",
    "%": "there is no remainder; texts stand in quotes",
    "?": "write if_then(condition, yes, no)",
    "@": "texts stand in quotes: 'user@example.org'",
}


def tokens(written: str) -> list[Token]:
    """All tokens of an expression, the last one `END`; raises `ExpressionError`."""
    if len(written) > LONGEST_EXPRESSION:
        raise ExpressionError(
            f"the expression is longer than {LONGEST_EXPRESSION} characters",
            "keep long lists in a store and use key_exists()",
        )
    found: list[Token] = []
    at = 0
    while at < len(written):
        match = _TOKEN.match(written, at)
        if match is None:
            character = written[at]
            problem = "a text without its closing quote" if character in "'\"" else f"unexpected character {character}"
            raise ExpressionError(problem, _ADVICE_FOR.get(character, "texts stand in quotes"), at + 1)
        kind = match.lastgroup if match.lastgroup != "dashed" else "word"
        column = at + 1
        at = match.end()
        if kind == "number":
            found.append(_number(match[0], column))
        elif kind == "word":
            word = match[0]
            whole = word.replace("-", "_")
            if match["dashed"] and whole not in NAMES:
                at -= len(match["dashed"])
                whole = word[: len(word) - len(match["dashed"])]
            found.append(Token(Kind.WORD, whole, column))
        elif kind == "dollar":
            found.append(_dollar(match[0], column))
        elif kind == "string":
            found.append(_string(match[0], column))
        elif kind == "operator":
            found.append(Token(Kind.OPERATOR, _CANONICAL.get(match[0], match[0]), column))
    found.append(Token(Kind.END, "", len(written) + 1))
    return found


def _number(written: str, column: int) -> Token:
    if found := _DURATION.fullmatch(written):
        milliseconds = _within(found[1], column) * UNIT_MILLISECONDS[found[2]]
        if not milliseconds:
            raise ExpressionError(
                f"{written} is no duration: it must be more than zero", "write false for none", column
            )
        if milliseconds > INTEGER_MAX:
            raise ExpressionError(f"{written} is too long a duration", "write a shorter one", column)
        return Token(Kind.LITERAL, written, column, milliseconds, Type.DURATION, written)
    number = _NUMBER.fullmatch(written)
    if number is None:
        raise ExpressionError(
            f"{written} is neither a number nor a duration",
            "durations are digits and one of d h m s ms; texts stand in quotes",
            column,
        )
    if number[2]:
        return Token(Kind.LITERAL, written, column, float(written), Type.FLOAT)
    return Token(Kind.LITERAL, written, column, _within(written, column), Type.INTEGER)


def _within(digits: str, column: int) -> int:
    # 19 digits are enough for 64 bits.
    significant = digits.lstrip("0") or "0"
    if len(significant) > 19 or int(significant) > INTEGER_MAX:
        raise ExpressionError(f"{digits} is too large a number", f"numbers go up to {INTEGER_MAX}", column)
    return int(significant)


def _dollar(written: str, column: int) -> Token:
    name = written[1:]
    if name.isascii() and name.isdigit() and len(name) <= 3:
        return Token(Kind.CAPTURE, written, column, int(name))
    if name and not name[0].isdigit():
        # The mark of a spam tag: no tag is set outside the spam filter's rules.
        return Token(Kind.LITERAL, written, column, 0, Type.INTEGER)
    raise ExpressionError(f"{written} is no capture", "write $1 for the first group of matches()", column)


def _string(written: str, column: int) -> Token:
    quote, body = written[0], written[1:-1]
    value, raw = body, body
    if "\\" in body:
        value = _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[0]), body)
        raw = _ESCAPE.sub(lambda found: quote if found[1] == quote else found[0], body)
    return Token(Kind.LITERAL, written, column, value, Type.STRING, raw)
