"""What the repository never says, and constructions the package never uses."""

import ast
import re

import pytest
from house.tree import ROOT, files, shown, sources

# Each pattern is written so that it does not match itself.
FORBIDDEN = {
    "unfinished work belongs in CHANGELOG.md or doc/rfc.txt": (
        r"\bT[O]DO\b|\bF[I]XME\b|\bX{3}\b|[Nn]ot (?:yet )?imple[m]ented|NotImple[m]entedError"
    ),
    "a path of somebody's machine": r"(?<![\w.])/w[o]rk/|/ro[o]t/|/hom[e]/\w|\.\./shar[e]d",
    "where packages come from is the machine's business": (
        r"pyp[i]\.org|pythonhoste[d]\.org|regist[r]y\.npmjs|(?:index|extra-index)-ur[l]|artifacto[r]y|proxy\.gol[a]ng"
    ),
    "name the symptom, not a number somewhere else": r"(?i)\bissu[e] #?\d|\b(?:issue|bug)[ -]track[e]r",
}

TEXT = {".py", ".md", ".txt", ".toml", ".cfg", ".in", ".sql", ".c", ".yml", ".sieve", ""}

# The doorways of untyped packages.
DOORWAYS = {
    "mailgate/config/write.py",
    "mailgate/mailauth/dkim/library.py",
    "mailgate/filters/sieve/syntax.py",
}


@pytest.mark.parametrize("reason", FORBIDDEN)
def test_words_that_never_stand_here(reason):
    pattern = re.compile(FORBIDDEN[reason])
    wrong = []
    for path in files():
        if path.suffix in TEXT:
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                found = pattern.search(line)
                if found:
                    wrong.append(f"{shown(path)}:{number}: {found[0]!r}")
    assert not wrong, reason + "\n" + "\n".join(wrong)


def test_no_bare_except():
    wrong = [
        f"{shown(path)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not wrong, "\n".join(wrong)


def test_types_are_never_talked_away_outside_the_doorways():
    wrong = []
    for path in sources():
        if shown(path) in DOORWAYS:
            continue
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(r"#\s*type:\s*ignore", line):
                wrong.append(f"{shown(path)}:{number}: {line.strip()}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module == "typing":
                wrong += [
                    f"{shown(path)}:{node.lineno}: typing.{alias.name}"
                    for alias in node.names
                    if alias.name in ("Any", "cast")
                ]
    assert not wrong, "\n".join(wrong)


def test_no_group_repeats_possessively():
    """Python 3.11.2, which Debian 12 has, gets such patterns wrong; single characters are fine."""
    possessive = re.compile(r"(?:re\.compile|= r?f?[\"']|^\s+r?f?[\"']).*(?:\)[*+?]\+|\)\{[0-9,]*\}\+|\(\?>\S)")
    wrong = [
        f"{shown(path)}:{number}: {line.strip()}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if possessive.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_coroutines_are_written_with_async_def():
    wrong = [shown(path) for path in sources() if "inlineCallbacks" in path.read_text(encoding="utf-8")]
    assert not wrong


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in sources()}
    assert [shown(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
    assert not (ROOT / "twisted" / "__init__.py").exists(), "it would hide Twisted itself"
    assert not (ROOT / "twisted" / "plugins" / "__init__.py").exists(), "it would hide other plugins"
