"""The manual page mailgate(8): a text that stands in the source, and in it the commands as they are.

`python -m mailgate.admin.manual FILE` puts the commands in the place of
`{commands}` in a Markdown file and writes the page to standard output. Any
other page is written in the same way: the file is called NAME.SECTION.md, its
first line is `# NAME - what it is`.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator

import click

from mailgate.admin.main import cli
from mailgate.config.manual import page

COMMANDS = "{commands}"


def manual_page(file_name: str, markdown: str) -> str:
    """A page of a file NAME.SECTION.md. Raises `ValueError` where the name or the first line is another."""
    name, section, ending = os.path.basename(file_name).rsplit(".", 2)
    title, _, text = markdown.partition("\n")
    before, dash, summary = title.partition(" - ")
    if not (dash and before == f"# {name}" and ending == "md"):
        raise ValueError(f"{file_name}: the first line is `# {name} - what it is`, not `{title}`")
    if COMMANDS in text:
        text = text.replace(COMMANDS, "\n".join(commands(cli, "mailgate")))
    return page(name, int(section), summary, text)


def commands(group: click.Group, path: str) -> Iterator[str]:
    """Every command of a group in Markdown, with its options."""
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        here = f"{path} {name}"
        if isinstance(command, click.Group):
            yield from commands(command, here)
            continue
        with click.Context(command, info_name=here) as context:
            usage = " ".join((here, *command.collect_usage_pieces(context)))
            yield f"### {usage}\n\n{inspect.cleandoc(command.help or '')}\n"
            told = [record for each in command.params if (record := each.get_help_record(context)) and record[1]]
        if told:
            yield "| Option | |\n|---|---|"
            yield "\n".join(f"| `{_cell(option)}` | {_cell(text)} |" for option, text in told) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as _file:
        sys.stdout.write(manual_page(sys.argv[1], _file.read()))
