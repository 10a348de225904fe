"""What a command does not need it does not load."""

import subprocess
import sys

import pytest

LOADED = "import sys; from mailgate.admin.main import main; main(sys.argv[1:]); print('twisted' in sys.modules)"


@pytest.mark.parametrize("command", ["list", "show", "why", "export", "check", "status", "retry", "pause"])
def test_the_commands_of_the_queue_do_without_twisted(command):
    arguments = [sys.executable, "-c", LOADED, "queue", command, "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "False"
