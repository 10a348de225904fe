import os

import pytest

from mailgate.queue import lease
from mailgate.queue.lease import Owner


def test_this_process_is_an_owner_that_is_alive():
    me = Owner.this_process()
    assert (me.boot, me.pid) == (lease.boot_id(), os.getpid())
    assert me.is_alive()
    assert Owner.parse(me.text) == me


def test_another_boot_another_start_and_nobody_are_not_alive():
    me = Owner.this_process()
    assert not Owner("0-0-0", me.pid, me.start).is_alive()
    assert not Owner(me.boot, me.pid, me.start + 1).is_alive()
    assert not Owner(me.boot, 2**22 + 1, 0).is_alive()


@pytest.mark.parametrize("text", ["", "a/b", "a/b/c", "a/1/2/3", "a/1/x", "a/-1/2"])
def test_a_text_that_names_no_owner(text):
    assert Owner.parse(text) is None


def test_the_boot_clock_is_not_the_wall_clock():
    assert 0 < lease.boot_ms() < lease.wall_ms()
