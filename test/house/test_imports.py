"""A room knows only the rooms below it (ARCHITECTURE.md)."""

import ast

import pytest
from house.tree import PACKAGE, shown, sources

LAYERS = (
    {"mail", "crash"},
    {"expr", "wire"},
    {"config"},
    {"dns", "net", "lookup", "limits"},
    {"mailauth", "filters", "queue", "decisions"},
    {"reports"},
    {"session", "deliver"},
    {"listen", "rehearsal"},
    {"admin"},
    {"service"},
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}

WITHOUT_TWISTED = {"mail", "crash", "expr", "config", "wire"}
WITH_THE_REACTOR = "mailgate/service/tap.py"


def imports(tree):
    """The modules a file imports, with the node; relative imports are not used here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module or ""
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"


def room_of(module):
    """The room of a module of ours; None for the package itself and for others' modules."""
    parts = module.split(".")
    return parts[1] if parts[0] == "mailgate" and len(parts) > 1 and parts[1] in LAYER else None


def parsed():
    for path in sources():
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_every_room_has_a_layer():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(LAYER), f"rooms without a layer: {rooms - set(LAYER)}"


def test_rooms_import_lower_layers_only():
    wrong = []
    for path, tree in parsed():
        room = path.relative_to(PACKAGE).parts[0]
        if room not in LAYER:
            continue
        for node, module in imports(tree):
            other = room_of(module)
            if other is not None and other != room and LAYER[other] >= LAYER[room]:
                wrong.append(f"{shown(path)}:{node.lineno}: {room} imports {other}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_the_rooms_without_io_do_not_import_twisted():
    wrong = [
        f"{shown(path)}:{node.lineno}: {module}"
        for path, tree in parsed()
        if path.relative_to(PACKAGE).parts[0] in WITHOUT_TWISTED
        for node, module in imports(tree)
        if module.split(".")[0] in ("twisted", "zope")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_reactor_is_imported_once():
    importing = {
        shown(path) for path, tree in parsed() for node, module in imports(tree) if module == "twisted.internet.reactor"
    }
    assert importing <= {WITH_THE_REACTOR}


def test_nothing_is_imported_late():
    wrong = []
    for path, tree in parsed():
        for outer in ast.walk(tree):
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef):
                for node, module in imports(outer):
                    if not (shown(path) == WITH_THE_REACTOR and module.startswith("twisted.internet")):
                        wrong.append(f"{shown(path)}:{node.lineno}: {module}")
    assert not wrong, "\n".join(sorted(set(wrong)))


@pytest.mark.parametrize(
    ("module", "room"),
    [("mailgate.wire.smtp.server", "wire"), ("mailgate", None), ("twisted.internet", None)],
)
def test_the_room_of_a_module(module, room):
    assert room_of(module) == room
