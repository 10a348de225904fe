"""What every program of a host may call has to start at once."""

import subprocess
import sys

import pytest
from house.tree import ROOT


@pytest.mark.parametrize("module", ["mailgate.admin.sendmail.main", "mailgate.admin.mailq"])
def test_programs_for_all_users_load_neither_twisted_nor_the_schema(module):
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    ).stdout.split()
    heavy = {"twisted", "cryptography", "click", "rich", "zope", "mailgate.config.schema", "mailgate.config.load"}
    assert not heavy.intersection(loaded)
