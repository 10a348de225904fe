"""The package, built once, and a fresh Debian for each file of tests."""

import pytest
from support import debian, needs

# What the build takes, and what is done with the package.
PROGRAMS = ("dpkg-buildpackage", "dh", "dh_virtualenv", "lintian", "mmdebstrap", "unshare", "nsenter", "ip", "make")


def pytest_collection_modifyitems(items):
    for item in items:
        if "test/package/" in str(item.path):
            item.add_marker(pytest.mark.package)


@pytest.fixture(scope="session")
def _machine():
    """What is needed to make a system of its own."""
    needs.root()
    for name in PROGRAMS:
        needs.program(name)


@pytest.fixture(scope="session")
def changes(_machine, tmp_path_factory):
    """The .changes file of the package."""
    return debian.build(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="session")
def package(changes):
    """The package."""
    (found,) = changes.parent.glob("mailgate_*.deb")
    return found


@pytest.fixture(scope="session")
def next_package(package, tmp_path_factory):
    """The package as a later version, which has another mailgate.toml."""

    def change(tree):
        shipped = tree / "etc" / "mailgate" / "mailgate.toml"
        shipped.write_text(shipped.read_text(encoding="utf-8") + "\n# A later version says more.\n", encoding="utf-8")

    return debian.newer(package, "99.0", change, tmp_path_factory.mktemp("next"))


@pytest.fixture(scope="session")
def base(_machine, tmp_path_factory):
    """The archive of a fresh system."""
    archive = debian.bootstrap(tmp_path_factory.mktemp("base"))
    yield archive
    archive.unlink()


@pytest.fixture(scope="module")
def root(base, tmp_path_factory):
    """A fresh system, for all tests of a file in their order."""
    with debian.Root(base, tmp_path_factory.mktemp("system") / "root") as fresh:
        yield fresh
