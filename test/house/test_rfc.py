"""RFCs in the code and in doc/rfc.txt: the same, both ways."""

import re

from house.tree import PACKAGE, ROOT, files, shown

LIST = ROOT / "doc" / "rfc.txt"

# One spelling, so that it greps.
CITED = re.compile(r"\bRFC (\d{3,5})\b")
MISSPELT = re.compile(r"\bRFC[-:]?\d|\brfc[ -]?\d{4}|\bRFC \d+ ?(?:§|[Ss]ection)|\bRFC \d+,? s\. ")
ROW = re.compile(r"^(\d{3,5})  (Yes|Partial|No) +(\S.*)$")


def listed():
    """The rows of doc/rfc.txt: number to status."""
    rows = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = ROW.match(line)
            assert match, f"doc/rfc.txt: NUMBER  Yes|Partial|No  what; not {line!r}"
            assert match[1] not in rows, f"doc/rfc.txt: {match[1]} stands twice"
            rows[match[1]] = match[2]
    return rows


def cited():
    """RFC number to the files of the package that cite it."""
    places: dict[str, set[str]] = {}
    for path in files(PACKAGE):
        if path.suffix in (".py", ".sql"):
            for number in CITED.findall(path.read_text(encoding="utf-8")):
                places.setdefault(number, set()).add(shown(path))
    return places


def test_what_the_code_cites_is_listed():
    rows = listed()
    wrong = {number: sorted(places)[:3] for number, places in cited().items() if number not in rows}
    assert not wrong, f"not in doc/rfc.txt: {wrong}"
    denied = [number for number in cited() if rows[number] == "No"]
    assert not denied, f"cited, but doc/rfc.txt says No: {denied}"


def test_what_the_list_claims_is_cited():
    there = cited()
    wrong = [number for number, status in listed().items() if status != "No" and number not in there]
    assert not wrong, f"doc/rfc.txt claims these, and no code cites them: {wrong}"


def test_the_list_is_in_order():
    numbers = [int(number) for number in listed()]
    assert numbers == sorted(numbers)


def test_citations_have_one_spelling():
    wrong = []
    for path in files(PACKAGE):
        if path.suffix == ".py":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if MISSPELT.search(line):
                    wrong.append(f"{shown(path)}:{number}: {line.strip()}")
    assert not wrong, "write `RFC 5321 4.5.3.1.8`\n" + "\n".join(wrong)
