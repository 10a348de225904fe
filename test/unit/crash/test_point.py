"""Crash points: which passing ends the process, and that none does without the variable."""

import os
import signal
import subprocess
import sys

import pytest

from mailgate.crash.point import ARMED, POINTS, Countdown, passed, passing, setting


def ended(crash, code):
    """The exit status of a Python that runs `code` with this setting, and what it wrote."""
    environment = {key: value for key, value in os.environ.items() if key != "MAILGATE_CRASH"}
    if crash is not None:
        environment["MAILGATE_CRASH"] = crash
    code = f"from mailgate.crash.point import ARMED, passed, passing\n{code}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("text", "meant"), [("D4", ("D4", 1)), ("D4:1", ("D4", 1)), ("A0:17", ("A0", 17))])
def test_a_setting_names_a_point_and_a_passing(text, meant):
    assert setting(text) == meant


@pytest.mark.parametrize("text", ["D44", "", ":3", "d4", "D4:", "D4:0", "D4:-1", "D4:x", "D4:²"])
def test_a_setting_that_names_neither_is_refused_with_what_to_write(text):
    with pytest.raises(ValueError, match=r"no crash point; there are A0, |write a passing from 1"):
        setting(text)


def test_the_passings_of_the_one_point_are_counted():
    countdown = Countdown("D4", 3)
    labels = ["D4", "D5", "D4", "A0", "D4", "D4"]
    assert [countdown.is_last(label) for label in labels] == [False, False, False, False, True, False]


def test_without_the_variable_every_point_is_passed():
    assert not ARMED
    for label in POINTS:
        passed(label)
        passing(label)


def test_the_process_is_killed_at_the_passing_that_was_asked_for():
    code = "for n in range(5):\n print(n, flush=True)\n passed('D5')\n passed('D4')"
    assert ended("D4:3", code) == (-signal.SIGKILL, "0\n1\n2\n", "")


def test_the_process_is_killed_in_the_midst_of_what_follows():
    status, out, _ = ended(
        "A3", "import time\npassing('A3')\nprint('before', flush=True)\ntime.sleep(30)\nprint('after')"
    )
    assert status == -signal.SIGKILL
    assert "after" not in out


def test_a_setting_that_is_none_ends_the_program_at_its_start():
    status, _, errors = ended("Z9", "print('on')")
    assert status == 1
    assert '"Z9" is no crash point' in errors
