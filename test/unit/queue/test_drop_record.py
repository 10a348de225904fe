"""What of the maildrop was taken: recorded with the message, or neither is."""

import pytest
from support.sqlite_store import DAY_MS, NOW_MS, message

from mailgate.queue.store import StoreFailed

NAME = f"{NOW_MS:012x}-{'a' * 24}"
OTHER = f"{NOW_MS:012x}-{'b' * 24}"


@pytest.mark.spec("OUT-281")
def test_a_drop_is_recorded_with_its_message_and_still_known_after_a_restart(stores, run):
    store = stores.open()
    run(store.commit(message(store, drops=(NAME,))))
    stores.stop(store)
    store = stores.open()
    assert run(store.settled_drops(NAME)) == {NAME}
    assert run(store.settled_drops(OTHER)) == frozenset()
    assert len(run(store.list(10))) == 1


@pytest.mark.spec("OUT-281")
def test_a_drop_makes_one_message_however_often_it_is_tried(store, run):
    run(store.commit(message(store, drops=(NAME,))))
    with pytest.raises(StoreFailed):
        run(store.commit(message(store, drops=(NAME,))))
    together = [store.commit(message(store, drops=(OTHER,))), store.commit(message(store, drops=(OTHER,)))]
    failed = 0
    for each in together:
        try:
            run(each)
        except StoreFailed:
            failed += 1
    assert failed == 1
    assert len(run(store.list(10))) == 2


def test_the_recipients_of_a_drop_may_be_settled_one_by_one(store, run):
    run(store.commit(message(store, drops=(f"{NAME}#0", f"{NAME}#12"))))
    run(store.commit(message(store, drops=(f"{NAME}#1",))))
    run(store.commit(message(store, drops=(f"{OTHER}#5",))))
    assert run(store.settled_drops(NAME)) == {f"{NAME}#0", f"{NAME}#1", f"{NAME}#12"}


def test_what_was_taken_a_day_ago_is_forgotten_unless_its_file_is_still_there(stores, store, run):
    run(store.commit(message(store, drops=(f"{NAME}#0", f"{NAME}#1"))))
    run(store.commit(message(store, drops=(OTHER,))))
    young = f"{NOW_MS + 2 * DAY_MS:012x}-{'c' * 24}"
    run(store.commit(message(store, drops=(young,), created_ms=NOW_MS + 2 * DAY_MS)))
    run(store.forget_drops(NOW_MS + DAY_MS, [OTHER]))
    assert run(store.settled_drops(NAME)) == frozenset()
    assert run(store.settled_drops(OTHER)) == {OTHER}
    assert run(store.settled_drops(young)) == {young}


def test_thousands_are_forgotten_a_thousand_at_a_time(store, run):
    run(store.commit(message(store, drops=tuple(f"{NAME}#{number}" for number in range(2500)))))
    run(store.forget_drops(NOW_MS + DAY_MS, []))
    assert run(store.settled_drops(NAME)) == frozenset()
