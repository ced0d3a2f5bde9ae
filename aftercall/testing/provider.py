"""What every provider promises, as tests that a provider's author reads when one of them is red."""

import base64
import fnmatch
import json
import re
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import get_args

import httpx
import msgspec

try:
    import pytest
except ModuleNotFoundError:
    raise ImportError("aftercall.testing is run by pytest, which is not installed: pip install pytest") from None

from aftercall.call import Call
from aftercall.errors import ProviderError, RecordNotReady, SignatureError, UndecodableWebhook
from aftercall.event import EventType
from aftercall.providers.base import Provider, Record, Request, Webhook
from aftercall.providers.shapes import decode_json
from aftercall.testing import given
from aftercall.testing.given import API_KEY, CALL_ID, SINCE, Given, signed_request
from aftercall.testing.parts import (
    MARKER,
    SILENCE,
    Answer,
    bent,
    bent_bodies,
    hollow,
    planted,
    said,
    tampered,
    texts,
)

OTHER_SECRET = "another-secret-77b2"
TEN_YEARS_S = 315_576_000.0
CAUSES = ("missing", "malformed", "mismatch", "stale")
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
NOT_JSON = (b"", b" ", b"<html>", b"{", b"null", b"[]", b"7", b'"text"', b"\xff\xfe", b"[" * 100_000)
GARBLED = (" ", "x", "\u2603", "\x00", "=,;", "0" * 10_000)
FAILURES: dict[str, Answer] = {
    "401": (401, b"{}", {}),
    "403": (403, b"{}", {}),
    "404": (404, b"{}", {}),
    "429": (429, b"{}", {"retry-after": "7"}),
    "500": (500, b"", {}),
    "503 in HTML": (503, b"<html>", {}),
    "HTML": (200, b"<html>", {}),
    "null": (200, b"null", {}),
    "a list": (200, b"[]", {}),
    "JSON cut short": (200, b'{"id": "x', {}),
    "no answer": SILENCE,
}
OUTAGES = ("401", "429", "500", "503 in HTML", "HTML", "no answer")


