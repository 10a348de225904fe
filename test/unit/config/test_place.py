import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.config.place import places
from mailgate.config.write import WriteError, toml_text

TEXT = """\
# a comment with [brackets] and "quotes
top = 1
[a.b] # header
c = "x # no comment" # comment
d.e = '''
[not.a.table]
f = 1
'''
g = [ { if = "x ] }", then = 1 }, # one
      { else = [1,
                2] },
    ]
"quoted \\u0041.key" = \"\"\"a \\"\"\" b\"\"\"\"
after = 'it''' # two literal strings would be no TOML, this is never reached
"""


def test_every_key_table_and_element_has_its_line():
    text = TEXT.replace("after = 'it''' # two literal strings would be no TOML, this is never reached\n", "after = 1\n")
    tomllib.loads(text)
    found = places(text).lines
    assert found[("top",)] == 2
    assert found[("a",)] == found[("a", "b")] == 3
    assert found[("a", "b", "c")] == 4
    assert found[("a", "b", "d", "e")] == 5
    assert ("a", "b", "f") not in found
    assert ("not", "a", "table") not in found
    assert found[("a", "b", "g")] == 9
    assert found[("a", "b", "g", 1)] == 10
    assert found[("a", "b", "g", 1, "else", 1)] == 11
    assert found[("a", "b", "quoted A.key")] == 13
    assert found[("a", "b", "after")] == 14


def test_arrays_of_tables_are_counted_and_tables_below_belong_to_the_last():
    text = "[[m]]\nname = 1\n[[m]]\nname = 2\n[m.sub]\nx = 1\n[[m.list]]\ny = 1\n[[m.list]]\n"
    tomllib.loads(text)
    found = places(text).lines
    assert found[("m", 0, "name")] == 2
    assert found[("m", 1, "name")] == 4
    assert found[("m", 1, "sub", "x")] == 6
    assert found[("m", 1, "list", 0, "y")] == 8
    assert found[("m", 1, "list", 1)] == 9


def test_line_of_what_is_not_there_is_that_of_its_table():
    assert places("a = 1\n[b.c]\nd = 1\n").line(("b", "c", "missing")) == 2
    assert places("a = 1\n").line(("z",)) == 1


def test_repeated_keys_are_found_with_both_lines():
    assert places("a = 1\nb = 2\na = 3\n").repeated == [(("a",), 1, 3)]
    assert places("[t]\nx = 1\n[u]\n[t]\n").repeated == [(("t",), 1, 4)]
    assert places("[[m]]\nx = 1\n[[m]]\nx = 1\n").repeated == []


def test_text_that_is_no_toml_is_scanned_up_to_the_fault():
    assert places("a = 1\nb = = 2\nc = 3\n").lines == {("a",): 1, ("b",): 2}
    assert places("[" * 3000).lines == {}
    assert places("a = " + "[" * 3000).lines[("a",)] == 1


def paths(tree, path=()):
    """Every path of a tree, those of tables and elements included."""
    if path:
        yield path
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from paths(value, (*path, name))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from paths(value, (*path, number))


_VALUES = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(min_size=1, max_size=4), _VALUES, max_size=4))
def test_whatever_tomllib_reads_has_a_line(tree):
    try:
        text = toml_text(tree)
    except WriteError:
        return
    found = places(text).lines
    for path in paths(tomllib.loads(text)):
        assert path in found


@given(st.text("[]{}=.,#'\"\\\n \tab1-", max_size=80))
def test_no_text_makes_the_scanner_fail(text):
    found = places(text)
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError):
        return
    for path in paths(tree):
        assert 1 <= found.lines[path] <= text.count("\n") + 1


@pytest.mark.parametrize("quotes", ['"""', "'''"])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_quotes_at_the_end_of_a_long_string_belong_to_it(quotes, extra):
    text = f"a = {quotes}x{quotes[0] * extra}{quotes}\nb = 1\n"
    assert tomllib.loads(text)["b"] == 1
    assert places(text).lines == {("a",): 1, ("b",): 2}
