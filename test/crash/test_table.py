"""Every row of the crash table: a daemon is ended at the point, and the next one makes good what is left.

The daemons of all rows run in turn, several at once; each has clients that remember what was answered with
250, and next hops that remember all they took. `make chaos` does the same at random, a thousand times.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from crash.table import ELSEWHERE, ROWS
from support.crash_daemon import Lane
from support.crash_hop import Hops, Memory
from support.disk import built
from support.nursery import Nursery

from mailgate.crash.point import POINTS

AT_ONCE = 4


def name_of(row):
    return f"{row.label}-{row.passing}" if row.passing > 1 else row.label


def rows_of(*labels):
    return [row for row in ROWS if row.label in labels]


class Rows:
    """Runs rows, each once, several at a time; all of a session are under way as soon as one is asked for."""

    def __init__(self, directory, wanted):
        self._directory = directory
        self._library = built(directory)
        self._nursery = Nursery(self._library)
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._runs = {name_of(row): self._pool.submit(self._run, row) for row in wanted}

    def account(self, row):
        return self._runs[name_of(row)].result(600)

    def close(self):
        self._pool.shutdown(cancel_futures=True)
        self._nursery.close()

    def _run(self, row):
        """Crash at the point, start again, wait for an empty queue; the account of it all."""
        hops = Hops(Memory(), slow_seconds=row.slow_seconds)
        lane = Lane(self._directory / name_of(row), hops, self._library, self._nursery, **row.options)
        try:
            row.prepare(lane)
            point = f"{row.label}:{row.passing}"
            if lane.start_or_crash(point):
                row.before(lane)
                lane.load(row.mix, random.Random(name_of(row)), "m")
                row.meanwhile(lane)
                assert lane.wait_crash(60), f"{point} was not reached:\n{lane.log_text()[-3000:]}"
            hops.slow_seconds = 0.1
            assert lane.look() == []
            row.leaves(lane)
            lane.start()
            row.after(lane)
            if row.runs_empty:
                lane.settle()
            assert lane.stop() == 0
            assert lane.look() == []
            return replace(lane.account(), log=lane.log_text())
        finally:
            if lane.is_running:
                lane.kill()
            hops.close()


@pytest.fixture(scope="module")
def rows(request, tmp_path_factory):
    asked = [item.callspec.params["row"] for item in request.session.items if item.path == request.path]
    wanted = {name_of(row): row for row in asked if row is not None}
    running = Rows(tmp_path_factory.mktemp("rows"), wanted.values())
    yield running
    running.close()


@pytest.mark.spec("OUT-202")
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_a_crash_loses_nothing_and_repeats_only_what_was_in_doubt(row, rows):
    account = rows.account(row)
    assert account.faults == []
    assert account.lost == 0
    assert account.repeats <= account.in_doubt


@pytest.mark.spec("OUT-206")
@pytest.mark.parametrize("row", rows_of("D5", "D6"), ids=name_of)
def test_what_may_have_been_taken_is_repeated_with_the_same_octets(row, rows):
    account = rows.account(row)
    # That repeats are the same octet for octet is looked at with every account.
    assert account.repeats >= 1
    assert account.faults == []
    assert "delivery.in-doubt" in account.log


@pytest.mark.spec("OUT-207")
@pytest.mark.parametrize("row", rows_of("D9"), ids=name_of)
def test_a_group_that_is_done_is_not_delivered_again_after_a_crash_in_the_next(row, rows):
    account = rows.account(row)
    assert account.faults == []
    assert account.repeats <= account.in_doubt


@pytest.mark.spec("OUT-241")
@pytest.mark.parametrize("row", rows_of("L0", "L1"), ids=name_of)
def test_a_crash_around_the_rename_leaves_one_copy_also_for_a_reader(row, rows):
    account = rows.account(row)
    assert account.promised >= 1
    assert account.faults == []
    assert account.repeats == 0


@pytest.mark.parametrize("row", [None])
def test_every_point_has_its_row(row):
    assert {one.label for one in ROWS} | set(ELSEWHERE) == set(POINTS)
