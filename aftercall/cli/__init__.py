"""The operator's command. Data goes to stdout (`--json`: one JSON object a line), messages and progress to stderr.

Exit codes: 0 ok, 1 failed, 2 usage, 3 configuration, 4 partly done, 5 Redis or a provider unreachable.
"""

import os
import sys

import rich_click as click

from aftercall.cli import calls, check, dead, demo, dev, erase, events, reconcile, register, replay, sinks, verify
from aftercall.cli.output import CONFIGURATION, UNREACHABLE
from aftercall.errors import ConfigurationError, LedgerUnavailable, ProviderError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="aftercall")
def aftercall() -> None:
    """aftercall takes the webhooks of AI voice-agent platforms and delivers normalized calls."""


for module in (calls, check, dead, demo, dev, erase, events, reconcile, register, replay, sinks, verify):
    aftercall.add_command(module.command)


def main() -> None:
    """Run the command; its errors become a message and an exit code, never a traceback."""
    sys.path.append(os.getcwd())  # a sink of the user's own lies here, and `python -m workers` finds it so
    try:
        aftercall.main(prog_name="aftercall")
    except ConfigurationError as error:
        click.echo(f"The configuration is wrong:\n{error}", err=True)
        sys.exit(CONFIGURATION)
    except LedgerUnavailable as error:
        click.echo(f"{error}. Is REDIS_URL right, and the server up and writable?", err=True)
        sys.exit(UNREACHABLE)
    except ProviderError as error:
        click.echo(str(error), err=True)
        sys.exit(UNREACHABLE)
