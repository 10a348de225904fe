"""The operators' guide says what is there: its tables are the registries, its examples compile and are right."""

import re
import tomllib
from pathlib import Path

import pytest
from support.expressions import compiled, evaluated

from mailgate.expr.functions.registry import FUNCTIONS
from mailgate.expr.kind import BOOLEAN, DURATION, STRING_OR_TRUTH
from mailgate.expr.regex import LONGEST_SUBJECT
from mailgate.expr.scope import VARIABLES, Context
from mailgate.expr.value import Type

GUIDE = (Path(__file__).parents[3] / "doc" / "expressions.md").read_text(encoding="utf-8")


def rows(heading):
    """The cells of the rows of the tables below a heading, down to the next one of its level."""
    level = heading.partition(" ")[0]
    body = GUIDE.split(f"\n{heading}\n", 1)[1]
    body = re.split(rf"^#{{1,{len(level)}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in body.splitlines() if line.startswith("| ") and not line.startswith("|---")]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_function_is_in_the_guide_with_its_sentence():
    told = {tuple(row) for row in rows("## Functions") if row[0] != "Function"}
    there = {
        (f"`{function.signature}`", function.doc + (" Maps." if function.maps else ""))
        for function in FUNCTIONS.values()
    }
    assert told == there


def test_every_variable_is_in_the_guide_with_its_contexts():
    types = {Type.STRING: "text", Type.INTEGER: "number", Type.ARRAY: "array"}
    told = [row for row in rows("## Variables") if len(row) == 4 and row[0] != "Variable"]
    there = [
        [
            f"`{variable.name}`",
            types[variable.type],
            " ".join(context.value for context in Context if context in variable.contexts),
            variable.doc,
        ]
        for variable in VARIABLES
    ]
    assert told == there


def test_every_context_is_in_the_guide():
    told = [row[0] for row in rows("## Variables") if len(row) == 2 and row[0] != "Context"]
    assert told == [context.value for context in Context]


@pytest.mark.parametrize("row", [row for row in rows("## Operators") if row[0].startswith("`") and row[1][:1] == "`"])
def test_results_in_the_guide(row):
    expression, result = (cell.strip("`") for cell in row)
    assert evaluated(expression) == evaluated(result)


def test_results_with_unknown_in_the_guide():
    checked = 0
    for written, result in rows("## When the answer is unknown"):
        for expression in re.findall(r"`([^`]*\bunknown\b[^`]*)`", written):
            found = evaluated(expression.replace("unknown", "key_exists('down', 'x')"))
            expected = "key_exists('down', 'x')" if result == "unknown" else result.strip("`")
            assert found == evaluated(expected), expression
            checked += 1
    assert checked >= 10


KEYS = {
    "relay": (BOOLEAN, Context.RCPT),
    "future-release": (DURATION, Context.MAIL),
    "sub-addressing": (STRING_OR_TRUTH, Context.ADDR),
    "catch-all": (STRING_OR_TRUTH, Context.ADDR),
    "is-allowed": (BOOLEAN, Context.MAIL),
}


def examples():
    for block in re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL):
        for tables in tomllib.loads(block)["session"].values():
            yield from tables.items()


def test_examples_compile():
    found = dict(examples())
    assert found.keys() == KEYS.keys()
    for key, raw in found.items():
        kind, context = KEYS[key]
        compiled(raw, kind, context)
    address = {"kind": STRING_OR_TRUTH, "context": Context.ADDR}
    assert evaluated(found["sub-addressing"], rcpt="news.jane@d", **address) == "jane@d"
    assert evaluated(found["catch-all"], rcpt="x@a.example", **address) == "info@a.example"
    assert evaluated(found["catch-all"], rcpt="x@a.test", **address) is False


def test_the_limit_in_the_guide():
    assert f"{LONGEST_SUBJECT} characters is not searched" in " ".join(GUIDE.split())
