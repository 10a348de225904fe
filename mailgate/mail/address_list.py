"""Addresses as people write them: lists, names, groups, comments, folded lines (RFC 5322 3.4, 4.4).

What a header field or a command line holds is read leniently, and comes out as
the plain addresses of an envelope: `local@domain`, quoting resolved, a local
part alone where no domain was given. Names, encoded words among them, are
skipped, comments too. Nothing here knows a header field's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# A control character has no place in an address, quoted or not: it would end a line of somebody's protocol.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u2028\u2029]")
_ATOM = re.compile(r"[^\s()<>\[\]:;@\\,.\"]+")
_LONGEST = 320
"""RFC 5321 4.5.3.1: a local part of 64 octets, a domain of 255, and the sign between them."""


class BadAddress(ValueError):
    """What was to be an address is none; the text says what was found."""


class _Token(NamedTuple):
    kind: str
    """`word` (an atom or a quoted string), `literal`, or the special character itself."""
    text: str


def addresses(text: str) -> list[str]:
    """The addresses of a list, in order. Raises `BadAddress`."""
    found: list[str] = []
    mailbox: list[_Token] = []
    angle: list[_Token] | None = None
    closed = False

    def end() -> None:
        nonlocal mailbox, closed
        if mailbox and not closed:
            found.append(_address(mailbox, text))
        mailbox, closed = [], False

    for token in _tokens(text):
        if angle is not None:
            if token.kind == ">":
                found.append(_address(_without_route(angle), text))
                angle, closed = None, True
            elif token.kind == "<":
                raise BadAddress(f"an angle bracket in an angle bracket: {_shown(text)}")
            else:
                angle.append(token)
        elif token.kind in (",", ";"):
            end()
        elif token.kind == ":":
            # The name of a group.
            mailbox = []
        elif closed:
            raise BadAddress(f"something follows an address in angle brackets: {_shown(text)}")
        elif token.kind == "<":
            angle = []
        else:
            mailbox.append(token)
    if angle is not None:
        raise BadAddress(f"an angle bracket is never closed: {_shown(text)}")
    end()
    return found


def _without_route(tokens: list[_Token]) -> list[_Token]:
    """What stands in angle brackets without a source route (RFC 5322 4.4)."""
    kinds = [token.kind for token in tokens]
    return tokens[kinds.index(":") + 1 :] if kinds[:1] == ["@"] and ":" in kinds else tokens


def _address(tokens: list[_Token], text: str) -> str:
    kinds = [token.kind for token in tokens]
    at = len(kinds) - 1 - kinds[::-1].index("@") if "@" in kinds else len(kinds)
    local, domain = tokens[:at], tokens[at + 1 :]
    parts = [_dotted(local)] if at == len(kinds) else [_dotted(local), _domain(domain)]
    if any(not part for part in parts) or (len(parts) == 1 and "@" in (parts[0] or "")):
        raise BadAddress(f"no address: {_shown(text)}")
    address = "@".join(part for part in parts if part is not None)
    if len(address.encode("utf-8", "replace")) > _LONGEST:
        raise BadAddress(f"an address is longer than {_LONGEST} octets: {_shown(address)}")
    return address


def _dotted(tokens: list[_Token]) -> str | None:
    """Words with dots between them as one text; None where they are nothing of the kind."""
    kinds = [token.kind for token in tokens]
    well = len(kinds) % 2 == 1 and all(kind == (".", "word")[number % 2 == 0] for number, kind in enumerate(kinds))
    return "".join(token.text for token in tokens) if well else None


def _domain(tokens: list[_Token]) -> str | None:
    if len(tokens) == 1 and tokens[0].kind == "literal":
        return tokens[0].text
    return _dotted(tokens)


def _tokens(text: str) -> Iterator[_Token]:
    if (control := _CONTROL.search(text)) is not None:
        raise BadAddress(f"a control character (code {ord(control[0])}) in {_shown(text)}")
    at = 0
    while at < len(text):
        character = text[at]
        if character.isspace():
            at += 1
        elif character == "(":
            at = _comment_end(text, at)
        elif character == '"':
            word, at = _enclosed(text, at, '"')
            yield _Token("word", word)
        elif character == "[":
            word, at = _enclosed(text, at, "]")
            yield _Token("literal", f"[{word}]")
        elif (atom := _ATOM.match(text, at)) is not None:
            yield _Token("word", atom[0])
            at = atom.end()
        elif character == "\\":
            # Outside quotes only in very old addresses: the next character is part of a word.
            yield _Token("word", text[at + 1 : at + 2] or "\\")
            at += 2
        else:
            yield _Token(character, character)
            at += 1


def _comment_end(text: str, at: int) -> int:
    depth = 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "(":
            depth += 1
        elif text[at] == ")":
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    raise BadAddress(f"a comment is never closed: {_shown(text)}")


def _enclosed(text: str, at: int, ending: str) -> tuple[str, int]:
    """What stands between quotes or square brackets, escapes and folding resolved, and where it ends."""
    word: list[str] = []
    at += 1
    while at < len(text):
        if text[at] == ending:
            return "".join(word), at + 1
        if text[at] == "\\":
            at += 1
        if text[at : at + 1] not in ("\r", "\n", ""):
            word.append(text[at])
        at += 1
    raise BadAddress(f"a {'quote' if ending == chr(34) else 'bracket'} is never closed: {_shown(text)}")


def _shown(text: str) -> str:
    shown = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return shown if len(shown) <= 80 else shown[:77] + "..."
