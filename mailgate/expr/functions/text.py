"""Functions over texts. Numbers are taken in their text form."""

from __future__ import annotations

import hashlib

from mailgate.expr.functions.function import Function
from mailgate.expr.value import Type, Value, number, text


def _trim(s: Value) -> Value:
    return text(s).strip()


def _trim_start(s: Value) -> Value:
    return text(s).lstrip()


def _trim_end(s: Value) -> Value:
    return text(s).rstrip()


def _to_lowercase(s: Value) -> Value:
    return text(s).lower()


def _to_uppercase(s: Value) -> Value:
    return text(s).upper()


def _is_uppercase(s: Value) -> Value:
    return int(all(character.isupper() for character in text(s) if character.isalpha()))


def _is_lowercase(s: Value) -> Value:
    return int(all(character.islower() for character in text(s) if character.isalpha()))


def _has_digits(s: Value) -> Value:
    return int(any("0" <= character <= "9" for character in text(s)))


def _count_spaces(s: Value) -> Value:
    return sum(map(str.isspace, text(s)))


def _count_uppercase(s: Value) -> Value:
    return sum(map(str.isupper, text(s)))


def _count_lowercase(s: Value) -> Value:
    return sum(map(str.islower, text(s)))


def _count_chars(s: Value) -> Value:
    return len(text(s))


def ascii_lower(s: str) -> str:
    """Lower case of the ASCII letters alone."""
    return s.lower() if s.isascii() else s.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def _eq_ignore_case(a: Value, b: Value) -> Value:
    return int(ascii_lower(text(a)) == ascii_lower(text(b)))


def _starts_with(s: Value, p: Value) -> Value:
    return int(text(s).startswith(text(p)))


def _ends_with(s: Value, p: Value) -> Value:
    return int(text(s).endswith(text(p)))


def _lines(s: Value) -> Value:
    pieces = text(s).split("\n")
    if not pieces[-1]:
        pieces.pop()
    return tuple(piece.removesuffix("\r") for piece in pieces)


def _substring(s: Value, start: Value, count: Value) -> Value:
    first = max(0, int(number(start)))
    return text(s)[first : first + max(0, int(number(count)))]


def _strip_prefix(s: Value, p: Value) -> Value:
    whole, prefix = text(s), text(p)
    return whole[len(prefix) :] if whole.startswith(prefix) else ""


def _strip_suffix(s: Value, p: Value) -> Value:
    whole, suffix = text(s), text(p)
    return whole[: len(whole) - len(suffix)] if whole.endswith(suffix) else ""


def _pieces(whole: str, delimiter: str, most: int = -1) -> tuple[str, ...]:
    # An empty delimiter is nowhere in the text: one piece, as for any other that is not found.
    return tuple(whole.split(delimiter, most)) if delimiter else (whole,)


def _split(s: Value, d: Value) -> Value:
    return _pieces(text(s), text(d))


def _split_n(s: Value, d: Value, n: Value) -> Value:
    return _pieces(text(s), text(d), max(0, int(number(n))))


def _split_once(s: Value, d: Value) -> Value:
    pieces = _pieces(text(s), text(d), 1)
    return pieces if len(pieces) == 2 else ""


def _rsplit_once(s: Value, d: Value) -> Value:
    whole, delimiter = text(s), text(d)
    if not delimiter or delimiter not in whole:
        return ""
    return tuple(whole.rsplit(delimiter, 1))


def _split_words(s: Value) -> Value:
    return tuple(word for word in text(s).split() if word.isalnum())


_ALGORITHMS = frozenset({"md5", "sha1", "sha256", "sha512"})


def _hash(s: Value, alg: Value) -> Value:
    algorithm = text(alg)
    if algorithm not in _ALGORITHMS:
        return ""
    return hashlib.new(algorithm, text(s).encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


_S = ("s",)
_TRUTH = Type.INTEGER

FUNCTIONS = (
    Function("trim", _S, Type.STRING, "Text without white space at both ends.", _trim, maps=True),
    Function("trim_start", _S, Type.STRING, "Text without white space at its start.", _trim_start, maps=True),
    Function("trim_end", _S, Type.STRING, "Text without white space at its end.", _trim_end, maps=True),
    Function("to_lowercase", _S, Type.STRING, "Text in lower case.", _to_lowercase, maps=True),
    Function("to_uppercase", _S, Type.STRING, "Text in upper case.", _to_uppercase, maps=True),
    Function(
        "is_uppercase", _S, _TRUTH, "1 when every letter is upper case, also without letters.", _is_uppercase, maps=True
    ),
    Function(
        "is_lowercase", _S, _TRUTH, "1 when every letter is lower case, also without letters.", _is_lowercase, maps=True
    ),
    Function("has_digits", _S, _TRUTH, "1 when there is a digit 0 to 9.", _has_digits, maps=True),
    Function("count_spaces", _S, Type.INTEGER, "Number of white space characters.", _count_spaces),
    Function("count_uppercase", _S, Type.INTEGER, "Number of upper case letters.", _count_uppercase),
    Function("count_lowercase", _S, Type.INTEGER, "Number of lower case letters.", _count_lowercase),
    Function("count_chars", _S, Type.INTEGER, "Number of characters.", _count_chars),
    Function(
        "eq_ignore_case",
        ("a", "b"),
        _TRUTH,
        "1 when the texts are equal but for the case of ASCII letters.",
        _eq_ignore_case,
    ),
    Function("starts_with", ("s", "p"), _TRUTH, "1 when the text begins with `p`.", _starts_with),
    Function("ends_with", ("s", "p"), _TRUTH, "1 when the text ends with `p`.", _ends_with),
    Function("lines", _S, Type.ARRAY, "Array of the lines of a text.", _lines),
    Function(
        "substring",
        ("s", "start", "count"),
        Type.STRING,
        "`count` characters from character `start`, which counts from 0.",
        _substring,
    ),
    Function(
        "strip_prefix",
        ("s", "p"),
        Type.STRING,
        "What follows the prefix `p`; empty when the text does not begin with it.",
        _strip_prefix,
        maps=True,
    ),
    Function(
        "strip_suffix",
        ("s", "p"),
        Type.STRING,
        "What precedes the suffix `p`; empty when the text does not end with it.",
        _strip_suffix,
        maps=True,
    ),
    Function("split", ("s", "d"), Type.ARRAY, "Array of the pieces between delimiters `d`.", _split),
    Function("rsplit", ("s", "d"), Type.ARRAY, "The same as `split`, in the same order.", _split),
    Function(
        "split_once",
        ("s", "d"),
        Type.ARRAY | Type.STRING,
        "The two pieces around the first `d`; the empty text when there is none.",
        _split_once,
    ),
    Function(
        "rsplit_once",
        ("s", "d"),
        Type.ARRAY | Type.STRING,
        "The two pieces around the last `d`; the empty text when there is none.",
        _rsplit_once,
    ),
    Function("split_n", ("s", "d", "n"), Type.ARRAY, "Array of pieces after at most `n` splits.", _split_n),
    Function(
        "split_words", _S, Type.ARRAY, "The words between white space that are only letters and digits.", _split_words
    ),
    Function(
        "hash", ("s", "alg"), Type.STRING, "Digest in hexadecimal; `alg` is `md5`, `sha1`, `sha256` or `sha512`.", _hash
    ),
    Function(
        "matches",
        ("'re'", "s"),
        _TRUTH,
        "1 when the regular expression is found in the text; sets the captures `$0`, `$1`, ... or clears them.",
    ),
)
