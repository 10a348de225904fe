"""What commands print: one JSON document for programs, tables for terminals, plain columns for everything else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mailgate.decisions.explain import printable


def moment(epoch_ms: int | None) -> str:
    """A moment for people, in UTC; "-" for none."""
    if epoch_ms is None:
        return "-"
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def size(octets: int) -> str:
    """A size for people."""
    if octets < 1024:
        return f"{octets} B"
    return f"{octets / 1024:.1f} KiB" if octets < 1 << 20 else f"{octets / (1 << 20):.1f} MiB"


def print_json(document: object) -> None:
    """Print the one JSON document of a command."""
    sys.stdout.flush()
    sys.stdout.buffer.write(_octets(document) + b"\n")
    sys.stdout.buffer.flush()


def print_json_list(head: Mapping[str, object], name: str, items: Iterable[object]) -> None:
    """Print one JSON document whose last member is a list that need not be in memory."""
    sys.stdout.flush()
    out = sys.stdout.buffer
    out.write(_octets(dict(head))[:-1].rstrip() + (b"," if head else b"") + _octets(name).join((b"\n ", b": [")))
    for number, item in enumerate(items):
        out.write((b",\n" if number else b"\n") + _octets(item))
    out.write(b"]\n}\n")
    out.flush()


def _octets(document: object) -> bytes:
    # What a client sent may hold lone surrogates: they become escapes, never an error.
    return json.dumps(document, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")


def print_text(text: str) -> None:
    """Print lines; what the terminal's encoding does not have is shown as an escape."""
    click.echo(text.encode("utf-8", "backslashreplace").decode(), nl=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Sequence[str]]]) -> None:
    """Print rows of cells; a cell has several lines.

    A terminal gets a table, anything else a line for each row: columns are two
    spaces apart, and the lines of a cell stand behind each other.
    """
    if sys.stdout.isatty():
        table = Table()
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text("\n".join(printable(line) for line in cell)) for cell in row))
        Console().print(table)
        return
    cells = [list(columns), *([", ".join(printable(line) for line in cell) for cell in row] for row in rows)]
    widths = [max(len(row[number]) for row in cells) for number in range(len(columns))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_text(line.rstrip() + "\n")
