"""The reference page, the schema and the shipped files say the same."""

import tomllib

from house.tree import ROOT

from mailgate.config import jsonschema
from mailgate.config.effective import all_keys, declared
from mailgate.config.explain import reference
from mailgate.config.schema.settings import Settings


def test_the_reference_page_is_current():
    page = ROOT / "doc" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference(), "run `make doc`"


def test_the_schema_for_editors_is_what_the_declarations_say():
    file = ROOT / "doc" / "mailgate.schema.json"
    assert file.read_text(encoding="utf-8") == jsonschema.text(), "run `make doc`"


def leaves(tree, above=()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, name))
        elif not (
            isinstance(value, list) and value and all(isinstance(one, dict) and "if" not in one for one in value)
        ):
            yield [*above, name]


def test_every_key_of_the_shipped_files_is_declared():
    for path in sorted((ROOT / "etc").glob("*.toml")):
        for names in leaves(tomllib.loads(path.read_text(encoding="utf-8"))):
            if names[0] != "lookup" and names[-1] != "type":
                assert declared(Settings, names), f"{path.name}: {'.'.join(names)}"


def test_every_declared_key_is_found_by_its_path():
    for key in all_keys(Settings):
        if not key.startswith(("lookup.", "directory.")) and not key.endswith(".<id>.type"):
            assert declared(Settings, key.split(".")), key
