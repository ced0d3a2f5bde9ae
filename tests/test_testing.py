"""The contract suite is red where a promise is broken: the ElevenLabs plug-in, which is green, with one defect each."""

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import msgspec
import pytest

from aftercall.call import Call
from aftercall.errors import ProviderError, RecordNotReady, SignatureError
from aftercall.providers.base import CallPage, Record, Request, Signature, Webhook
from aftercall.providers.http import get_json, request_json
from aftercall.testing.provider import CHOICES
from tests.providers import test_elevenlabs_plugin as plugin

ElevenLabs: Any = plugin.ElevenLabs
changed = msgspec.structs.replace


def failures(defect: type[Any], test: str, **said: Any) -> Iterator[BaseException]:
    """What the contract's test says of the provider, over all that it is parametrized with."""
    contract = type("Contract", (plugin.TestElevenLabs,), {"provider": defect, **said})()
    method = getattr(contract, test)
    arguments = list(inspect.signature(method).parameters)
    for values in product(*(CHOICES[argument](contract) for argument in arguments)):
        try:
            method(*values)
        except pytest.skip.Exception:
            continue
        except (Exception, pytest.fail.Exception) as error:
            yield error


class AcceptsAll(ElevenLabs):
    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        pass


class TakesTheFirstSecretOnly(ElevenLabs):
    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        super().verify(request, secrets[:1], now)


class LooksAtTheAgeFirst(ElevenLabs):
    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        signed = self.signature(request)
        if signed and abs(int(signed.timestamp) - now) > 1800:
            raise SignatureError("stale", "too old")
        super().verify(request, secrets, now)


class TellsTheSecret(ElevenLabs):
    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        try:
            super().verify(request, secrets, now)
        except SignatureError as error:
            raise SignatureError(error.cause, f"{error} {secrets}") from None


class QuotesTheBody(ElevenLabs):
    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        try:
            super().verify(request, secrets, now)
        except SignatureError as error:
            raise SignatureError(error.cause, f"{error} {request.body.decode('utf-8', 'replace')}") from None


class SwapsDigests(ElevenLabs):
    def signature(self, request: Request) -> Signature | None:
        signed = super().signature(request)
        return signed and changed(signed, digests=[bytes(32)])


class KeysByTheBytes(ElevenLabs):
    def decode(self, body: bytes) -> list[Webhook]:
        return [changed(one, dedupe_key=f"{one.dedupe_key}:{hash(body)}") for one in super().decode(body)]


class KeysByTheEvent(ElevenLabs):
    def decode(self, body: bytes) -> list[Webhook]:
        return [changed(one, dedupe_key=one.event) for one in super().decode(body)]


class LetsParsersSpeak(ElevenLabs):
    def decode(self, body: bytes) -> list[Webhook]:
        json.loads(body)
        return super().decode(body)


class LooksAtTheHeadOnly(ElevenLabs):
    def decode(self, body: bytes) -> list[Webhook]:
        return super().decode(body.replace(b"\xff", b"?").replace(b"[" * 99_000, b"").replace(b"]" * 99_000, b""))


class SaysNothing(ElevenLabs):
    base_url = "http://api.elevenlabs.io"

    def decode(self, body: bytes) -> list[Webhook]:
        super().decode(body)
        return []

    async def fetch(self, call_id: str) -> Record:
        return [await super().fetch(call_id)]  # type: ignore[return-value]


class PutsTheIdIntoThePath(ElevenLabs):
    def _url(self, call_id: str) -> str:
        return f"{self.root}/v1/convai/conversations/{call_id}"


class PutsTheKeyIntoTheUrl(ElevenLabs):
    async def fetch(self, call_id: str) -> Record:
        params = {"key": self.account.api_key}
        return await get_json(self.http, self._url(call_id), headers=self._headers, params=params)


