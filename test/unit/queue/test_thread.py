import pytest
from support.sqlite_store import Turns

from mailgate.queue import thread
from mailgate.queue.store import StoreFailed
from mailgate.queue.thread import Call, StoreThread


def work(resource, batch):
    resource.append(len(batch))
    for job in batch:
        try:
            job.run(resource)
        except ValueError as error:
            job.fail(StoreFailed(str(error)))


@pytest.fixture
def reactor():
    return Turns()


@pytest.fixture
def batches():
    return []


@pytest.fixture
def worker(reactor, batches):
    worker = StoreThread("test", reactor, lambda: batches, work, lambda resource: resource.append("closed"))
    reactor.run(worker.start())
    yield worker
    reactor.run(worker.stop())


def submit(worker, function=lambda resource: None, octets=0):
    job = Call(function, octets)
    worker.submit(job)
    return job.deferred


def test_jobs_of_one_turn_are_one_batch(reactor, worker, batches):
    deferreds = [submit(worker, lambda _, n=n: n) for n in range(5)]
    assert reactor.run(deferreds[-1]) == 4
    assert [d.called for d in deferreds] == [True] * 5
    assert batches == [5]


def test_large_jobs_reach_the_thread_while_the_turn_goes_on(reactor, worker, batches):
    deferreds = [submit(worker, octets=100_000) for _ in range(4)]
    reactor.turn()
    assert [d.called for d in deferreds] == [True, True, True, False]
    reactor.run(deferreds[-1])
    assert batches == [3, 1]


def test_a_batch_ends_at_its_limits(reactor, worker, batches, monkeypatch):
    monkeypatch.setattr(thread, "BATCH_JOBS", 3)
    monkeypatch.setattr(thread, "BATCH_OCTETS", 100)
    weights = (1, 1, 1, 1, 99, 2, 500, 100)
    deferreds = [submit(worker, octets=weight) for weight in weights]
    reactor.run(deferreds[-1])
    assert batches == [3, 2, 1, 1, 1]


def test_a_job_that_fails_fails_alone(reactor, worker):
    def broken(_):
        raise ValueError("no")

    failing, fine = submit(worker, broken), submit(worker)
    with pytest.raises(StoreFailed, match="no"):
        reactor.run(failing)
    assert reactor.run(fine) is None


def test_work_that_breaks_fails_its_batch_and_the_thread_goes_on(reactor, worker):
    def broken(_):
        raise KeyError("bug")

    with pytest.raises(StoreFailed, match="bug"):
        reactor.run(submit(worker, broken))
    assert reactor.run(submit(worker, lambda _: "fine")) == "fine"


def test_stopping_does_what_waits_then_closes_and_refuses_more(reactor, batches):
    worker = StoreThread("test", reactor, lambda: batches, work, lambda resource: resource.append("closed"))
    reactor.run(worker.start())
    waiting = submit(worker)
    reactor.run(worker.stop())
    assert waiting.called
    assert batches == [1, "closed"]
    with pytest.raises(StoreFailed, match="not open"):
        reactor.run(submit(worker))
    reactor.run(worker.stop())


def test_a_resource_that_does_not_open_fails_the_start(reactor):
    def broken():
        raise StoreFailed("no such place")

    worker = StoreThread("test", reactor, broken, work, lambda resource: None)
    with pytest.raises(StoreFailed, match="no such place"):
        reactor.run(worker.start())
    reactor.run(worker.stop())


class Ready(Call):
    """A job with something to make."""

    def __init__(self, made):
        super().__init__(lambda resource: None)
        self.made = made

    def make_ready(self):
        self.made.append(len(self.made))
        if len(self.made) == 2:
            raise ValueError("no rows")


