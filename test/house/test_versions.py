"""One version number, and locked requirements that are those of setup.cfg and of this machine."""

import configparser
import re
from importlib import metadata

from house.tree import ROOT
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mailgate


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text):
    return [Requirement(line) for line in text.splitlines() if line.strip()]


def locked(name):
    """Name to exact version, as a lock file says."""
    versions = {}
    for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==(\S+)", line)
            assert match, f"requirements/{name}: name==version, not {line!r}"
            assert match[1] == canonicalize_name(match[1])
            versions[match[1]] = match[2]
    return versions


def test_the_version_stands_alike_everywhere():
    version = setup_cfg()["metadata"]["version"]
    assert mailgate.__version__ == version
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert heading
    assert heading[1] == version


def test_the_lock_satisfies_what_setup_cfg_asks_for():
    cfg = setup_cfg()
    lock = locked("lock.txt")
    asked = requirements(cfg["options"]["install_requires"]) + requirements(cfg["options.extras_require"]["test"])
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        assert name in lock, f"{name} is asked for and not locked"
        assert requirement.specifier.contains(lock[name]), f"{requirement} against {lock[name]}"
    for requirement in requirements(cfg["options.extras_require"]["fuzz"]):
        assert requirement.specifier.contains(locked("fuzz.txt")[canonicalize_name(requirement.name)])


def test_the_lock_holds_everything_its_packages_need():
    lock = locked("lock.txt")
    environment = default_environment()
    for name in lock:
        for text in metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({**environment, "extra": ""}):
                assert canonicalize_name(need.name) in lock or need.name == "setuptools", f"{name} needs {need}"


def test_this_machine_runs_the_locked_versions():
    wrong = {
        name: metadata.version(name)
        for name, version in locked("lock.txt").items()
        if metadata.version(name) != version
    }
    assert not wrong, "run `make venv`"
