import datetime
import os
import tomllib

import pytest
import toml
from hypothesis import given
from hypothesis import strategies as st

from mailgate.config import write as module
from mailgate.config.write import Rows, WriteError, toml_text, write

VALUES = {
    "server": {"hostname": "mx.test", "listener": {"smtp": {"bind": ["[::]:25"], "tls": {"implicit": False}}}},
    "x": [1, 2.5, True],
    "m": [{"a": 1}, {"a": 2}],
}


@pytest.mark.spec("OUT-222")
def test_what_is_written_reads_back(tmp_path):
    path = tmp_path / "m.toml"
    write(str(path), VALUES, "made by a test\n\nsecond line")
    text = path.read_text()
    assert text.startswith("# made by a test\n#\n# second line\n\n")
    assert tomllib.loads(text) == VALUES
    assert os.listdir(tmp_path) == ["m.toml"]


@pytest.mark.spec("OUT-222")
@pytest.mark.parametrize(
    "values",
    [
        {"x": None},
        {"x": [1, None]},
        {"x": [{"a": None}, 2]},
        {"x": "\ud800"},
        {"x": {1: 2}},
        {"x": (1, {"a": [{"b": object()}]})},
    ],
)
def test_what_would_not_read_back_is_not_put_in_place(tmp_path, values):
    path = tmp_path / "m.toml"
    path.write_text("before = 1\n")
    with pytest.raises(WriteError):
        write(str(path), values)
    assert path.read_text() == "before = 1\n"
    assert os.listdir(tmp_path) == ["m.toml"]


@pytest.mark.parametrize("text", ["a\\x41", "\\\\x", "\x7f\x00\x1f", "'\"", "\n\r\t", "ä\u2028", r"^\d+\.x\[$"])
def test_any_text_can_be_written(text):
    assert tomllib.loads(toml_text({"a": text, "b": [text], "c": Rows([{"if": text}])})) == {
        "a": text,
        "b": [text],
        "c": [{"if": text}],
    }


def test_tables_follow_each_other_from_the_outside_in():
    values = {"a": {"x": 1, "b": {"c": {"y": 2}, "z": {}}}, "d.e": {"m": [{"n": 1}, 2]}, "k": [{"l": 1, "p": {"q": 1}}]}
    text = toml_text(values, {("a", "x"): "from\nhere", ("k", 0): "there"})
    assert tomllib.loads(text) == values
    heads = [line for line in text.splitlines() if line.startswith("[")]
    assert heads == ["[[k]]  # there", "[k.p]", "[a]", "[a.b.c]", "[a.b.z]", '["d.e"]']
    assert "x = 1  # from?here" in text.splitlines()


@pytest.mark.spec("OUT-222")
@pytest.mark.parametrize("text", ["a = 2\n", "a = 1\nb = 2\n", "a = true\n", "a = 1.0\n", "a = ", ""])
def test_a_writer_that_errs_is_caught(tmp_path, monkeypatch, text):
    monkeypatch.setattr(toml, "dumps", lambda values, encoder: text)
    with pytest.raises(WriteError):
        write(str(tmp_path / "m.toml"), {"a": 1})
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(WriteError, match="cannot write"):
        write(str(tmp_path / "none" / "m.toml"), {"a": 1})

    def fails(source, target):
        raise OSError("disk gone")

    monkeypatch.setattr(module.os, "rename", fails)
    with pytest.raises(WriteError, match="disk gone"):
        write(str(tmp_path / "m.toml"), {"a": 1})
    assert os.listdir(tmp_path) == []


_VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2100, 1, 1)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)


def _same(one, other):
    """Equal, where a number that is none equals itself; tables come back in an order of their own."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other or (one != one and other != other)


@given(st.dictionaries(st.text(max_size=6), _VALUES, max_size=4))
def test_a_text_reads_back_or_is_refused(values):
    try:
        text = toml_text(values)
    except WriteError:
        return
    assert _same(tomllib.loads(text), values)
