from datetime import timedelta

import pytest

from mailgate.mail.envelope import DeliverBy
from mailgate.mail.status import ErrorKind, RecipientStatus
from mailgate.queue.item import ExpiresBy, Expiry, QueuedRecipient, State
from mailgate.queue.schedule import (
    NEVER_ATTEMPTED,
    Plan,
    Schedule,
    Terms,
    after_deferral,
    after_failure,
    due_ms,
    expire,
    expires_ms,
    final,
    first_plan,
    next_notice,
)

NOW = 1_790_000_000_000
SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
DNS = RecipientStatus("example.net", ErrorKind.DNS, "no answer")
LIMITED = RecipientStatus("localhost", ErrorKind.RATE)


def seconds(*numbers):
    return tuple(timedelta(seconds=n) for n in numbers)


def hours(*numbers):
    return tuple(timedelta(hours=n) for n in numbers)


def ttl(ms):
    return Expiry(ExpiresBy.TTL, ms)


def attempts(number):
    return Expiry(ExpiresBy.ATTEMPTS, number)


SLOW = Schedule("slow", "remote", notify=hours(15, 22), expire=timedelta(days=1))
COUNTED = Schedule("dsn", "dsn", retry=hours(1), max_attempts=2)
SHORT = Schedule("short", "remote", retry=seconds(1, 2, 3), expire=timedelta(seconds=6))


def planned(schedule, terms, **facts):
    plan = first_plan(schedule, terms)
    return QueuedRecipient(
        0,
        "jane@example.net",
        schedule.queue,
        plan.retry_due_ms,
        plan.notify_due_ms,
        plan.expiry,
        schedule=schedule.name,
        **facts,
    )


def after(recipient, update):
    """The recipient as the store would tell it after an update."""
    return QueuedRecipient(
        recipient.index,
        recipient.address,
        update.queue,
        update.retry_due_ms,
        update.notify_due_ms,
        update.expiry,
        state=update.state,
        status=update.status,
        retry_num=update.retry_num,
        notify_num=update.notify_num,
        dsn_sent=update.dsn_sent,
        schedule=update.schedule,
    )


def by(number, mode):
    return DeliverBy(number, mode)


@pytest.mark.parametrize(
    ("schedule", "hold_ms", "deliver_by", "retry", "notice", "expiry"),
    [
        pytest.param(SLOW, 0, None, 0, 15 * HOUR, ttl(DAY), id="plain"),
        pytest.param(COUNTED, 0, None, 0, None, attempts(2), id="plain, attempts counted"),
        pytest.param(
            *(SLOW, 60_000, None, MINUTE, MINUTE + 15 * HOUR, ttl(DAY + MINUTE)),
            id="held",
            marks=pytest.mark.spec("OUT-030", "OUT-031"),
        ),
        pytest.param(COUNTED, 60_000, None, MINUTE, None, attempts(2), id="held, attempts counted"),
        pytest.param(SLOW, 0, by(3600, "R"), 0, 15 * HOUR, ttl(HOUR), id="BY R", marks=pytest.mark.spec("OUT-033")),
        pytest.param(COUNTED, 0, by(3600, "R"), 0, None, ttl(HOUR), id="BY R, attempts counted"),
        pytest.param(
            *(SLOW, 60_000, by(3600, "R"), MINUTE, 54_060 * SECOND, ttl(HOUR)),
            id="BY R and held",
            marks=pytest.mark.spec("OUT-035"),
        ),
        pytest.param(SLOW, 0, by(3600, "N"), 0, HOUR, ttl(DAY), id="BY N", marks=pytest.mark.spec("OUT-034")),
        pytest.param(SLOW, 60_000, by(3600, "N"), MINUTE, MINUTE + HOUR, ttl(DAY + MINUTE), id="BY N and held"),
        pytest.param(SLOW, 0, by(2 * 86_400, "N"), 0, 15 * HOUR, ttl(DAY), id="BY N after the end"),
        pytest.param(COUNTED, 0, by(3600, "N"), 0, HOUR, attempts(2), id="BY N, attempts counted"),
        pytest.param(SLOW, 0, by(0, "N"), 0, None, ttl(DAY), id="BY N of 0"),
        pytest.param(SLOW, 0, by(-60, "N"), 0, None, ttl(DAY), id="BY N, passed upstream"),
    ],
)
def test_first_plan(schedule, hold_ms, deliver_by, retry, notice, expiry):
    plan = first_plan(schedule, Terms(NOW, hold_ms, deliver_by))
    assert plan == Plan(NOW + retry, None if notice is None else NOW + notice, expiry)


