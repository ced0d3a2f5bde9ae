"""`aftercall verify`: does a captured webhook's signature hold, and if not, why not?"""

import re
import sys
import time
from codecs import BOM_UTF8
from datetime import datetime
from typing import BinaryIO

import msgspec
import rich_click as click

from aftercall import settings
from aftercall.cli.output import FAILED, choose_account
from aftercall.diagnosis import diagnose
from aftercall.plugins import provider_class
from aftercall.providers.base import Request

_FIRST_LINE = re.compile(r"HTTP/[0-9.]+ |[A-Z]+ \S+( HTTP/[0-9.]+)?$")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2


@click.command("verify")
@click.option("--account", required=True, help="The account that it was sent to: the last part of its URL.")
@click.option("--body", required=True, type=click.File("rb"), help="The body, byte for byte; - is standard input.")
@click.option("--header", "lines", multiple=True, metavar="'NAME: VALUE'", help="One header; may be repeated.")
@click.option(
    "--headers", "dump", type=click.File("rb"), help="A file of headers, one a line, as curl -i and proxies print them."
)
@click.option("--at", help="When it was received, as in 2026-11-20T12:00:00Z. Default: now.")
@click.option("--url", default="", help="The URL that was called, where a provider signs that too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: valid, cause, message, hints.")
def command(
    account: str, body: BinaryIO, lines: tuple[str, ...], dump: BinaryIO | None, at: str | None, url: str, as_json: bool
) -> None:
    """Say whether a webhook's signature holds, and if not, what would have to be different.

    The configured keys, the usual changes to body and headers on the way and other ways to sign are tried, at most two
    at once. Shows no secret, and nothing of the body. Exits 0 if the signature holds, 1 if not. Needs no Redis.
    """
    loaded = settings.load(need_redis=False)
    chosen = choose_account(account, loaded)
    if dump is not None and dump is body:
        raise click.UsageError("--body and --headers cannot both be read from standard input")
    now = time.time() if at is None else _moment(at)
    headers = read_headers(dump.read().removeprefix(BOM_UTF8).decode("latin-1"), "--headers") if dump else []
    for line in lines:  # bytes as they were typed, and as the service reads them
        headers += read_headers(line.encode("utf-8", "surrogateescape").decode("latin-1"), "--header")
    earlier: dict[str, str] = {}
    last: dict[str, str] = {}
    for name, value in headers:
        if name in last:
            earlier.setdefault(name, last[name])
        last[name] = value
    found = diagnose(
        provider_class(chosen.provider)(chosen),
        Request(headers=last, body=body.read(), url=url or f"/webhooks/{account}"),
        now,
        others=[provider_class(one.provider)(one) for one in loaded.accounts.values() if one.name != account],
        earlier=earlier,
    )
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        click.echo(f"{account} ({chosen.provider}): {found.message}")
        for hint in found.hints:
            click.echo(f"- {hint}")
    if not found.valid:
        sys.exit(FAILED)


def read_headers(text: str, option: str) -> list[tuple[str, str]]:
    """Names, in lower case, and values from a dump of headers; what follows an empty line is the body.

    A request or status line, the marks of curl -v and pseudo-headers of HTTP/2 are passed over.
    """
    found: list[tuple[str, str]] = []
    for number, line in enumerate(re.split("\r?\n", text), start=1):
        bare = re.sub(r"^[<>] ?", "", line)
        if not bare.strip():
            if found:
                break
            continue
        if bare[0] in " \t" and found:  # a folded line
            found[-1] = (found[-1][0], f"{found[-1][1]} {bare.strip()}".strip())
            continue
        if _FIRST_LINE.match(bare) or re.match(r":[a-z]+: |\* ", bare):
            continue
        name, colon, value = bare.partition(":")
        if not colon or not _NAME.fullmatch(name.strip()):
            where = f"line {number} of {option}" if option == "--headers" else option
            raise click.UsageError(f"{where} is no header; expected name: value")  # and not shown: it may be a secret
        found.append((name.strip().lower(), value.strip(" \t")))
    return found


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.UsageError(f"--at: {text!r} is no time with an offset, as in 2026-11-20T12:00:00Z")
    return moment.timestamp()
