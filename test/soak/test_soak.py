"""The soak, a few rounds of it: `make soak` has as many as one has time for."""

from soak.soak import soak


def test_a_few_rounds_lose_nothing_and_leave_nothing_open(tmp_path):
    found = soak(tmp_path, lambda rounds: rounds == 3, seed=1, messages=240, say=print)
    assert found.verdict() == []
    assert len(found.samples) == 3
    assert found.account.promised > 240