@pytest.mark.spec("OUT-011")
def test_intervals_are_used_in_order_and_the_last_one_repeats():
    schedule = Schedule("s", "remote", retry=seconds(10, 20, 30))
    recipient, now, waits = planned(schedule, Terms(NOW)), NOW, []
    for _ in range(5):
        update = after_failure(recipient, DNS, schedule, Terms(NOW), now, 0.5)
        waits.append((update.retry_due_ms - now) // SECOND)
        recipient, now = after(recipient, update), update.retry_due_ms
    assert waits == [10, 20, 30, 30, 30]
    assert recipient.retry_num == 5
    assert recipient.state is State.TEMP_FAIL
    assert recipient.status is DNS


@pytest.mark.spec("OUT-014")
def test_the_last_attempt_that_is_allowed_closes_the_recipient_at_once():
    recipient = planned(COUNTED, Terms(NOW))
    first = after_failure(recipient, DNS, COUNTED, Terms(NOW), NOW, 0.0)
    assert first.state is State.TEMP_FAIL
    second = after_failure(after(recipient, first), DNS, COUNTED, Terms(NOW), NOW + HOUR, 0.0)
    assert (second.state, second.status, second.retry_due_ms) == (State.PERM_FAIL, DNS, None)


@pytest.mark.spec("OUT-015")
def test_attempts_at_0_1_and_3_seconds_and_the_end_at_6_although_the_next_interval_is_longer():
    terms = Terms(NOW)
    recipient, moments = planned(SHORT, terms), []
    while not recipient.state.is_final:
        now = due_ms(recipient, NOW)
        update = expire(recipient, NOW, now)
        if update is None:
            moments.append((now - NOW) // SECOND)
            update = after_failure(recipient, DNS, SHORT, terms, now, 0.0)
        else:
            end = (now - NOW) // SECOND
        recipient = after(recipient, update)
    assert (moments, end) == ([0, 1, 3], 6)
    assert recipient.status is DNS


@pytest.mark.spec("OUT-016")
def test_a_recipient_that_was_never_tried_ends_with_a_text_of_its_own():
    recipient = planned(SHORT, Terms(NOW))
    assert expire(recipient, NOW, NOW + 6 * SECOND - 1) is None
    update = expire(recipient, NOW, NOW + 6 * SECOND)
    assert update.state is State.PERM_FAIL
    assert update.status == RecipientStatus("example.net", ErrorKind.IO, NEVER_ATTEMPTED)
    assert NEVER_ATTEMPTED == "Message expired without any delivery attempts made."


def test_a_closed_and_a_held_recipient_do_not_expire_and_neither_does_one_whose_attempts_count():
    closed = planned(SHORT, Terms(NOW), state=State.COMPLETED)
    held = planned(SHORT, Terms(NOW), held=True)
    counted = planned(COUNTED, Terms(NOW))
    for recipient in (closed, held, counted):
        assert expires_ms(recipient, NOW) is None
        assert expire(recipient, NOW, NOW + 100 * DAY) is None


def test_a_failure_after_the_end_is_final():
    update = after_failure(planned(SHORT, Terms(NOW)), DNS, SHORT, Terms(NOW), NOW + 7 * SECOND, 0.0)
    assert update.state is State.PERM_FAIL


@pytest.mark.parametrize(
    ("interval", "jitter", "chance", "added"),
    [
        (timedelta(minutes=10), 0, 0.9, 0),
        (timedelta(minutes=10), 50, 0.0, 0),
        (timedelta(minutes=10), 50, 0.5, 150 * SECOND),
        (timedelta(hours=2), 50, 0.99, 297 * SECOND),
    ],
)
def test_chance_adds_a_share_of_the_interval_up_to_five_minutes(interval, jitter, chance, added):
    schedule = Schedule("s", "remote", retry=(interval,), jitter=jitter)
    update = after_failure(planned(schedule, Terms(NOW)), DNS, schedule, Terms(NOW), NOW, chance)
    assert update.retry_due_ms == NOW + interval // timedelta(milliseconds=1) + added


def test_another_schedule_brings_its_queue_and_end_and_its_past_thresholds_count_as_sent():
    other = Schedule("other", "slow", notify=hours(1, 2, 30), expire=timedelta(days=2))
    terms = Terms(NOW, hold_ms=MINUTE)
    recipient = planned(SLOW, terms)
    update = after_failure(recipient, DNS, other, terms, NOW + 3 * HOUR, 0.0)
    assert (update.queue, update.schedule) == ("slow", "other")
    assert update.expiry == ttl(2 * DAY + MINUTE)
    assert (update.notify_num, update.notify_due_ms) == (2, NOW + MINUTE + 30 * HOUR)
    assert update.retry_num == 1


def test_the_same_schedule_leaves_queue_end_and_notices_alone():
    recipient = planned(SLOW, Terms(NOW))
    update = after_failure(recipient, DNS, SLOW, Terms(NOW), NOW + HOUR, 0.0)
    assert update.expiry == recipient.expiry
    assert (update.notify_due_ms, update.notify_num) == (recipient.notify_due_ms, 0)


@pytest.mark.parametrize(
    ("other", "expiry"),
    [
        (Schedule("o", "q", expire=timedelta(days=9)), ttl(5 * HOUR)),
        (Schedule("o", "q", expire=timedelta(hours=4)), ttl(4 * HOUR)),
        (Schedule("o", "q", max_attempts=7), ttl(5 * HOUR)),
    ],
)
def test_another_schedule_never_outlives_a_deadline_of_mode_r(other, expiry):
    terms = Terms(NOW, deliver_by=by(5 * 3600, "R"))
    assert after_failure(planned(SLOW, terms), DNS, other, terms, NOW, 0.0).expiry == expiry


def test_another_schedule_does_not_move_the_notice_of_a_deadline_of_mode_n():
    terms = Terms(NOW, deliver_by=by(3600, "N"))
    other = Schedule("o", "q", notify=hours(9))
    assert after_failure(planned(SLOW, terms), DNS, other, terms, NOW, 0.0).notify_due_ms == NOW + HOUR


def test_a_deferral_is_not_an_attempt():
    update = after_deferral(planned(COUNTED, Terms(NOW)), LIMITED, NOW + MINUTE, NOW, NOW)
    assert (update.state, update.retry_num, update.retry_due_ms) == (State.TEMP_FAIL, 0, NOW + MINUTE)


def test_a_deferral_at_the_end_is_final_but_only_where_time_counts():
    late = NOW + 6 * SECOND
    assert after_deferral(planned(SHORT, Terms(NOW)), LIMITED, late + 1, NOW, late).state is State.PERM_FAIL
    assert after_deferral(planned(COUNTED, Terms(NOW)), LIMITED, late + 1, NOW, late).state is State.TEMP_FAIL


def test_notices_come_at_each_threshold_counted_from_the_end_of_the_hold():
    terms = Terms(NOW, hold_ms=MINUTE)
    recipient = planned(SLOW, terms)
    assert next_notice(recipient, SLOW, terms, NOW + MINUTE + 15 * HOUR - 1) is None
    assert next_notice(recipient, SLOW, terms, NOW + MINUTE + 15 * HOUR) == (NOW + MINUTE + 22 * HOUR, 1)
    assert next_notice(recipient, SLOW, terms, NOW + 23 * HOUR) == (None, 1)


def test_a_deadline_of_mode_n_gives_one_notice():
    terms = Terms(NOW, deliver_by=by(3600, "N"))
    assert next_notice(planned(SLOW, terms), SLOW, terms, NOW + HOUR) == (None, 1)


@pytest.mark.spec("OUT-024")
def test_a_recipient_is_due_at_the_first_of_retry_notice_and_end():
    recipient = planned(SLOW, Terms(NOW))
    assert due_ms(recipient, NOW) == NOW
    waiting = after(recipient, after_failure(recipient, DNS, SLOW, Terms(NOW), NOW + 14 * HOUR, 0.0))
    assert due_ms(waiting, NOW) == waiting.retry_due_ms
    for retry, notice, due in ((20, 15, 15), (30, None, 24), (30, 26, 24)):
        shown = QueuedRecipient(
            0, "a@b.test", "q", NOW + retry * HOUR, None if notice is None else NOW + notice * HOUR, ttl(DAY)
        )
        assert due_ms(shown, NOW) == NOW + due * HOUR


def test_a_closed_recipient_is_due_until_its_sender_was_told():
    recipient = planned(SLOW, Terms(NOW))
    done = after(recipient, final(recipient, State.COMPLETED, RecipientStatus("mx.test")))
    assert (done.retry_due_ms, done.notify_due_ms) == (None, None)
    assert due_ms(done, NOW) == NOW
    told = planned(SLOW, Terms(NOW), state=State.COMPLETED, dsn_sent=True)
    assert due_ms(told, NOW) is None
    assert due_ms(planned(SLOW, Terms(NOW), held=True), NOW) is None
