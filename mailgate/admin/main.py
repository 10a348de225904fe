"""The program `mailgate`: what operators ask and change from the command line.

Every command answers an exit status (`failure.py`). What goes wrong is one line
on standard error, or with `--json` one document on standard output; no
traceback, unless mailgate itself is broken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from mailgate.admin.command.group import LazyGroup
from mailgate.admin.failure import Failed, Status
from mailgate.admin.outlet import give_up_output, have_output
from mailgate.admin.output import print_json
from mailgate.config.paths import DEFAULT_CONFIG


class _Commands(LazyGroup):
    places = {name: f"{name}:{name}" for name in ("config", "explain", "queue", "reload", "status", "test", "version")}


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    envvar="MAILGATE_CONFIG",
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration; $MAILGATE_CONFIG names another default.",
)
@click.pass_context
def cli(context: click.Context, config_file: str) -> None:
    """Ask mailgate."""
    context.obj = config_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; answers its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_document = "--json" in given
    have_output()
    try:
        ended = cli.main(args=given, prog_name="mailgate", standalone_mode=False)
    except Failed as failed:
        return _failed(failed.status, failed.message, as_document)
    except click.exceptions.NoArgsIsHelpError as missing:
        click.echo(missing.format_message(), err=True)
        return Status.USAGE
    except click.UsageError as wrong:
        hint = f" (see {wrong.ctx.command_path} --help)" if wrong.ctx is not None else ""
        return _failed(Status.USAGE, wrong.format_message() + hint, as_document)
    except click.Abort:
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        give_up_output()
        return Status.OK
    except OSError as failure:
        # Commands tell what they cannot read or reach by themselves; left is their output, on a full disk most likely.
        give_up_output()
        return _failed(Status.NOT_NOW, f"{failure.filename or 'standard output'}: {failure.strerror}", False)
    return ended if isinstance(ended, int) else Status.OK


def _failed(status: Status, message: str, as_document: bool) -> int:
    if as_document:
        try:
            print_json({"error": {"code": int(status), "message": message}})
            return status
        except OSError:
            # Then those who read the other output are told.
            give_up_output()
    for line in message.splitlines():
        click.echo(f"mailgate: {line}", err=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
