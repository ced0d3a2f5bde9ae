"""Why a signature does not hold: what is changed until it does. Pure functions, for any provider.

A finding is certain, since no other key and no other bytes make the same signature. At most two changes are tried at
once, and the time is judged beside them: an old capture is stale whatever else happened to it.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice, product
from typing import Any, NamedTuple

import msgspec

from aftercall.alterations import Body, framed, reheaded, rewritten, symptoms
from aftercall.compositions import ORDERS, Composition, alternatives, moments
from aftercall.errors import SignatureError
from aftercall.providers.base import Account, Provider, Request, Signature
from aftercall.signing import matches_any

WORK_BYTES = 192 * 1024 * 1024  # to be hashed at most, within a second
TRY_BYTES = 8 * 1024  # what one try costs, however short the body
BODIES_BYTES = 128 * 1024 * 1024  # of altered bodies, held at once
MAX_TIMES = 12  # to be tried as the time of the signature
CLOCK_S = 900.0  # a wrong clock is seldom more wrong than that

SENDER = "the sender is not the vendor but a script or a proxy that signs in another way: mend it there"


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. `cause` is `SignatureError`'s, or `failed` where the provider's own code broke; None: it holds.

    Neither `message` nor a hint holds anything of a secret, a signature or the body.
    """

    valid: bool
    cause: str | None = None
    message: str
    hints: list[str] = []


def diagnose(
    provider: Provider,
    request: Request,
    now: float,
    *,
    others: Sequence[Provider] = (),
    earlier: Mapping[str, str] | None = None,
) -> Diagnosis:
    """Verify the request as the service does, and find out why it is refused.

    `now` is when it was received, Unix time in seconds. `others` are the providers of the other accounts, whose keys
    are tried. `earlier` has the first value of each header that came more than once (`request` has the last one).
    """
    read = _Read(request.headers)
    secrets = provider.account.webhook_secrets
    notes = _compressed(request)
    try:
        provider.verify(msgspec.structs.replace(request, headers=read), secrets, now)
    except SignatureError as error:
        cause, message = error.cause, str(error)
    except Exception as error:  # a plug-in's own; its words may quote what nobody shall read
        cause, message = "failed", f"verify of {provider.name} failed with {type(error).__name__}: mend the plug-in"
    else:
        return Diagnosis(valid=True, message="the signature holds", hints=[*notes, *_which(provider, request, now)])
    if cause == "stale":
        return Diagnosis(
            valid=False, cause=cause, message=message, hints=[*notes, _stale(provider, request, secrets, now)]
        )
    if cause == "missing":
        came = ", ".join(sorted(request.headers)) or "none; pass them with --header or --headers"
        notes.append(f"the headers that came are: {came}")
    search = _Search(provider, request, now, others=others, read=tuple(read.names or read), earlier=earlier or {})
    return Diagnosis(valid=False, cause=cause, message=message, hints=[*search.findings(cause), *notes])


class _Read(dict[str, str]):
    """Headers that notice which of them a provider reads."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__(headers)
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> str:
        self.names[name] = None
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names[str(name)] = None
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names[name] = None
        return super().get(name, default)


def _compressed(request: Request) -> list[str]:
    if request.headers.get("content-encoding", "").strip().lower() in ("", "identity"):
        return []
    return ["content-encoding says that the body is compressed: the service answers that with 400, whoever signed it"]


def _which(provider: Provider, request: Request, now: float) -> list[str]:
    """Which of several secrets it was; the others may not be needed any more."""
    secrets = provider.account.webhook_secrets
    held = [place for place, secret in _places(provider.account) if _verdict(provider, request, (secret,), now)]
    return [f"it was made with {held[0]}"] if len(secrets) > 1 and held else []


def _verdict(provider: Provider, request: Request, secrets: Sequence[str], now: float) -> str:
    """`holds`, `stale`, or nothing if it does not hold."""
    try:
        provider.verify(request, secrets, now)
    except SignatureError as error:
        return "stale" if error.cause == "stale" else ""
    except Exception:  # changed input may break a plug-in
        return ""
    return "holds"


# Keys


def _places(account: Account, *, api_key: bool = False) -> list[tuple[str, str]]:
    """Where the account's keys stand in the configuration, and the keys."""
    places = [
        (f"accounts.{account.name}.webhook_secrets[{index}]", secret)
        for index, secret in enumerate(account.webhook_secrets)
    ]
    return [*places, (f"accounts.{account.name}.api_key", account.api_key)] if api_key else places


