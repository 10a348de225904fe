"""Manual pages: everything the reference page says, in a form that roff takes."""

import re
import shutil
import subprocess

import pytest
from house.tree import ROOT

from mailgate.admin.main import cli
from mailgate.admin.manual import commands, manual_page
from mailgate.config.effective import all_keys
from mailgate.config.explain import reference
from mailgate.config.manual import configuration_page, page
from mailgate.config.schema.settings import Settings

MANUALS = sorted((ROOT / "doc" / "man").glob("*.md"))


def rendered(text):
    """The page as a reader sees it, with what roff complains about."""
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-Wbreak", "-P-c", "-P-b", "-P-u"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout, done.stderr


def test_every_key_and_every_sentence_of_the_reference_is_there():
    text = configuration_page()
    plain = text.replace("\\-", "-").replace("\\e", "\\").replace("\\fB", "").replace("\\fR", "")
    for key in all_keys(Settings):
        assert key.rpartition(".")[2] in plain, key
    for heading in re.findall(r"(?m)^## (.+)$", reference()):
        assert f'.SH "{heading.replace(chr(34), chr(92) + "(dq")}"' in plain.replace("`", ""), heading
    assert "make doc" not in plain


def test_roff_has_nothing_to_complain_about():
    for text in (configuration_page(), *(manual_page(path.name, path.read_text(encoding="utf-8")) for path in MANUALS)):
        shown, complaints = rendered(text)
        assert complaints == ""
        assert "SEE ALSO" in shown
        assert "**" not in shown


def test_what_roff_would_take_for_a_request_is_text():
    made = page(
        "x",
        1,
        "y",
        "## A\n\n.TH is no request, and 'neither' is \\this\n\n    .nf -x\n\n| T | |\n|---|---|\n| `.b` | a\\|b |\n",
    )
    assert "\n\\&.TH is no request, and \\(aqneither\\(aq is \\ethis\n" in made
    assert "\n    .nf \\-x\n" in made
    assert "\n\\fB.b\\fR\na|b\n" in made


def test_every_command_is_on_the_page_of_the_program():
    (path,) = [path for path in MANUALS if path.name == "mailgate.8.md"]
    text = manual_page(path.name, path.read_text(encoding="utf-8"))
    for heading in (line for line in "\n".join(commands(cli, "mailgate")).splitlines() if line.startswith("### ")):
        assert heading[4:].replace("-", "\\-").replace("`", "") in text


@pytest.mark.parametrize("title", ["# other - text", "# x", "", "x - y"])
def test_a_page_of_another_name_is_refused(title):
    with pytest.raises(ValueError, match="first line"):
        manual_page("x.1.md", f"{title}\n\n## A\n\nb\n")
