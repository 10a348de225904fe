from mailgate.config.effective import all_keys
from mailgate.config.explain import reference
from mailgate.config.schema.older import OLDER
from mailgate.config.schema.settings import Settings
from mailgate.config.schema.unsupported import UNSUPPORTED


def test_every_key_is_on_the_page():
    page = reference()
    for key in all_keys(Settings):
        table, _, name = key.rpartition(".")
        if not key.startswith("lookup.") and ".listener.<id>.tls" not in key and ".listener.<id>.socket" not in key:
            assert f"## {table}" in page
            assert f"| `{name}` |" in page
    for one in (*UNSUPPORTED, *OLDER):
        assert f"| `{one.pattern.text}` |" in page


def test_every_key_has_a_sentence():
    for line in reference().splitlines():
        if line.startswith("| `") and line.count(" | ") == 3:
            assert line.rstrip(" |").endswith("."), line


def test_a_table_has_as_many_cells_in_every_row():
    cells = 0
    for line in reference().splitlines():
        if line.startswith("|---"):
            cells = line.count("|")
        elif line.startswith("|") and cells:
            assert line.replace("\\|", "").count("|") == cells, line
        elif not line:
            cells = 0


def test_the_page_is_the_same_on_every_machine(monkeypatch):
    before = reference()
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere.test")
    assert reference() == before