class _Key(NamedTuple):
    hint: str
    secret: str


def _tidy(secret: str) -> str:
    return secret.strip().strip("\"'").strip()


def _own_keys(account: Account) -> Iterator[_Key]:
    known = {*account.webhook_secrets, ""}
    for place, secret in _places(account, api_key=True):
        if place.endswith("api_key") and secret not in known:
            yield _Key(
                f"it was signed with {place}, which is not among accounts.{account.name}.webhook_secrets: add it "
                "there; or the two stand in each other's place",
                secret,
            )
        if _tidy(secret) not in {*known, secret}:
            yield _Key(
                f"it was signed with {place} without the spaces, line ends or quotes around it: take them away where "
                "the secret is set",
                _tidy(secret),
            )
        if secret:
            yield _Key(
                f"it was signed with {place} and a line end after it: the sender reads its secret with the line end "
                "(echo instead of printf, a file read whole)",
                _tidy(secret) + "\n",
            )


def _others_keys(account: Account, others: Iterable[Account]) -> Iterator[_Key]:
    """One key each for secrets that several accounts share, so that all are named."""
    known = {*account.webhook_secrets, account.api_key, ""}
    found: dict[str, list[tuple[str, str]]] = {}
    for other in sorted(others, key=lambda other: other.provider != account.provider):
        for place, secret in _places(other, api_key=True):
            for spelt in dict.fromkeys((secret, _tidy(secret))):
                if spelt not in known:
                    found.setdefault(spelt, []).append((place, other.name))
    for secret, places in found.items():
        where = ", ".join(place for place, _ in places)
        names = " or ".join(dict.fromkeys(name for _, name in places))
        yield _Key(
            f"it was signed with {where}: the webhook is of the account {names}, or the keys are mixed up. Have the "
            f"provider send it to /webhooks/{places[0][1]}, or add the key to accounts.{account.name}.webhook_secrets",
            secret,
        )


# Other compositions


def _composed(provider: Provider, composition: Composition, own: str | None) -> str:
    """What it means that this composition made the signature."""
    told = []
    if composition.order != own:
        told.append(f"it was signed over {composition.order}" + (f", and {provider.name} signs {own}" if own else ""))
    if composition.timestamp:
        told.append(f"it was signed over {composition.timestamp}")
    if composition.key:
        told.append(f"it was signed with {composition.key}, and {provider.name} uses the secret's text as it is")
    return f"{'; '.join(told)}: {SENDER}"


def _own_order(provider: Provider, request: Request, signature: Signature, now: float) -> str | None:
    """The order that the provider itself takes, found by signing the request with its first secret in each."""
    for order in ORDERS:
        secret = next(iter(provider.account.webhook_secrets), "")
        digest = Composition(order).digest(secret, request.body, signature.timestamp) if secret else None
        if digest is None:
            return None
        headers = dict(request.headers)
        for name, value in headers.items():
            for old in signature.digests:
                value = re.sub(old.hex(), digest.hex(), value, flags=re.IGNORECASE)
                value = value.replace(base64.b64encode(old).decode(), base64.b64encode(digest).decode())
            headers[name] = value
        if _verdict(provider, msgspec.structs.replace(request, headers=headers), (secret,), now):
            return order
    return None


# The search


class _Case(NamedTuple):
    """One explanation: what it means, and what would have to hold for it."""

    hints: tuple[str, ...]
    request: Request
    secrets: Sequence[str]
    provider: Provider | None = None  # None: the account's own
    composition: Composition | None = None  # None: the provider's


