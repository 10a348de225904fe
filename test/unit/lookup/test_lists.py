import pytest

from mailgate.lookup.lists import BadList, Format, Lists, NamedList, from_lookup, from_store, glob_pattern
from mailgate.mail.unknown import Unknown


def lookup(*members):
    return from_lookup("x", dict.fromkeys(members, ""))


def has(named, key):
    value = named.get(key)
    return value if isinstance(value, Unknown) else value is not None


def test_a_set_of_lookup():
    x = lookup("a", "B")
    assert has(x, "a")
    assert has(x, "A")
    assert has(x, "b")
    assert not has(x, "c")
    assert x.get("a") == "true"


def test_globs_of_a_set():
    x = lookup("spamtrap@*", "*.example.com", "*@bad.test", "test@d?.org", "*end", "be*", "a*b*c")
    for key in (
        "spamtrap@q",
        "a.example.com",
        "a.b.example.com",
        "x@bad.test",
        "test@d1.org",
        "weekend",
        "be",
        "azbzc",
    ):
        assert has(x, key), key
    for key in ("spamtrap", "xspamtrap@q", "example.com", "xexample.com", "x@bad.test.org", "test@d.org", "azb", "abe"):
        assert not has(x, key), key


def test_a_table_of_lookup_has_values():
    x = from_lookup("x", {"*.example.com": "", "Good.example.com": "white", "k": "v"})
    assert x.get("k") == "v"
    assert x.get("bad.example.com") == "true"
    assert x.get("good.example.com") == "white"


def test_of_several_globs_the_first_written_tells_the_value():
    x = from_lookup("x", {"a*": "first", "*.test": "second", "*@a.test": "third", "u@*": "fourth"})
    assert x.get("abc.test") == "first"
    assert x.get("u@b.test") == "second"
    assert x.get("u@a.test") == "second"
    assert x.get("u@b.org") == "fourth"


def test_store_formats():
    assert has(from_store("l", Format.LIST, ["Mail.Spammer.test"]), "mail.spammer.test")
    assert not has(from_store("l", Format.LIST, ["*.test"]), "a.test")
    assert has(from_store("l", Format.LIST, ["*.test"]), "*.test")
    assert from_store("m", Format.MAP, ["Key some value", "other=x y"], separator=" ").get("key") == "some value"
    assert from_store("m", Format.MAP, ["k = v"], separator="=").get("k") == "v"
    globs = from_store("g", Format.GLOB, ["*.d.org", "user@*", "test@d?.org"])
    assert [has(globs, key) for key in ("a.d.org", "user@x", "test@d1.org", "d.org")] == [True, True, True, False]
    regexes = from_store("r", Format.REGEX, [r"^USER\d+@", r"\.test$"])
    assert [has(regexes, key) for key in ("user12@a", "a.TEST", "user@a")] == [True, True, False]


def test_a_file_of_entries():
    text = "# a comment\n\n  one.test  \r\ntwo.test\n#three.test\n"
    named = from_store(
        "f", Format.LIST, ["zero.test", "file:///etc/lists/my%20list"], read={"/etc/lists/my list": text}.__getitem__
    )
    assert len(named) == 3
    assert [has(named, f"{n}.test") for n in ("zero", "one", "two", "three")] == [True, True, True, False]
    assert has(from_store("f", Format.LIST, ["file:///l"], comment=";", read=lambda path: "#x\n;y"), "#x")


def test_a_file_that_cannot_be_read_makes_the_rest_unknown_and_not_empty(tmp_path):
    named = from_store("f", Format.LIST, ["zero.test", f"file://{tmp_path}/none"])
    assert has(named, "zero.test") is True
    answer = named.get("one.test")
    assert isinstance(answer, Unknown)
    assert answer.dependency == "list f"
    assert f"{tmp_path}/none: No such file" in answer.reason
    (tmp_path / "latin1").write_bytes(b"\xe4")
    assert from_store("f", Format.LIST, [f"file://{tmp_path}/latin1"]).missing.endswith("is not UTF-8")


def test_entries_that_cannot_be_used_are_all_named_with_their_place():
    with pytest.raises(BadList) as refused:
        from_store("m", Format.MAP, ["novalue", "file:///f", "https://x.test/l"], read=lambda path: "a b\nc\n")
    assert [problem.split(":")[0] for problem in refused.value.problems] == ['store "m"', "/f", 'store "m"']
    with pytest.raises(BadList, match="no regular expression"):
        from_store("r", Format.REGEX, ["("])


def test_names():
    lists = Lists([lookup("a")], default="x")
    assert lists.find("x") is lists.find("")
    assert lists.find("y") is None
    blocked = lists.find("blocked-domains")
    assert blocked is not None
    assert blocked.get("a") is None
    own = NamedList("blocked-domains")
    assert Lists([own]).find("blocked-domains") is own
    assert Lists([]).find("") is None


def test_glob_pattern_takes_other_characters_as_they_are():
    assert glob_pattern("a.b+(c)").fullmatch("a.b+(c)")
    assert not glob_pattern("a.b").fullmatch("axb")
    assert glob_pattern("*").fullmatch("")