class LetsTheClientSpeak(ElevenLabs):
    async def fetch(self, call_id: str) -> Record:
        answer = await self.http.get(self._url(call_id), headers=self._headers)
        return answer.raise_for_status().json()


class ForgetsHowLongToWait(ElevenLabs):
    async def fetch(self, call_id: str) -> Record:
        try:
            return await super().fetch(call_id)
        except RecordNotReady as error:
            raise RecordNotReady(str(error), status=error.status) from None


class Replaces(ElevenLabs):
    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        return super().normalize(changed(webhook, body=b"") if record else webhook, record)


class WritesIntoTheRecord(ElevenLabs):
    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        if record:
            record["seen"] = True
        return super().normalize(webhook, record)


class TellsLocalTime(ElevenLabs):
    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        return changed(super().normalize(webhook, record), started_at="2026-11-18 08:25:02")


class CountsBackwards(ElevenLabs):
    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        return changed(super().normalize(webhook, record), duration_ms=-1)


class MakesNoJson(ElevenLabs):
    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        return changed(super().normalize(webhook, record), duration_ms=float("nan"))


class NeedsTheMetadata(ElevenLabs):
    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        if record:
            _ = record["metadata"]["start_time_unix_secs"]
        return super().normalize(webhook, record)


class PassesAllOn(ElevenLabs):
    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        return changed(super().normalize(webhook, record), metadata=json.loads(webhook.body) if webhook.body else {})


class IsNeverSure(ElevenLabs):
    def is_ready(self, webhook: Webhook, record: Record) -> bool:
        return None  # type: ignore[return-value]


class StopsAtTheFirstPage(ElevenLabs):
    async def list_calls(self, since: datetime, cursor: str | None = None) -> CallPage:
        return changed(await super().list_calls(since, cursor), next=None)


class TurnsNoPage(ElevenLabs):
    async def list_calls(self, since: datetime, cursor: str | None = None) -> CallPage:
        return await super().list_calls(since)


class GivesNothingForAFailure(ElevenLabs):
    async def list_calls(self, since: datetime, cursor: str | None = None) -> CallPage:
        try:
            return await super().list_calls(since - timedelta(days=1), cursor)
        except ProviderError:
            return CallPage(calls=[])


class NamesFactsAnew(ElevenLabs):
    def decode(self, body: bytes) -> list[Webhook]:
        listed = "event_timestamp" not in json.loads(body)
        return [changed(one, dedupe_key=f"{one.dedupe_key}:{listed}") for one in super().decode(body)]


class TellsFactsTooEarly(ElevenLabs):
    def facts(self, record: Record) -> list[bytes]:
        return super().facts({**record, "status": "done"})


class FailsAtWhatIsGone(ElevenLabs):
    async def delete(self, call_id: str) -> Record | None:
        await request_json(self.http, "DELETE", self._url(call_id), headers=self._headers)
        return None


class DeletesNothing(ElevenLabs):
    async def delete(self, call_id: str) -> Record | None:
        return None


