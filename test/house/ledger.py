"""Compare the ledger of acceptance rows with the tests, both ways: `make spec`.

A test claims rows with `@pytest.mark.spec("IN-001", ...)`, spelled out; a
dialogue in `test/wire/dialogues/` with a line `spec IN-001 IN-002` above its
`---`. The tests are read, not run: an id counts wherever a test file names it.

    python test/house/ledger.py            check, and print the figures; status 1 when they disagree
    python test/house/ledger.py --update   move rows between `waits` and `subject` as the tests say
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TEST = Path(__file__).resolve().parents[1]
LEDGER = TEST / "rows.toml"

WAITS = "waits"
SUBJECT = "subject"

_ROW_LINE = re.compile(r'^(?P<id>[A-Z]+-\d{3}) = \{ (?P<word>waits|subject) = "(?P<subject>[a-z0-9-]+)" \}$', re.M)


class Row(NamedTuple):
    """One line of the ledger: `waits` says that no test carries the row."""

    subject: str
    waits: bool


class Claim(NamedTuple):
    """Where a test names a row."""

    id: str
    place: str


def rows(text: str) -> dict[str, Row]:
    """Read the ledger. Raises `ValueError` for a line of another form or a row that stands twice."""
    read = {}
    for table in tomllib.loads(text).values():
        for name, row in table.items():
            if set(row) not in ({WAITS}, {SUBJECT}):
                raise ValueError(f"{name}: a row has `waits` or `subject`, not both and nothing else")
            read[name] = Row(next(iter(row.values())), WAITS in row)
    if len(_ROW_LINE.findall(text)) != len(read):
        raise ValueError('each row stands on a line of its own: ID = { waits = "subject" }')
    return read


def claims_of_source(source: str, place: str) -> Iterator[Claim]:
    """The rows a Python test file names; raises `ValueError` for an id that is not spelled out."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "spec"):
            continue
        if not (isinstance(node.func.value, ast.Attribute) and node.func.value.attr == "mark"):
            continue
        for argument in node.args:
            if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                raise ValueError(f"{place}:{node.lineno}: spell the row ids of `spec` out")
            yield Claim(argument.value, f"{place}:{node.lineno}")


def claims_of_dialogue(text: str, place: str) -> Iterator[Claim]:
    """The rows a dialogue names above its `---`."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() == "---":
            return
        if line.startswith("spec "):
            for name in line.split()[1:]:
                yield Claim(name, f"{place}:{number}")


def claims(root: Path = TEST) -> list[Claim]:
    """Every claim of every test below `root`."""
    found: list[Claim] = []
    for path in sorted(root.rglob("test_*.py")):
        place = str(path.relative_to(root.parent))
        # The support of a dialogue runner builds its marks from the text files read below.
        found += claims_of_source(path.read_text(encoding="utf-8"), place)
    for path in sorted(root.glob("wire/dialogues/*.txt")):
        found += claims_of_dialogue(path.read_text(encoding="utf-8"), str(path.relative_to(root.parent)))
    return found


def disagreements(ledger: dict[str, Row], claimed: list[Claim]) -> list[str]:
    """What is wrong, one sentence each."""
    wrong = [f"{claim.place}: no row {claim.id} in the ledger" for claim in claimed if claim.id not in ledger]
    names = {claim.id for claim in claimed}
    for name, row in ledger.items():
        if name in names and row.waits:
            wrong.append(f"{name} waits for `{row.subject}`, but a test carries it")
        elif name not in names and not row.waits:
            wrong.append(f"{name} ({row.subject}) counts as covered, but no test carries it")
    return wrong


def updated(text: str, claimed: list[Claim]) -> str:
    """The ledger's text with each row moved to the word the tests ask for."""
    names = {claim.id for claim in claimed}

    def line(match: re.Match[str]) -> str:
        word = SUBJECT if match["id"] in names else WAITS
        return f'{match["id"]} = {{ {word} = "{match["subject"]}" }}'

    return _ROW_LINE.sub(line, text)


def figures(ledger: dict[str, Row]) -> str:
    """How many rows of each subject are covered."""
    total = Counter(row.subject for row in ledger.values())
    waiting = Counter(row.subject for row in ledger.values() if row.waits)
    lines = [f"{'subject':20} covered  waiting"]
    for subject in sorted(total):
        lines.append(f"{subject:20} {total[subject] - waiting[subject]:7}  {waiting[subject]:7}")
    lines.append(f"{'all':20} {total.total() - waiting.total():7}  {waiting.total():7}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the tool; answers its exit status."""
    claimed = claims()
    if arguments == ["--update"]:
        text = LEDGER.read_text(encoding="utf-8")
        LEDGER.write_text(updated(text, claimed), encoding="utf-8")
    elif arguments:
        print(__doc__, file=sys.stderr)
        return 64
    ledger = rows(LEDGER.read_text(encoding="utf-8"))
    print(figures(ledger))
    wrong = disagreements(ledger, claimed)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