class ProviderContract(Given):
    """What every provider promises. Subclass it as `Test…`; what to set is described at `Given`."""

    # The class and its fixtures

    def test_the_class_says_who_it_is(self) -> None:
        kind = self.provider
        assert kind.name, "set `name`: what events say in `source`"
        assert kind.base_url.startswith("https://"), "set `base_url` to the vendor's API, with https"
        assert set(kind.needs) <= {"api_key", "webhook_secrets"}, "`needs` may name api_key and webhook_secrets"

    def test_there_are_webhooks_records_and_signatures_to_try(self) -> None:
        assert given.facts(self), f"lay a webhook's body into {self.fixtures}, as <event>.json"
        assert given.stems(self, "rest.get_call"), (
            f"lay what the API answers to `fetch` into {self.fixtures}, as rest.get_call.json"
        )
        assert given.genuine_requests(self), "write `signed`, or lay down a vectors.json with a valid request"
        unknown = [pattern for pattern in self.ignored if not fnmatch.filter(given.webhooks(self), pattern)]
        assert not unknown, f"`ignored` names what is no fixture: {unknown}"
        everything = "".join((self.fixtures / f"{stem}.json").read_text("utf-8") for stem in given.stems(self))
        absent = {key for key in self.secret_keys if json.dumps(key) not in everything}
        assert not absent, f"no fixture has the secret_keys {sorted(absent)}: put them where the vendor does"

    # verify

    def test_a_request_is_judged_as_its_vector_says(self, vector: str) -> None:
        stated = given.vectors(self)[vector]
        cause = _cause(self, *given.parsed(stated))
        assert cause == stated["verdict"], f"vectors.json says {stated['verdict']}, verify says {cause}"

    def test_a_signed_webhook_is_accepted(self, genuine: str) -> None:
        cause = _cause(self, *given.genuine_requests(self)[genuine])
        assert cause == "valid", f"a request signed as the vendor signs is refused: {cause}"

    def test_a_changed_body_is_refused(self, genuine: str) -> None:
        if not self.provider.believes_body:
            pytest.skip("believes_body = False: no signature covers the body")
        request, secrets, now = given.genuine_requests(self)[genuine]
        for what, body in tampered(request.body):
            cause = _cause(self, msgspec.structs.replace(request, body=body), secrets, now)
            assert cause == "mismatch", f"a body with {what} must be refused as mismatch, and is {cause}"

    def test_another_secret_is_refused(self, genuine: str) -> None:
        request, _, now = given.genuine_requests(self)[genuine]
        cause = _cause(self, request, (OTHER_SECRET,), now)
        assert cause == "mismatch", f"a request signed with another secret must be refused as mismatch, and is {cause}"

    def test_any_of_several_secrets_is_accepted(self, genuine: str) -> None:
        request, secrets, now = given.genuine_requests(self)[genuine]
        for several in ((OTHER_SECRET, *secrets), (*secrets, OTHER_SECRET), ("", *secrets)):
            cause = _cause(self, request, several, now)
            assert cause == "valid", f"while secrets are rotated any of them must do; of {len(several)}: {cause}"

    def test_without_a_secret_nothing_is_accepted(self, genuine: str) -> None:
        request, _, now = given.genuine_requests(self)[genuine]
        requests = [request]
        if given.signs(self):
            requests.append(signed_request(request.body, self.signed(request.body, "", now)))
        for forged in requests:
            for secrets in ((), ("",), ("", "")):
                cause = _cause(self, forged, secrets, now)
                assert cause not in ("valid", "stale"), f"accepted with the secrets {secrets}: leave empty ones out"

    def test_a_missing_header_is_refused_as_missing(self, genuine: str) -> None:
        request, secrets, now = given.genuine_requests(self)[genuine]
        for header in request.headers:
            for headers in ({**request.headers, header: ""}, {k: v for k, v in request.headers.items() if k != header}):
                cause = _cause(self, msgspec.structs.replace(request, headers=headers), secrets, now)
                assert cause == "missing", f"without {header} the cause must be missing, and is {cause}"

    def test_a_garbled_header_is_refused(self, genuine: str) -> None:
        request, secrets, now = given.genuine_requests(self)[genuine]
        for header, value in request.headers.items():
            for garbled in (*GARBLED, value[: len(value) // 3]):
                headers = {**request.headers, header: garbled}
                cause = _cause(self, msgspec.structs.replace(request, headers=headers), secrets, now)
                assert cause not in ("valid", "stale"), f"{header}: {garbled[:40]!r} was taken for genuine ({cause})"

    def test_only_a_genuine_request_is_called_stale(self, genuine: str) -> None:
        request, secrets, now = given.genuine_requests(self)[genuine]
        forged: list[tuple[Request, tuple[str, ...]]] = [(request, (OTHER_SECRET,))]
        if self.provider.believes_body:
            forged.append((msgspec.structs.replace(request, body=request.body + b" "), secrets))
        for moment in (now - TEN_YEARS_S, now + TEN_YEARS_S):
            cause = _cause(self, request, secrets, moment)
            assert cause in ("valid", "stale"), f"ten years away a genuine request is stale, not {cause}"
            for other, with_secrets in forged:
                cause = _cause(self, other, with_secrets, moment)
                assert cause == "mismatch", f"a forged request is {cause} ten years away: check the age last"

    def test_the_parts_of_a_signature_can_be_read(self, genuine: str) -> None:
        request, _, _ = given.genuine_requests(self)[genuine]
        provider = given.made(self)
        parts = provider.signature(request)
        if parts is not None:
            sent = " ".join(request.headers.values())
            assert parts.digests, "`signature` found no digest in a genuine request"
            for digest in parts.digests:
                spelt = digest.hex() in sent.lower() or base64.b64encode(digest).decode() in sent
                assert spelt, "`signature` gives a digest that is not in the headers, in hex or base64"
            assert parts.timestamp in sent, "the timestamp must be as it was sent"
        for garbled in (*GARBLED, ""):
            provider.signature(msgspec.structs.replace(request, headers=dict.fromkeys(request.headers, garbled)))
        assert provider.signature(msgspec.structs.replace(request, headers={})) is None

    # decode

    def test_a_webhook_is_one_fact_about_a_call(self, webhook: str) -> None:
        found = given.made(self).decode(given.body_of(self, webhook))
        if webhook not in given.facts(self):
            assert found == [], "`ignored` names it, and decode gives something"
            return
        assert len(found) == 1, f"decode gives {len(found)} webhooks: one a fixture, or name it in `ignored`"
        _check_webhook(found[0])

    def test_copies_of_a_webhook_have_the_same_dedupe_key(self, fact: str) -> None:
        webhook = given.decoded(self, fact)
        assert given.decoded(self, fact) == webhook, "the same bytes decode to another webhook the second time"
        if webhook.event in self.body_is_identity:
            return
        document = json.loads(webhook.body)
        for respelt in (json.dumps(document, indent=1), json.dumps(document, sort_keys=True, ensure_ascii=False)):
            key = given.only(self, respelt.encode()).dedupe_key
            assert key == webhook.dedupe_key, (
                f"the key of {webhook.event} depends on how its JSON is spelt: {key} and {webhook.dedupe_key}. Make it "
                "of the ids, or of parsed and sorted JSON; or name the event in `body_is_identity`"
            )

    def test_different_facts_have_different_dedupe_keys(self, fact: str) -> None:
        webhook = given.decoded(self, fact)
        for name in given.facts(self):
            other = given.decoded(self, name)
            if other.dedupe_key == webhook.dedupe_key:
                about = (webhook.event, webhook.call_id)
                assert about == (other.event, other.call_id), f"{name} has the same key: put event and call id into it"
        if webhook.call_id.encode() in webhook.body:
            call_id = webhook.call_id[:-1] + ("1" if webhook.call_id.endswith("0") else "0")
            other = given.only(self, webhook.body.replace(webhook.call_id.encode(), call_id.encode()))
            assert other.call_id == call_id, "the call id is not the one in the body"
            assert other.dedupe_key != webhook.dedupe_key, "another call's fact has the same key: put the id into it"

    def test_what_is_not_json_is_refused(self) -> None:
        for body in NOT_JSON:
            assert _refused(self, body), f"{body[:20]!r} is taken for a webhook: raise UndecodableWebhook"

    def test_a_body_that_is_no_utf_8_or_nested_too_deeply_is_refused(self, fact: str) -> None:
        rest = given.body_of(self, fact).lstrip().removeprefix(b"{")
        for what, more in (
            ("a byte that is no UTF-8", b'"\xff"'),
            ("100,000 brackets", b"[" * 100_000 + b"]" * 100_000),
        ):
            refused = _refused(self, b'{"more":' + more + b"," + rest)
            assert refused, f"with {what} in it the webhook is decoded: shapes.decode_routing helps"

    def test_no_body_makes_decode_fail_in_another_way(self, webhook: str) -> None:
        provider = given.made(self)
        for body in bent_bodies(given.body_of(self, webhook), webhook):
            found, refusal = [], ""
            try:
                found = provider.decode(body)
            except UndecodableWebhook as error:
                refusal = str(error)
            assert MARKER not in refusal, f"the refusal quotes the body: {refusal}"
            assert isinstance(found, list), "decode gives a list"
            for one in found:
                _check_webhook(one)

    # fetch

    def test_fetch_gives_the_record(self, record: str) -> None:
        assert isinstance(given.records(self)[record], dict), "a record is an object"

    def test_fetch_reads_every_page(self) -> None:
        api = given.api_of(self, "rest.get_call")
        given.run(self, api, lambda provider: provider.fetch(CALL_ID))
        assert not api.unread(), f"not asked for every page of {api.unread()}"

    def test_the_api_key_is_sent_in_a_header(self) -> None:
        api = given.api_of(self, "rest.get_call")
        given.run(self, api, lambda provider: provider.fetch(CALL_ID))
        for asked in api.asked:
            assert API_KEY not in asked.target, "the API key is in the URL, which proxies write into their logs"
            sent = any(API_KEY in value for value in asked.headers.values())
            assert sent or "api_key" not in self.provider.needs, f"{asked.target} is asked for without the API key"

    def test_a_call_id_cannot_lead_to_another_path(self) -> None:
        def shapes(call_id: str) -> set[tuple[int, ...]]:
            api = given.api_of(self, "rest.get_call")
            given.run(self, api, lambda provider: provider.fetch(call_id))
            return {tuple(asked.target.count(sign) for sign in "/?#") for asked in api.asked}

        told = "a call id with ../ ? and # in it changes the URL: urllib.parse.quote(call_id, safe='') helps"
        assert shapes("../../keys?all=1&x=2#y") == shapes(CALL_ID), told

    def test_whatever_the_api_answers_the_record_is_not_ready(self, failure: str) -> None:
        with pytest.raises(RecordNotReady) as caught:
            given.run(
                self, given.api_of(self, "rest.get_call", FAILURES[failure]), lambda provider: provider.fetch(CALL_ID)
            )
        _check_refusal(caught.value, FAILURES[failure])

    def test_an_api_that_cannot_be_reached_makes_a_record_not_ready(self) -> None:
        async def fetch(_: str, http: httpx.AsyncClient) -> Record:
            return await given.made(self, "http://127.0.0.1:1", http).fetch(CALL_ID)

        with pytest.raises(RecordNotReady):
            given.api_of(self, "rest.get_call").run(fetch)

    # normalize

    def test_normalize_makes_a_valid_call(self, fact: str) -> None:
        provider, webhook = given.made(self), given.decoded(self, fact)
        for name, record in {"no record": None, "an empty record": {}, **given.records(self)}.items():
            call = _check_normalize(provider, webhook, record)
            expires_at = call.recording.expires_at if call.recording else None
            for stamp in (call.started_at, call.ended_at, call.privacy.redacted_at, expires_at):
                assert stamp is None or STAMP.fullmatch(stamp), f"with {name}: {stamp!r} is not RFC 3339 UTC with ms"
            turns = [ms for turn in call.transcript or () for ms in (turn.start_ms, turn.end_ms)]
            for duration in (call.duration_ms, *turns):
                assert duration is None or duration >= 0, f"with {name}: {duration} ms is less than nothing"

    def test_what_only_the_webhook_carried_stays(self, fact: str) -> None:
        provider, webhook = given.made(self), given.decoded(self, fact)
        alone = provider.normalize(webhook, None)
        assert provider.normalize(webhook, {}) == alone, "an empty record takes something away: shapes.merge helps"
        for name, record in given.records(self).items():
            if webhook.call_id not in texts(record) or provider.is_deleted(record):
                continue  # another call's; or what was deleted, which need not stay
            for how, merged in (("emptied", hollow(record)), ("", record)):
                lost = _said(alone) - _said(provider.normalize(webhook, merged))
                assert not lost, (
                    f"{sorted(lost)}: told by the webhook, lost by merging {name} {how}: shapes.merge helps"
                )

    def test_normalize_never_fails(self, fact: str) -> None:
        provider, webhook = given.made(self), given.decoded(self, fact)
        records = list(given.records(self).values())
        for number, body in enumerate(bent_bodies(webhook.body, fact)):
            record = bent(records[number % len(records)], Random(number)) if records and number % 3 else None
            record = decode_json(json.dumps(record)) if record else record  # as `fetch` gives it
            odd = webhook if number % 2 else msgspec.structs.replace(webhook, body=body)
            _check_normalize(provider, odd, record)
            provider.facts(record or {})
            provider.is_deleted(record or {})

    def test_no_secret_enters_the_call(self, fact: str) -> None:
        if not self.secret_keys:
            pytest.skip("set secret_keys: where the vendor puts access tokens, join URLs, SIP credentials, prompts")
        provider, webhook = given.made(self), given.decoded(self, fact)
        body = json.dumps(planted(json.loads(webhook.body), self.secret_keys)).encode()
        for name, record in {"no record": None, **given.records(self)}.items():
            hidden = msgspec.structs.replace(webhook, body=body)
            call = provider.normalize(hidden, planted(record, self.secret_keys))
            leaked = [field for field in call.__struct_fields__ if MARKER in str(getattr(call, field))]
            assert not leaked, f"with {name}: what stands under a secret key is in the call's {leaked}"

    # What an API may have beside the record

    def test_the_facts_of_a_listed_call_are_webhooks(self) -> None:
        provider = given.made(self)
        known = [given.decoded(self, name) for name in given.facts(self)]
        records = {name: json.loads(given.body_of(self, name)) for name in given.stems(self, "rest.get_call")}
        listed = dict(records)
        if given.offers(self, "list_calls"):
            calls = [call for page in given.read_list(self, "list_calls") for call in page.calls]
            listed = {f"call {number} of the list": call for number, call in enumerate(calls, 1)}
        for name, record in (records | listed).items():
            assert isinstance(provider.is_deleted(record), bool), "is_deleted says True or False"
            for body in provider.facts(record):
                fact = given.only(self, body)
                _check_webhook(fact)
                _check_normalize(provider, fact, None)
                assert fact.call_id in texts(record), f"{name}: a fact about another call, {fact.call_id}"
                keys = {one.dedupe_key for one in known if (one.event, one.call_id) == (fact.event, fact.call_id)}
                told = f"{name}: the key of {fact.event} is {fact.dedupe_key}, its webhook's {keys}: it comes out twice"
                assert not keys or name not in listed or fact.dedupe_key in keys, told

    def test_a_call_that_goes_on_has_no_facts(self) -> None:
        assert given.made(self).facts({}) == [], "a record that shows no end has no facts"
        if not given.offers(self, "facts"):
            pytest.skip(f"{self.provider.name} tells no facts of listed calls")
        ongoing = given.stems(self, "rest.get_call.ongoing")
        assert ongoing, "lay the record of a call that goes on down, as rest.get_call.ongoing.json"
        for name in ongoing:
            assert given.made(self).facts(json.loads(given.body_of(self, name))) == [], (
                f"{name}: facts before the call is over"
            )

    def test_a_list_is_read_to_its_end(self, listing: str) -> None:
        for page in given.read_list(self, listing):
            calls = page.calls if listing == "list_calls" else page.call_ids
            assert all(isinstance(call, dict if listing == "list_calls" else str) for call in calls), f"a page: {page}"

    def test_a_list_that_fails_says_so(self, listing: str) -> None:
        for name in OUTAGES:
            with pytest.raises(ProviderError) as caught:
                given.run(
                    self,
                    given.api_of(self, f"rest.{listing}", FAILURES[name]),
                    lambda made: getattr(made, listing)(SINCE),
                )
            _check_refusal(caught.value, FAILURES[name])

    def test_a_call_is_deleted_and_one_that_is_gone_counts_as_deleted(self) -> None:
        if not given.offers(self, "delete"):
            pytest.skip(f"{self.provider.name} offers no deletion")
        gone: list[Answer] = [(status, b"{}", {}) for status in self.provider.not_found]
        for fault in (None, *gone):
            api = given.api_of(self, "rest.get_call", fault)
            kept = given.run(self, api, lambda provider: provider.delete(CALL_ID))
            assert kept is None or isinstance(kept, dict), "delete gives what the provider keeps of the call, or None"
            about = [asked for asked in api.asked if CALL_ID in asked.target or CALL_ID.encode() in asked.body]
            assert about, "delete asks nothing about the call"

    def test_a_deletion_that_fails_says_so(self) -> None:
        if not given.offers(self, "delete"):
            pytest.skip(f"{self.provider.name} offers no deletion")
        for name in ("401", "429", "500", "no answer"):
            with pytest.raises(ProviderError) as caught:
                given.run(
                    self, given.api_of(self, "rest.get_call", FAILURES[name]), lambda provider: provider.delete(CALL_ID)
                )
            _check_refusal(caught.value, FAILURES[name])

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for argument in sorted(set(metafunc.fixturenames) & CHOICES.keys()):
            metafunc.parametrize(argument, sorted(CHOICES[argument](self)))


# What each argument of a test goes through.
CHOICES: dict[str, Callable[[Given], Collection[str]]] = {
    "webhook": given.webhooks,
    "fact": given.facts,
    "record": lambda contract: given.stems(contract, "rest.get_call"),
    "vector": given.vectors,
    "genuine": given.genuine_requests,
    "failure": lambda contract: FAILURES,
    "listing": lambda contract: [verb for verb in given.LISTS if given.offers(contract, verb)],
}


def _cause(contract: Given, request: Request, secrets: Sequence[str], now: float) -> str:
    """ "valid", or why the request is refused."""
    try:
        given.made(contract).verify(request, secrets, now)
    except SignatureError as error:
        refusal = error
    else:
        return "valid"
    assert refusal.cause in CAUSES, f"{refusal.cause!r} is no cause: {', '.join(CAUSES)}"
    assert not any(secret in str(refusal) for secret in secrets if secret), f"a secret is in the message: {refusal}"
    pieces = re.findall(r"[^\s\"':,{}\[\]]{12,}", request.body.decode("utf-8", "replace"))
    assert not any(piece in str(refusal) for piece in pieces), f"a piece of the body is in the message: {refusal}"
    return refusal.cause


def _refused(contract: Given, body: bytes) -> bool:
    try:
        given.made(contract).decode(body)
    except UndecodableWebhook:
        return True
    return False


def _check_refusal(error: ProviderError, answer: Answer) -> None:
    status, _, headers = answer
    assert error.status == status or status in (0, 200), f"the error's status is {error.status}: the API said {status}"
    wait_s = float(headers["retry-after"]) if headers else None
    assert error.retry_after == wait_s, f"retry_after is {error.retry_after}: Retry-After was {wait_s} s"
    assert API_KEY not in str(error), "the API key is in the message"
    assert CALL_ID not in str(error), "the call's id is in the message"


def _check_webhook(webhook: Webhook) -> None:
    assert webhook.call_id, "the webhook's call_id is empty: give none, or raise UndecodableWebhook"
    assert webhook.dedupe_key, "the webhook's dedupe_key is empty"
    assert webhook.type in get_args(EventType), f"{webhook.type!r} is no event type; what is new is call.unknown"
    assert webhook.happened_at is None or STAMP.fullmatch(webhook.happened_at), f"{webhook.happened_at!r}: RFC 3339 UTC"
    written = msgspec.json.encode(msgspec.structs.replace(webhook, body=b""))
    msgspec.json.decode(written, type=Webhook)


def _check_normalize(provider: Provider, webhook: Webhook, record: Record | None) -> Call:
    before = msgspec.json.encode((webhook, record))
    call = provider.normalize(webhook, record)
    written = msgspec.json.encode(call)
    assert msgspec.json.encode((webhook, record)) == before, "normalize changed what it was given: it must be pure"
    assert msgspec.json.encode(provider.normalize(webhook, record)) == written, "normalize gives another call next time"
    assert msgspec.json.decode(written, type=Call) == call, "the call does not come back from its JSON as it was"
    told = "call.id is the webhook's call_id, call.provider the class's name, call.account the account's"
    assert (call.id, call.provider, call.account) == (webhook.call_id, provider.name, provider.account.name), told
    assert isinstance(provider.is_ready(webhook, record or {}), bool), "is_ready says True or False"
    awaited = set(provider.awaits(webhook, record))
    assert awaited <= set(get_args(EventType)), f"awaits names what is no event type: {awaited}"
    return call


def _said(call: Call) -> set[str]:
    """The paths of what is known of a call beside who it is."""
    nothing = Call(id=call.id, provider=call.provider, account=call.account, status=call.status)
    return said(msgspec.to_builtins(call), msgspec.to_builtins(nothing))