LACKS, PAGES = "test_there_are_webhooks_records_and_signatures_to_try", "test_fetch_reads_every_page"
DEFECTS = [
    (AcceptsAll, "a_changed_body_is_refused"),
    (AcceptsAll, "another_secret_is_refused"),
    (AcceptsAll, "without_a_secret_nothing_is_accepted"),
    (AcceptsAll, "a_missing_header_is_refused_as_missing"),
    (AcceptsAll, "a_garbled_header_is_refused"),
    (AcceptsAll, "a_request_is_judged_as_its_vector_says"),
    (TakesTheFirstSecretOnly, "any_of_several_secrets_is_accepted"),
    (LooksAtTheAgeFirst, "only_a_genuine_request_is_called_stale"),
    (TellsTheSecret, "another_secret_is_refused"),
    (QuotesTheBody, "a_changed_body_is_refused"),
    (SwapsDigests, "a_signed_webhook_is_accepted"),
    (SwapsDigests, "the_parts_of_a_signature_can_be_read"),
    (KeysByTheBytes, "copies_of_a_webhook_have_the_same_dedupe_key"),
    (KeysByTheEvent, "different_facts_have_different_dedupe_keys"),
    (LetsParsersSpeak, "what_is_not_json_is_refused"),
    (LetsParsersSpeak, "no_body_makes_decode_fail_in_another_way"),
    (LooksAtTheHeadOnly, "a_body_that_is_no_utf_8_or_nested_too_deeply_is_refused"),
    (SaysNothing, "the_class_says_who_it_is"),
    (SaysNothing, "a_webhook_is_one_fact_about_a_call"),
    (SaysNothing, "fetch_gives_the_record"),
    (PutsTheIdIntoThePath, "a_call_id_cannot_lead_to_another_path"),
    (PutsTheKeyIntoTheUrl, "the_api_key_is_sent_in_a_header"),
    (LetsTheClientSpeak, "whatever_the_api_answers_the_record_is_not_ready"),
    (LetsTheClientSpeak, "an_api_that_cannot_be_reached_makes_a_record_not_ready"),
    (ForgetsHowLongToWait, "whatever_the_api_answers_the_record_is_not_ready"),
    (Replaces, "what_only_the_webhook_carried_stays"),
    (WritesIntoTheRecord, "normalize_makes_a_valid_call"),
    (TellsLocalTime, "normalize_makes_a_valid_call"),
    (CountsBackwards, "normalize_makes_a_valid_call"),
    (MakesNoJson, "normalize_makes_a_valid_call"),
    (NeedsTheMetadata, "normalize_never_fails"),
    (IsNeverSure, "normalize_makes_a_valid_call"),
    (PassesAllOn, "no_secret_enters_the_call"),
    (StopsAtTheFirstPage, "a_list_is_read_to_its_end"),
    (TurnsNoPage, "a_list_is_read_to_its_end"),
    (GivesNothingForAFailure, "a_list_that_fails_says_so"),
    (NamesFactsAnew, "the_facts_of_a_listed_call_are_webhooks"),
    (TellsFactsTooEarly, "a_call_that_goes_on_has_no_facts"),
    (FailsAtWhatIsGone, "a_call_is_deleted_and_one_that_is_gone_counts_as_deleted"),
    (DeletesNothing, "a_call_is_deleted_and_one_that_is_gone_counts_as_deleted"),
    (DeletesNothing, "a_deletion_that_fails_says_so"),
]


@pytest.mark.parametrize(("defect", "test"), DEFECTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_promise_is_seen(defect: type[Any], test: str) -> None:
    assert list(failures(defect, f"test_{test}")), "the suite is green"


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ({"fixtures": plugin.PACKAGE}, "as <event>.json"),
        ({"ignored": ("post_call_sound",)}, "`ignored` names what is no fixture"),
        ({"secret_keys": ("sip_password",)}, "no fixture has the secret_keys ['sip_password']"),
    ],
)
def test_what_the_suite_lacks_is_asked_for(said: dict[str, Any], remedy: str) -> None:
    [failure] = failures(ElevenLabs, LACKS, **said)
    assert remedy in str(failure)


def test_a_page_of_the_record_that_is_not_fetched_is_seen() -> None:
    pages = {"/v1/convai/conversations/{id}": ["rest.get_call", "rest.get_call.ongoing"]}
    [failure] = failures(ElevenLabs, PAGES, routes=pages)
    assert "not asked for every page of ['/v1/convai/conversations/call-1']" in str(failure)


def test_every_test_of_the_suite_has_a_defect_that_it_sees() -> None:
    tests = {name for name in vars(plugin.ProviderContract) if name.startswith("test_")}
    assert tests == {f"test_{test}" for _, test in DEFECTS} | {LACKS, PAGES}


def test_without_pytest_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['pytest'] = None; import aftercall.testing"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: aftercall.testing is run by pytest, which is not installed: pip install pytest" in ran.stderr
