"""`aftercall check`: is the configuration right, and what can the server in use promise?"""

import sys

import msgspec
import rich_click as click

from aftercall.cli.output import json_option, with_ledger
from aftercall.config_schema import config_schema
from aftercall.durability import Durability
from aftercall.ledger import Ledger
from aftercall.redis_client import verifies_certificate
from aftercall.settings import Settings
from aftercall.states import SinkHealth

WAITS = {
    "open": "the sink {name} fails: its circuit is open, and its deliveries wait until a probe succeeds",
    "paused": "the sink {name} is paused: `aftercall sinks resume {name}` lets what waits go out",
    "disabled": "the sink {name} is disabled ({reason}): mend it, then `aftercall sinks resume {name}`",
}


@click.command("check")
@json_option
@click.option("--schema", is_flag=True, help="Only print the JSON Schema of aftercall.toml, for your editor.")
def command(as_json: bool, schema: bool) -> None:
    """Check the configuration and Redis, and say what a 2xx is worth on this server.

    With --schema it checks nothing: save what it prints, and name the file in the first line of aftercall.toml, as in
    `#:schema ./aftercall.schema.json`. It knows the sinks and providers that are installed here.

    Exits 3 if the configuration is wrong, 5 if Redis cannot be reached, 1 if it is not fit for use.
    """
    if schema:
        return click.echo(msgspec.json.format(msgspec.json.encode(config_schema()), indent=2))

    async def look(ledger: Ledger, settings: Settings) -> tuple[Durability, Settings, dict[str, SinkHealth]]:
        return await ledger.probe(), settings, await ledger.sink_health(settings.sinks)

    durability, settings, health = with_ledger(look)
    warnings = list(durability.warnings)
    warnings += [
        WAITS[one.state].format(name=name, reason=one.reason) for name, one in health.items() if one.state in WAITS
    ]
    if not settings.sinks:
        warnings.append("no sink is configured: events stay in the ledger and go nowhere")
    if not verifies_certificate(settings.redis_url):
        warnings.append(
            "the certificate of Redis is not verified (add ?ssl_cert_reqs=required to REDIS_URL if it can be)"
        )
    if as_json:
        found = {
            "accounts": {name: account.provider for name, account in settings.accounts.items()},
            "sinks": {name: sink.sink_type for name, sink in settings.sinks.items()},
            "durability": durability.promise,
            "warnings": warnings,
            "problems": durability.problems,
        }
        click.echo(msgspec.json.encode(found))
    else:
        for name, account in settings.accounts.items():
            click.echo(f"account  {name}  {account.provider}, webhooks at POST /webhooks/{name}")
        for name, sink in settings.sinks.items():
            click.echo(f"sink     {name}  {sink.sink_type}: {', '.join(sink.events)}")
        click.echo(f"redis    {durability.promise}")
        for warning in warnings:
            click.echo(f"warning  {warning}")
        for problem in durability.problems:
            click.echo(f"problem  {problem}")
    if durability.problems:
        sys.exit(1)
    return None
