import pytest

from mailgate.config.outline import Illegible, outline

WHOLE = """
server.hostname = "gw.test"
[storage]
data = "main"
[store.main]
type = "sqlite"
path = "/srv/queue/q.sqlite"
"""


def read(tmp_path, text, environ=None):
    path = tmp_path / "mailgate.toml"
    path.write_text(text)
    return outline(str(path), environ or {})


def test_the_maildrop_is_beside_the_queue(tmp_path):
    assert read(tmp_path, WHOLE) == ("gw.test", "/srv/queue/q.sqlite", "/srv/queue/maildrop")


def test_the_maildrop_may_be_elsewhere(tmp_path):
    assert read(tmp_path, WHOLE + '[queue]\nmaildrop = "/srv/drop"').maildrop == "/srv/drop"


def test_a_file_that_is_not_there_or_may_not_be_read_has_no_keys(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "here.test.")
    defaults = ("here.test", "/var/spool/mailgate/queue.sqlite", "/var/spool/mailgate/maildrop")
    assert outline(str(tmp_path / "none.toml"), {}) == defaults
    assert outline(str(tmp_path), {}) == defaults


def test_keys_of_the_further_files_are_found(tmp_path):
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "drop.toml").write_text('queue.maildrop = "/srv/drop"')
    (tmp_path / "conf.d" / ".hidden.toml").write_text('queue.maildrop = "/srv/other"')
    assert read(tmp_path, WHOLE).maildrop == "/srv/drop"


def test_macros_are_expanded(tmp_path):
    (tmp_path / "where").write_text("/srv/from-file")
    text = WHOLE + f'[queue]\nmaildrop = "%{{file:{tmp_path}/where}}%/%{{env:NAME}}%/%{{cfg:server.hostname}}%"'
    assert read(tmp_path, text, {"NAME": "x"}).maildrop == "/srv/from-file/x/gw.test"


@pytest.mark.parametrize("macro", ["env:NONE", "file:/none", "cfg:no.key", "cfg:queue.maildrop"])
def test_a_macro_that_cannot_be_had_is_told(tmp_path, macro):
    with pytest.raises(Illegible, match=r"queue\.maildrop"):
        read(tmp_path, f'[queue]\nmaildrop = "%{{{macro}}}%"')


def test_a_file_that_is_being_edited_is_read_as_far_as_it_goes(tmp_path):
    text = WHOLE.replace("[storage]", '[session.rcpt]\nrelay = "half a\n[storage]')
    assert read(tmp_path, text) == ("gw.test", "/srv/queue/q.sqlite", "/srv/queue/maildrop")


def test_a_broken_section_that_matters_is_told(tmp_path):
    with pytest.raises(Illegible, match="mailgate config check"):
        read(tmp_path, WHOLE + '[queue]\nmaildrop = "/srv/dr')


def test_the_shipped_file_is_read_as_the_loader_reads_it():
    from house.tree import ROOT

    from mailgate.config.load import load

    file = str(ROOT / "etc" / "mailgate.toml")
    settings = load(file, {}).settings
    assert outline(file, {}) == (settings.server.hostname, settings.queue_file, settings.queue.maildrop)
