"""Configurations written in a test: what they load to, and what is wrong with them."""

from __future__ import annotations

from mailgate.config.error import ConfigErrors
from mailgate.config.load import load_text
from mailgate.config.schema.settings import Settings

LISTENER = """
[server]
hostname = "mx.test"
[server.listener.smtp]
bind = "127.0.0.1:2525"
protocol = "smtp"
"""
"""The least a test can start from; its own text goes below it, so lines count from here."""


def settings(text: str, environ: dict[str, str] | None = None) -> Settings:
    """The settings of a file that has to load."""
    return load_text(text, "t.toml", environ or {}).settings


def warnings(text: str, environ: dict[str, str] | None = None) -> list[str]:
    """The warnings of a file that has to load."""
    return [str(warning) for warning in load_text(text, "t.toml", environ or {}).warnings]


def refusals(text: str, environ: dict[str, str] | None = None) -> list[str]:
    """What the report says of a file, a text for each line; empty when it loads."""
    try:
        load_text(text, "t.toml", environ or {})
    except ConfigErrors as wrong:
        return wrong.report().splitlines()
    return []


def refusal(text: str, environ: dict[str, str] | None = None) -> str:
    """The one thing that is wrong with a file."""
    (told,) = refusals(text, environ)
    return told
