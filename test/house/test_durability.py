"""doc/durability.md is what the crash table and the figures of the last full run say."""

import json

from crash.report import FIGURES, document
from house.tree import PACKAGE, ROOT, sources

from mailgate.crash.point import POINTS


def test_the_page_is_current():
    page = (ROOT / "doc" / "durability.md").read_text(encoding="utf-8")
    assert page == document(json.loads(FIGURES.read_text(encoding="utf-8"))), "run `make doc`"


def test_every_point_stands_in_the_program():
    texts = [path.read_text(encoding="utf-8") for path in sources() if path.parent != PACKAGE / "crash"]
    missing = [
        label for label in POINTS if not any(f'passed("{label}"' in t or f'passing("{label}"' in t for t in texts)
    ]
    # N2 and N3 are one call.
    assert [label for label in missing if label != "N3"] == []
