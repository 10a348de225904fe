import os

import pytest

from mailgate.config.error import ConfigErrors
from mailgate.config.load import load, load_texts
from mailgate.config.sources import Source

MAIN = '[server]\nhostname = "mx.test"\n[server.listener.smtp]\nbind = "127.0.0.1:2525"\nprotocol = "smtp"\n'
PRINCIPALS = '[[directory.d.principals]]\nname = "{}"\n'


@pytest.fixture
def etc(tmp_path):
    """A folder to put configurations in; `etc(name=text)` gives the path of the main file."""

    def put(main=MAIN, **further):
        (tmp_path / "mailgate.toml").write_text(main)
        for name, text in further.items():
            (tmp_path / "conf.d").mkdir(exist_ok=True)
            (tmp_path / "conf.d" / f"{name.replace('_', '-').lstrip('-')}.toml").write_text(text)
        return str(tmp_path / "mailgate.toml")

    return put


def told(path):
    """What the report says, file names without their directory."""
    with pytest.raises(ConfigErrors) as wrong:
        load(path, {})
    return wrong.value.report().replace(os.path.dirname(path) + "/", "").splitlines()


def test_tables_of_several_files_are_merged_in_the_order_of_their_names(etc):
    path = etc(
        _20_b="[queue]\nlease = '7s'\n[server.listener.lmtp]\nbind='127.0.0.1:24'\nprotocol='lmtp'\n",
        _10_a="[server]\nmax-connections = 5\n[queue.virtual]\nlocal.threads-per-node = 3\n",
    )
    loaded = load(path, {})
    server = loaded.settings.server
    assert (server.hostname, server.max_connections) == ("mx.test", 5)
    assert list(server.listener) == ["smtp", "lmtp"]
    assert loaded.settings.queue.lease.total_seconds() == 7
    assert loaded.settings.queue.virtual["local"].threads_per_node == 3
    folder = os.path.join(os.path.dirname(path), "conf.d")
    assert loaded.files == (path, f"{folder}/10-a.toml", f"{folder}/20-b.toml")


def test_what_editors_and_packages_leave_behind_is_not_read(etc, tmp_path):
    path = etc(_10_a="[queue]\nlease = '7s'\n")
    for name in (".x.toml", ".#x.toml", "x.toml~", "#x.toml#", "x.toml.dpkg-old", "x.toml.bak", "README", "x.tom"):
        (tmp_path / "conf.d" / name).write_text("= this is no TOML")
    assert len(load(path, {}).files) == 2


def test_no_folder_and_an_empty_one_are_fine(etc, tmp_path):
    path = etc()
    assert load(path, {}).files == (path,)
    (tmp_path / "conf.d").mkdir()
    assert load(path, {}).files == (path,)


def test_a_key_in_two_files_names_both_places(etc):
    path = etc(
        _10_a="\n[server]\nmax-connections = 5\n\nhostname = 'b.test'\n",
        _20_b="[server]\nmax-connections = 6\n",
    )
    assert told(path) == [
        "conf.d/10-a.toml:5: server.hostname: given twice, first in mailgate.toml:2; keep one of them",
        "conf.d/20-b.toml:2: server.max-connections: given twice, first in conf.d/10-a.toml:3; keep one of them",
    ]


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [
        ("[queue]\nlease = '1s'\n", "[queue.lease]\nx = 1\n", "queue.lease"),
        ("[session.ehlo]\nrequire = [ { else = true } ]\n", "[session.ehlo]\nrequire = [ { else = true } ]\n", None),
        ("[[directory.d.principals]]\nname='a'\n", "[directory.d]\nprincipals = [ { name = 'b' } ]\n", None),
        ("[lookup]\na = ['x']\n", "[lookup]\na = ['y']\n", "lookup.a"),
        ("[[directory.d.principals]]\nname='a'\n", "[directory.d.principals]\nname = 'b'\n", None),
    ],
)
def test_what_is_no_table_is_not_merged(first, second, key):
    with pytest.raises(ConfigErrors) as wrong:
        load_texts([Source("a.toml", "[directory.d]\ntype = 'memory'\n" + first), Source("b.toml", second)], {})
    (error, *_) = [error for error in wrong.value.errors if "given twice" in error.problem]
    assert error.file == "b.toml"
    assert "first in a.toml:" in error.problem
    assert key is None or error.key == key


def test_two_spellings_of_one_key_in_two_files_name_both_places():
    texts = [
        Source("a.toml", "[session.rcpt]\nsub-addressing = true\n"),
        Source("b.toml", "\n[session.rcpt]\nsubaddressing = true\n"),
    ]
    with pytest.raises(ConfigErrors) as wrong:
        load_texts(texts, {})
    assert str(wrong.value) in (
        "b.toml:3: session.rcpt.subaddressing: means the same as session.rcpt.sub-addressing; keep one, see a.toml:2",
        "a.toml:2: session.rcpt.sub-addressing: means the same as session.rcpt.subaddressing; keep one, see b.toml:3",
    )


def test_arrays_of_tables_append_in_the_order_of_the_files(etc):
    path = etc(
        MAIN + "[directory.d]\ntype = 'memory'\n" + PRINCIPALS.format("a") + PRINCIPALS.format("b"),
        _10_a=PRINCIPALS.format("c"),
        _20_b="\n" + PRINCIPALS.format("d") + PRINCIPALS.format("e"),
    )
    assert [one.name for one in load(path, {}).settings.directory["d"].principals] == list("abcde")


