"""What a provider's author gives the contract suite, and the provider made of it."""

import fnmatch
import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import httpx

from aftercall.providers.base import Account, Provider, Record, Request, Webhook
from aftercall.testing.parts import Answer, Api

SECRET, API_KEY = "contract-secret-5e1f", "contract-key-0c4d"
NOW = 1_795_176_060.0
SINCE = datetime(2020, 1, 1, tzinfo=UTC)
CALL_ID = "call-1"
LISTS = ("list_calls", "list_deleted")

T = TypeVar("T")


def signed_request(body: bytes, headers: Mapping[str, str], *, url: str = "") -> Request:
    """A webhook as the service hands it to `verify`: the names of its headers in lower case."""
    return Request(headers={name.lower(): value for name, value in headers.items()}, body=body, url=url)


class Genuine(NamedTuple):
    """A request that the vendor signed with one of the secrets."""

    request: Request
    secrets: tuple[str, ...]
    now: float


class Given:
    """`provider` and `fixtures` must be set, and `signed` written or `vectors.json` laid down; the rest may be.

    A request of the provider's to its API is answered with the fixture that is named after the verb, unless `routes`
    says with which: `{"/calls/{id}": "rest.get_call", "/calls/{id}/turns": ["rest.turns.page1", "rest.turns.page2"]}`.
    A list is one page for each new request; `"DELETE /calls/{id}"` is for that method alone, and a DELETE that no route
    names is answered 204. `register` is not tried.
    """

    provider: ClassVar[type[Provider]]
    fixtures: ClassVar[Path]
    ignored: ClassVar[Collection[str]] = ()  # fixtures (`chat_*`) of what is not for us: `decode` gives nothing
    body_is_identity: ClassVar[Collection[str]] = ()  # the provider's words for what only its bytes tell apart
    secret_keys: ClassVar[Collection[str]] = ()  # keys, anywhere: what stands under them never enters a call
    routes: ClassVar[Mapping[str, str | Sequence[str]]] = {}

    def signed(self, body: bytes, secret: str, now: float) -> Mapping[str, str]:
        """The headers of the vendor's signature, and no others; made without the provider's own code."""
        raise NotImplementedError


# What a contract's fixtures hold


def stems(contract: Given, prefix: str = "") -> list[str]:
    return sorted(path.stem for path in Path(contract.fixtures).glob("*.json") if path.stem.startswith(prefix))


def webhooks(contract: Given) -> list[str]:
    return [stem for stem in stems(contract) if stem != "vectors" and not stem.startswith("rest.")]


def facts(contract: Given) -> list[str]:
    ignored = [stem for pattern in contract.ignored for stem in fnmatch.filter(webhooks(contract), pattern)]
    return [stem for stem in webhooks(contract) if stem not in ignored]


def body_of(contract: Given, stem: str) -> bytes:
    return (Path(contract.fixtures) / f"{stem}.json").read_bytes()


def vectors(contract: Given) -> dict[str, dict[str, Any]]:
    stated = json.loads(body_of(contract, "vectors")) if "vectors" in stems(contract) else []
    return {vector["name"]: vector for vector in stated}


def signs(contract: Given) -> bool:
    return type(contract).signed is not Given.signed


def genuine_requests(contract: Given) -> dict[str, Genuine]:
    found = {name: parsed(vector) for name, vector in vectors(contract).items() if vector["verdict"] == "valid"}
    for stem in webhooks(contract) if signs(contract) else ():
        body = body_of(contract, stem)
        found[f"{stem}.json"] = Genuine(signed_request(body, contract.signed(body, SECRET, NOW)), (SECRET,), NOW)
    return found


def parsed(vector: Mapping[str, Any]) -> Genuine:
    """A vector's request. `now` is RFC 3339, or Unix seconds."""
    now = vector["now"]
    seconds = datetime.fromisoformat(now).timestamp() if isinstance(now, str) else float(now)
    request = signed_request(vector["body"].encode(), vector["headers"], url=vector.get("url", ""))
    return Genuine(request, tuple(vector["secrets"]), seconds)


_records: dict[type[Given], dict[str, Record]] = {}


def records(contract: Given) -> dict[str, Record]:
    """What `fetch` makes of each record among the fixtures; fetched once."""
    kind = type(contract)
    if kind not in _records:
        found = {}
        for stem in stems(contract, "rest.get_call"):
            api = api_of(contract, "rest.get_call", variant=stem)
            found[stem] = run(contract, api, lambda provider: provider.fetch(CALL_ID))
        _records[kind] = found
    return _records[kind]


def read_list(contract: Given, verb: str) -> list[Any]:
    """The pages of a list, read to its end."""

    async def read(provider: Provider) -> list[Any]:
        pages = [await getattr(provider, verb)(SINCE)]
        while pages[-1].next is not None:
            assert len(pages) < 100, "the list has no end: on its last page `next` is None"
            pages.append(await getattr(provider, verb)(SINCE, pages[-1].next))
        return pages

    told = f"lay what the API answers to {verb} down, as rest.{verb}.json, or say in `routes` what it answers"
    assert stems(contract, f"rest.{verb}") or contract.routes, told
    api = api_of(contract, f"rest.{verb}")
    pages = run(contract, api, read)
    assert not api.unread(), f"not asked for every page of {api.unread()}: `next` asks for the page after this one"
    return pages


# The provider at work


def offers(contract: Given, verb: str) -> bool:
    return getattr(contract.provider, verb) is not getattr(Provider, verb)


def made(contract: Given, base_url: str = "", http: httpx.AsyncClient | None = None) -> Provider:
    keys: dict[str, Any] = {"api_key": API_KEY, "webhook_secrets": (SECRET,), "base_url": base_url}
    return contract.provider(Account(name="contract", provider=contract.provider.name, **keys), http)


def api_of(contract: Given, stem: str, fault: Answer | None = None, variant: str = "") -> Api:
    """The vendor's API, as `routes` say; without any it answers all with the fixtures of that name. `variant` stands in
    for the record."""

    def pages(method: str, path: str) -> list[bytes] | None:
        named: str | Sequence[str] | None = None
        for route, names in contract.routes.items():
            verb, _, pattern = route.rpartition(" ")
            meant = verb == method or (not verb and method != "DELETE")
            if meant and re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(pattern)), path):
                named = names
        if named is None and method == "DELETE":
            return []
        if named is None and not contract.routes:
            named = "rest.get_call" if stem == "rest.get_call" else stems(contract, stem)
        if named is None:
            return None
        names = [named] if isinstance(named, str) else named
        return [body_of(contract, variant if variant and name == "rest.get_call" else name) for name in names]

    return Api(pages, fault)


def run(contract: Given, api: Api, use: Callable[[Provider], Awaitable[T]]) -> T:
    return api.run(lambda url, http: use(made(contract, url, http)))


def only(contract: Given, body: bytes) -> Webhook:
    found = made(contract).decode(body)
    assert len(found) == 1, f"decode gives {len(found)} webhooks, where one was expected"
    return found[0]


def decoded(contract: Given, stem: str) -> Webhook:
    return only(contract, body_of(contract, stem))