class _Search:
    """All the explanations, the simple ones first, and work within bounds."""

    def __init__(
        self,
        provider: Provider,
        request: Request,
        now: float,
        *,
        others: Sequence[Provider],
        read: Sequence[str],
        earlier: Mapping[str, str],
    ) -> None:
        self.provider, self.request, self.now, self.others = provider, request, now, others
        self.read, self.earlier = read, earlier
        self.secrets = provider.account.webhook_secrets
        self.left = WORK_BYTES
        self.cut = False
        self.own_keys = list(_own_keys(provider.account))
        self.others_keys = list(_others_keys(provider.account, [other.account for other in others]))
        self.signature = _signature(provider, request)
        self.own_order = _own_order(provider, request, self.signature, now) if self.signature else None
        seen = {request.body, b""}
        self.framed = self._kept(framed(request.body), seen)
        self.rewritten = self._kept(rewritten(request.body), seen)

    def findings(self, cause: str) -> list[str]:
        """What was found, or what is left to look at."""
        found: dict[str, None] = {}
        for case in self._single():
            found |= dict.fromkeys(self._judge(case))
        for case in () if found else self._double():
            if self.left < 0 or found:
                break
            found |= dict.fromkeys(self._judge(case))
        return list(found) or self._nothing(cause)

    def _judge(self, case: _Case) -> tuple[str, ...]:
        """The case's hints if it explains the signature, with the time's where that does not hold either."""
        if case.composition is not None:
            return case.hints if self._is_made_by(case, case.composition) else ()
        if not self._may_hash(case.request, len(case.secrets)):
            return ()
        provider = case.provider or self.provider
        verdict = _verdict(provider, case.request, case.secrets, self.now)
        if verdict == "stale":
            return (*case.hints, _stale(provider, case.request, case.secrets, self.now))
        return case.hints if verdict else ()

    def _is_made_by(self, case: _Case, composition: Composition) -> bool:
        signature = self.signature
        if signature is None:
            return False
        able = [secret for secret in case.secrets if composition.suits(secret, signature.timestamp)]
        if not able or not self._may_hash(case.request, len(able)):
            return False
        made = [composition.digest(secret, case.request.body, signature.timestamp) for secret in able]
        return matches_any(signature.digests, [digest for digest in made if digest is not None])

    def _may_hash(self, request: Request, times: int) -> bool:
        self.left -= (len(request.body) + TRY_BYTES) * times
        self.cut = self.cut or self.left < 0
        return self.left >= 0

    def _with(self, body: bytes, headers: Mapping[str, str] | None = None) -> Request:
        return msgspec.structs.replace(self.request, body=body, headers=headers or self.request.headers)

    def _kept(self, every: Iterable[Body], seen: set[bytes]) -> list[Body]:
        """The altered bodies that were not seen, as many as may be held."""
        kept: list[Body] = []
        for altered in every:
            if altered.body not in seen:
                if len(altered.body) * len(seen) > BODIES_BYTES:
                    self.cut = True
                    break
                seen.add(altered.body)
                kept.append(altered)
        return kept

    def _headers(self, request: Request) -> Iterator[_Case]:
        for altered in reheaded(request.headers, self.read, self.earlier):
            yield _Case((altered.hint,), msgspec.structs.replace(request, headers=altered.headers), self.secrets)

    def _compositions(self, changes: int) -> Iterator[tuple[str, Composition]]:
        """Those that differ from the provider's own in so many ways, and what each means."""
        for one in alternatives(self.own_order, changes) if self.signature else ():
            yield _composed(self.provider, one, self.own_order), one

    def _single(self) -> Iterator[_Case]:
        request, secrets = self.request, self.secrets
        for hint, secret in self.own_keys:
            yield _Case((hint,), request, (secret,))
        yield from self._headers(request)
        for hint, composition in self._compositions(1):
            yield _Case((hint,), request, secrets, composition=composition)
        for hint, body, _ in chain(self.framed, self.rewritten):
            yield _Case((hint,), self._with(body), secrets)
        for hint, secret in self.others_keys:
            yield _Case((hint,), request, (secret,))
        for other in self.others:
            if other.name != self.provider.name:
                name = other.account.name
                hint = (
                    f"it is a webhook of {other.name} for the account {name}: pass --account {name}, or have it sent "
                    f"to /webhooks/{name}"
                )
                yield _Case((hint,), request, other.account.webhook_secrets, provider=other)

    def _double(self) -> Iterator[_Case]:
        request, secrets = self.request, self.secrets
        keys = [*self.own_keys, *self.others_keys]
        bodies = [*self.framed, *self.rewritten]
        headers, compositions = list(self._headers(request)), list(self._compositions(1))
        for (hint, secret), case in product(keys, headers):
            yield _Case((hint, *case.hints), case.request, (secret,))
        for first in headers:
            for second in self._headers(first.request):
                yield _Case((*first.hints, *second.hints), second.request, secrets)
        for hint, composition in self._compositions(2):
            yield _Case((hint,), request, secrets, composition=composition)
        for (hint, secret), (means, composition) in product(keys, compositions):
            yield _Case((hint, means), request, (secret,), composition=composition)
        for altered in bodies:
            changed = self._with(altered.body)
            for hint, secret in self.own_keys:
                yield _Case((altered.hint, hint), changed, (secret,))
            for case in headers:
                yield _Case((altered.hint, *case.hints), self._with(altered.body, case.request.headers), secrets)
        for altered in self.framed:
            for further in chain(framed(altered.body), rewritten(altered.body) if altered.packed else ()):
                yield _Case((altered.hint, further.hint), self._with(further.body), secrets)
        for altered in self.rewritten:
            lost = "the newline at the end of the body was lost"
            yield _Case((altered.hint, lost), self._with(altered.body + b"\n"), secrets)
        for altered in bodies:
            changed = self._with(altered.body)
            for hint, secret in self.others_keys:
                yield _Case((altered.hint, hint), changed, (secret,))
            for hint, composition in compositions:
                yield _Case((altered.hint, hint), changed, secrets, composition=composition)

    def _nothing(self, cause: str) -> list[str]:
        account = self.provider.account
        hints = []
        if cause in ("mismatch", "failed"):
            tried = len({*account.webhook_secrets, *(key.secret for key in (*self.own_keys, *self.others_keys))})
            hints.append(
                f"none of what was tried explains it: the configured keys ({tried} with their variants) with each "
                f"usual change of body and headers. Compare accounts.{account.name}.webhook_secrets with the secret "
                f"at {self.provider.name}, and capture the body where it arrives first"
            )
            if account.api_key in account.webhook_secrets and self.provider.needs != ("api_key",):
                hints.append(
                    f"accounts.{account.name}.webhook_secrets holds the account's api_key: {self.provider.name} has a "
                    "secret of its own for webhooks"
                )
            if self.provider.believes_body:
                hints += symptoms(self.request.body)
        if self.cut:
            hints.append("the body is so large that not everything was tried: capture a smaller webhook")
        return hints