def test_an_error_in_an_appended_entry_has_the_place_it_is_written_at(etc):
    path = etc(
        MAIN + "[directory.d]\ntype = 'memory'\n" + PRINCIPALS.format("a") + PRINCIPALS.format("b"),
        _10_a=PRINCIPALS.format("c"),
        _20_b="\n" + PRINCIPALS.format("A") + PRINCIPALS.format("e") + "quota = 'x'\n",
    )
    assert told(path) == [
        'conf.d/20-b.toml:3: directory.d.principals.0003.name: "A" is taken by directory.d.principals.0000',
        *[line for line in told(path) if line.startswith("conf.d/20-b.toml:6: directory.d.principals.0004.quota: ")],
    ]
    assert len(told(path)) == 2


@pytest.mark.spec("OUT-216")
def test_errors_of_several_kinds_in_several_files_are_told_together(etc):
    path = etc(
        MAIN + "[session]\ntiemout = '5m'\n[queue.schedule.x]\nqueue-name = 'remot'\n",
        _05_bad="[queue.strategy]\nroute = \"'local'\"\nroute = \"'mx'\"\n",
        _10_a="[session.mail]\nis-allowed = \"rcpt = 'x'\"\n[queue.route.r]\ntype = 'relay'\naddress = 5\n",
        _20_b="[queue]\nlease = 'x'\n[report]\ndomain = '%{env:NOT_SET}%'\n[server]\nhostname = 'again.test'\n",
    )
    lines = told(path)
    assert [line.split(": ")[:2] for line in lines] == [
        ["mailgate.toml:7", "session.tiemout"],
        ["conf.d/05-bad.toml:3", "queue.strategy.route"],
        ["conf.d/10-a.toml:2", "session.mail.is-allowed"],
        ["conf.d/10-a.toml:5", "queue.route.r.address"],
        ["conf.d/20-b.toml:2", "queue.lease"],
        ["conf.d/20-b.toml:4", "report.domain"],
        ["conf.d/20-b.toml:6", "server.hostname"],
    ]
    assert lines[0].endswith("did you mean session.timeout?")


def test_what_a_file_that_is_no_toml_may_define_is_not_called_missing(etc):
    path = etc(
        MAIN + "[queue.strategy]\nroute = \"'out'\"\n[queue.route.more]\nport = 26\n",
        _10_out="[queue.route.out]\ntype = 'mx\n",
    )
    (line,) = told(path)
    assert line.startswith("conf.d/10-out.toml:2: queue.route.out.type: not TOML: ")


def test_a_name_may_be_defined_in_another_file(etc):
    path = etc(
        MAIN + "[queue.strategy]\nroute = \"'out'\"\n",
        _10_out="[queue.route.out]\ntype = 'relay'\naddress = 'o.test'\n",
    )
    assert "out" in load(path, {}).settings.queue.route


def test_an_unreadable_entry_is_an_error(etc, tmp_path):
    path = etc(_20_b="[queue]\nlease = 'x'\n")
    folder = tmp_path / "conf.d"
    (folder / "10-dir.toml").mkdir()
    (folder / "11-gone.toml").symlink_to("nowhere")
    os.mkfifo(folder / "12-pipe.toml")
    (folder / "13-latin.toml").write_bytes(b"# \n# \xe4\n")
    assert told(path) == [
        "conf.d/10-dir.toml:1: cannot be read: no regular file; move it out of the folder",
        "conf.d/11-gone.toml:1: cannot be read: no such file or directory",
        "conf.d/12-pipe.toml:1: cannot be read: no regular file; move it out of the folder",
        "conf.d/13-latin.toml:2: not UTF-8 text; save the file as UTF-8",
        *[line for line in told(path) if line.startswith("conf.d/20-b.toml:2: queue.lease: ")],
    ]


def test_a_folder_that_is_none_is_an_error(etc, tmp_path):
    path = etc()
    (tmp_path / "conf.d").write_text("")
    assert told(path) == ["conf.d:1: cannot be read: not a directory"]


def test_a_main_file_that_is_not_there_is_the_one_error(etc, tmp_path):
    path = etc(_10_a="x = 1\n")
    os.unlink(path)
    assert told(path) == ["mailgate.toml:1: cannot be read: no such file or directory"]


def test_rules_and_warnings_name_their_own_file(etc):
    path = etc(
        _10_a="\n[session.mail]\nis-allowed = \"sender != 'x'\"\n",
        _20_b="[session.auth]\nallow-plain-text = true\n",
    )
    loaded = load(path, {})
    folder = os.path.join(os.path.dirname(path), "conf.d")
    assert loaded.settings.session.mail.is_allowed.place == f"{folder}/10-a.toml:3"
    assert [str(warning) for warning in loaded.warnings] == [
        f"{folder}/20-b.toml:2: session.auth.allow-plain-text: the key has no effect"
    ]


def test_inserted_values_are_told_apart_from_what_is_written(tmp_path):
    (tmp_path / "password").write_text("opensesame\n")
    text = (
        "[queue.route.r]\ntype = 'relay'\naddress = 'h.test'\n"
        "auth = { username = '%{env:NAME}%', secret = 'written' }\n"
        f"description = '%{{file:{tmp_path}/password}}% %{{env:SHORT}}%'\n"
    )
    loaded = load_texts([Source("a.toml", text)], {"NAME": "gateway-user", "SHORT": "abcd"})
    assert loaded.secrets == {"gateway-user", "opensesame", "opensesame\n"}
    assert "gateway-user" not in repr(loaded).replace(repr(loaded.settings), "")
