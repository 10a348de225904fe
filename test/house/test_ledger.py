"""The ledger of acceptance rows and the tests say the same."""

import pytest
from house import ledger

TEXT = """[inbound]
IN-001 = { waits = "lists" }
IN-002 = { subject = "data" }
"""


def claim(name):
    return ledger.Claim(name, "test/x.py:1")


def test_ledger_and_tests_agree_both_ways():
    rows = ledger.rows(ledger.LEDGER.read_text(encoding="utf-8"))
    wrong = ledger.disagreements(rows, ledger.claims())
    assert not wrong, "\n".join([*wrong, "(`python test/house/ledger.py --update` moves rows)"])


def test_a_row_without_its_test_and_a_test_without_its_row_are_both_told():
    rows = ledger.rows(TEXT)
    assert ledger.disagreements(rows, [claim("IN-002")]) == []
    told = ledger.disagreements(rows, [claim("IN-001"), claim("IN-009")])
    assert len(told) == 3
    assert any("no row IN-009" in line for line in told)


def test_update_moves_a_row_and_keeps_its_subject():
    text = ledger.updated(TEXT, [claim("IN-001")])
    assert 'IN-001 = { subject = "lists" }' in text
    assert 'IN-002 = { waits = "data" }' in text


def test_row_ids_that_are_not_spelled_out_are_refused():
    computed = "import pytest\n@pytest.mark." + "spec(*ids)\ndef test_x(): ...\n"
    with pytest.raises(ValueError, match="spell"):
        list(ledger.claims_of_source(computed, "test/x.py"))


def test_a_dialogue_claims_rows_above_its_rule_only():
    text = "spec IN-001 IN-002\n---\nspec IN-003\n"
    assert [c.id for c in ledger.claims_of_dialogue(text, "x.txt")] == ["IN-001", "IN-002"]