def _signature(provider: Provider, request: Request) -> Signature | None:
    try:
        return provider.signature(request)
    except Exception:  # a plug-in's own, of a request that it has refused
        return None


# The time


def _stale(provider: Provider, request: Request, secrets: Sequence[str], now: float) -> str:
    right = "the signature is right, but"
    signed_at = _signed_at(provider, request, secrets)
    if signed_at is None:
        return f"{right} not its time: pass --at with the time when it was received, if it is a capture"
    if not 1e9 < signed_at < 1e11:
        return (
            f"{right} {provider.name} counts its timestamp in another unit (seconds for milliseconds, or the other way "
            f"round): {SENDER}"
        )
    age = now - signed_at
    at = datetime.fromtimestamp(signed_at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if age < 0:
        return (
            f"{right} it was made {_span(-age)} after it is said to have come ({at}): the clock of this machine or the "
            "time in --at is behind, or the sender's clock is ahead"
        )
    if age < CLOCK_S:
        why = (
            "a clock is wrong (is NTP running on this machine?), it was held up on the way, or it is a retry with the "
            "time of the first attempt"
        )
    else:
        why = "it is an old capture, or a replay: somebody sends again what was sent once"
    return f"{right} it was made {_span(age)} before it came ({at}): {why}. For a capture pass --at"


def _signed_at(provider: Provider, request: Request, secrets: Sequence[str]) -> float | None:
    """When it was signed, Unix seconds: the time in its headers at which it holds."""
    signature = _signature(provider, request)
    texts = [signature.timestamp] if signature else []
    for value in request.headers.values():
        texts += re.findall(r"(?<![0-9])(?:[0-9]{10}|[0-9]{13})(?![0-9])", value)
        texts += re.findall(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]+(?:Z|[+-][0-9:]+)?", value)
    for moment in islice(chain.from_iterable(map(moments, dict.fromkeys(texts))), MAX_TIMES):
        if _verdict(provider, request, secrets, moment) == "holds":
            return moment
    return None


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