def test_jobs_are_made_ready_together_and_one_that_cannot_be_fails_alone(reactor, worker, batches):
    made = []
    jobs = [Ready(made) for _ in range(3)]
    for job in jobs:
        worker.submit(job)
    assert made == []
    failed = []
    jobs[1].deferred.addErrback(failed.append)
    reactor.run(jobs[2].deferred)
    assert made == [0, 1, 2]
    assert failed[0].check(StoreFailed)
    assert "no rows" in str(failed[0].value)
    assert batches == [2]


def test_the_thread_gets_what_was_gathered_when_its_owner_says_so(reactor, batches):
    when = []
    worker = StoreThread(
        "test", reactor, lambda: batches, work, lambda resource: resource.append("closed"), soon=when.append
    )
    reactor.run(worker.start())
    first, second = submit(worker), submit(worker)
    assert not first.called
    assert len(when) == 1
    when.pop()()
    reactor.run(second)
    assert batches == [2]
    third = submit(worker)
    assert len(when) == 1
    reactor.run(worker.stop())
    assert third.called
    assert batches == [2, 1, "closed"]


def test_whatever_ends_the_work_fails_its_batch_and_the_thread_goes_on(reactor, worker):
    def broken(_):
        raise SystemExit(3)

    with pytest.raises(StoreFailed, match="SystemExit"):
        reactor.run(submit(worker, broken))
    assert reactor.run(submit(worker, lambda _: "fine")) == "fine"


def test_whatever_ends_the_opening_or_the_closing_is_told(reactor):
    def broken(*_):
        raise SystemExit(3)

    worker = StoreThread("test", reactor, broken, work, lambda resource: None)
    with pytest.raises(StoreFailed, match="SystemExit"):
        reactor.run(worker.start())
    worker = StoreThread("test", reactor, list, work, broken)
    reactor.run(worker.start())
    reactor.run(worker.stop())


def test_stopping_waits_for_every_batch_and_what_these_ask_for_then_is_refused(reactor, batches, monkeypatch):
    monkeypatch.setattr(thread, "BATCH_JOBS", 3)
    worker = StoreThread("test", reactor, lambda: batches, work, lambda resource: resource.append("closed"))
    reactor.run(worker.start())
    told = []
    for n in range(10):
        done = submit(worker, lambda _, n=n: n)
        done.addCallback(lambda n: told.append(n) or submit(worker))
        done.addErrback(lambda failure: told.append(str(failure.value)))
    reactor.run(worker.stop())
    assert told == [said for n in range(10) for said in (n, "the queue is not open")]
    assert batches == [3, 3, 3, 1, "closed"]


class Order(Call):
    """A job whose place is seen, and which can be one that is never ready."""

    def __init__(self, name, octets=0, is_ready=True):
        super().__init__(lambda resource: resource.append(name), octets)
        self.is_ready = is_ready

    def make_ready(self):
        if not self.is_ready:
            raise ValueError("no rows")


def test_what_a_job_that_is_never_ready_asks_for_comes_after_those_that_were_there_first(reactor, worker, batches):
    first, bad, second, third = Order("first"), Order("bad", is_ready=False), Order("second"), Order("third", 300_000)
    # So large that it is handed over at once.
    bad.deferred.addErrback(lambda _: worker.submit(third))
    for job in (first, bad, second):
        worker.submit(job)
    reactor.run(third.deferred)
    reactor.run(second.deferred)
    assert [done for done in batches if isinstance(done, str)] == ["first", "second", "third"]


def test_stopping_because_of_a_job_that_is_never_ready_leaves_no_other_behind(reactor, batches):
    worker = StoreThread("test", reactor, lambda: batches, work, lambda resource: resource.append("closed"))
    reactor.run(worker.start())
    bad, other = Order("bad", is_ready=False), Order("other")
    stopped = []
    bad.deferred.addErrback(lambda _: stopped.append(worker.stop()))
    worker.submit(bad)
    worker.submit(other)
    reactor.advance(0)
    reactor.run(stopped[0])
    assert other.deferred.called
    assert batches == [1, "other", "closed"]
