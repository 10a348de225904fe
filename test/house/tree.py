"""The repository's files as the house tests see them; git is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mailgate"

# Made by tools or by running, never part of the repository.
_MADE = frozenset(
    {".git", ".venv", "var", "build", "dist", "results", "__pycache__", ".hypothesis"}
    | {".pytest_cache", ".mypy_cache", ".ruff_cache", "mailgate.egg-info"}
)


def files(below: Path = ROOT) -> Iterator[Path]:
    """Every file of the repository below a folder."""
    for path in sorted(below.iterdir()):
        if path.name in _MADE or path.name == "dropin.cache":
            continue
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def sources() -> Iterator[Path]:
    """Every Python file of the package."""
    return (path for path in files(PACKAGE) if path.suffix == ".py")


def shown(path: Path) -> str:
    """A path as messages show it."""
    return str(path.relative_to(ROOT))
